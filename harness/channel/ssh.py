"""The SSH channel, to an agent that is started or runs already.

The agent is the command of an SSH connection, and its stdio is the stream; or it listens on the
guest's loopback device, and the SSH server forwards the stream to it. The second starts no process
in the guest: a Python that starts and imports the driver takes 2 s under TCG.
"""

from __future__ import annotations

import base64
import logging
import socket
import time
from contextlib import suppress
from pathlib import Path

import paramiko
from paramiko.pkey import UnknownKeyType

from harness.channel.handover import hand_over
from harness.channel.stream import SEND_TIMEOUT, ChannelError, Check

USER = "root"
COMMAND = "python3.11 -S -E /agent/bootstrap.py"
_ATTEMPT_TIMEOUT = 15.0  # seconds for one attempt to connect
_PAUSE = 0.2  # seconds between two attempts
_TAIL = 4000  # bytes of the agent's stderr in an error
_ERRORS_READ = 1 << 20  # bytes of the agent's stderr that are read for an error

# Without a handler Python prints paramiko's log, which has every refused attempt.
_LOG_NAME = f"{__name__}.paramiko"
logging.getLogger(_LOG_NAME).addHandler(logging.NullHandler())


class SshStream:
    """A channel of an SSH connection; owns the connection."""

    def __init__(self, client: paramiko.SSHClient, channel: paramiko.Channel) -> None:
        self._client = client
        self._channel = channel
        self._errors = b""

    def recv(self, timeout: float) -> bytes:
        """See `Stream`. The `details` of a ChannelError are the command's stderr."""
        self._channel.settimeout(timeout)
        try:
            data = self._channel.recv(65536)
        except TimeoutError:
            return b""
        if not data:
            raise self._error("the SSH connection to the guest ended")
        return data

    def send(self, data: bytes) -> None:
        """See `Stream`."""
        self._channel.settimeout(SEND_TIMEOUT)
        try:
            self._channel.sendall(data)
        except TimeoutError:
            raise self._error(
                f"the guest did not take {len(data)} bytes over SSH in {SEND_TIMEOUT:.0f} s"
            ) from None
        except (OSError, paramiko.SSHException) as error:
            raise self._error(f"the SSH connection to the guest failed: {error}") from error

    def close(self) -> None:
        """See `Stream`."""
        self._client.close()

    def _error(self, message: str) -> ChannelError:
        for _ in range(_ERRORS_READ // 4096):
            if not self._channel.recv_stderr_ready():
                break
            self._errors = (self._errors + self._channel.recv_stderr(4096))[-_TAIL:]
        return ChannelError(message, self._errors.decode("utf-8", "replace"))


def open_ssh(
    host: str,
    port: int,
    key: Path,
    host_key: str,
    payload: bytes,
    deadline: float,
    check: Check,
) -> SshStream:
    """Start the agent of a guest whose SSH server is, or will soon be, at `host`:`port`.

    `key` is the file of the private key, `host_key` the only accepted host key, as
    "TYPE BASE64". `payload` is the agent's code as a zip file, `deadline` a time
    of time.monotonic(). Raises ChannelError, and the errors of `check`.
    """
    client = _connect(host, port, key, host_key, deadline, check)
    try:
        stream = SshStream(client, _execute(client, deadline))
        hand_over(stream, payload, deadline, check)
    except BaseException:
        client.close()
        raise
    return stream


def open_forwarded(
    host: str, port: int, key: Path, host_key: str, agent_port: int, deadline: float, check: Check
) -> SshStream:
    """Connect to the agent that listens at `agent_port` of the guest's 127.0.0.1.

    The other arguments and the errors are those of `open_ssh`.
    """
    client = _connect(host, port, key, host_key, deadline, check)
    try:
        return SshStream(client, _forward(client, agent_port, deadline))
    except BaseException:
        client.close()
        raise


def _connect(
    host: str, port: int, key: Path, host_key: str, deadline: float, check: Check
) -> paramiko.SSHClient:
    """Connect, and retry until the server is up: QEMU accepts connections before it is."""
    identity = _private_key(key)
    expected = _public_key(host_key)
    server = f"[{host}]:{port}" if port != 22 else host
    while True:
        check()
        client = paramiko.SSHClient()
        client.set_log_channel(_LOG_NAME)
        client.get_host_keys().add(server, expected.get_name(), expected)
        patience = max(0.1, min(_ATTEMPT_TIMEOUT, deadline - time.monotonic()))
        try:
            client.connect(
                host,
                port,
                USER,
                pkey=identity,
                timeout=patience,
                banner_timeout=patience,
                auth_timeout=patience,
                allow_agent=False,
                look_for_keys=False,
            )
            _send_at_once(client)
            return client
        except BaseException as error:
            client.close()
            if isinstance(error, paramiko.AuthenticationException):
                check()  # a guest that ends during the login does not refuse the key
            _raise_if_final(error, host, port)
            if time.monotonic() + _PAUSE > deadline:
                raise ChannelError(f"waited in vain for SSH at {host}:{port}: {error!r}") from error
        time.sleep(_PAUSE)


def _send_at_once(client: paramiko.SSHClient) -> None:
    """Let no message wait until the one before it is acknowledged."""
    transport = client.get_transport()
    if transport and isinstance(transport.sock, socket.socket):
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _raise_if_final(error: BaseException, host: str, port: int) -> None:
    """Raise ChannelError, or the error itself, unless another attempt may succeed."""
    if isinstance(error, paramiko.BadHostKeyException):
        raise ChannelError(
            f"the SSH server at {host}:{port} is not the guest: it has another host key"
        ) from error
    if isinstance(error, paramiko.AuthenticationException):
        raise ChannelError(
            f"the guest at {host}:{port} refuses the image's SSH key: build the image again"
        ) from error
    if not isinstance(error, (OSError, EOFError, paramiko.SSHException)):
        raise error


def _transport(client: paramiko.SSHClient) -> paramiko.Transport:
    transport = client.get_transport()
    if transport is None:
        raise ChannelError("the SSH connection to the guest ended at once")
    return transport


def _forward(client: paramiko.SSHClient, agent_port: int, deadline: float) -> paramiko.Channel:
    agent = ("127.0.0.1", agent_port)
    try:
        return _transport(client).open_channel(
            "direct-tcpip", agent, ("127.0.0.1", 0), timeout=max(0.1, deadline - time.monotonic())
        )
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise ChannelError(
            f"the guest did not connect SSH to its agent at port {agent_port}: {error}"
        ) from error


def _execute(client: paramiko.SSHClient, deadline: float) -> paramiko.Channel:
    transport = _transport(client)
    try:
        channel = transport.open_session(timeout=max(0.1, deadline - time.monotonic()))
        channel.exec_command(COMMAND)
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise ChannelError(f"the guest did not start {COMMAND!r} over SSH: {error}") from error
    return channel


def _private_key(path: Path) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except (OSError, ValueError, paramiko.SSHException, UnknownKeyType) as error:
        raise ChannelError(f"cannot use the SSH key {path}: {error}") from error


def _public_key(line: str) -> paramiko.PKey:
    with suppress(ValueError, paramiko.SSHException, UnknownKeyType):
        kind, text, *_ = line.split()
        return paramiko.PKey.from_type_string(kind, base64.b64decode(text, validate=True))
    raise ChannelError(f"not a host key (TYPE BASE64): {line!r}")
