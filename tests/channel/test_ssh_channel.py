"""The SSH channel, with a server of paramiko in this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest
from fake_guest import DEADLINE, Bootstrap, code, relay

from harness.channel.ssh import COMMAND, SshStream, open_forwarded, open_ssh
from harness.channel.stream import ChannelError

Serve = Callable[..., None]

AGENT_PORT = 4041


class Login(paramiko.ServerInterface):
    """Server that accepts root with one key, for one command or one forwarded connection."""

    def __init__(self, key: paramiko.PKey, exec_allowed: bool = True) -> None:
        self._key = key
        self._exec_allowed = exec_allowed
        self.started = threading.Event()
        self.command = b""

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        good = username == "root" and key == self._key
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.command = command
        self.started.set()
        return self._exec_allowed

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        self.started.set()
        permitted = destination == ("127.0.0.1", AGENT_PORT)
        prohibited = paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        return paramiko.OPEN_SUCCEEDED if permitted else prohibited


class Server:
    """An SSH server for one connection, with `command` run on its channel."""

    def __init__(self, login: Login, key: paramiko.PKey) -> None:
        self.login = login
        self.key = key
        self.run: Callable[[paramiko.Channel], None] = lambda channel: None

    def __call__(self, connection: socket.socket) -> None:
        transport = paramiko.Transport(connection)
        transport.add_server_key(self.key)
        try:
            transport.start_server(server=self.login)
            channel, end = None, time.monotonic() + DEADLINE
            # `accept` does not notice a client that left before the call.
            while channel is None and transport.is_active() and time.monotonic() < end:
                channel = transport.accept(0.5)
            if channel and self.login.started.wait(DEADLINE):
                # The client answers this after the answer to its own request has been sent.
                transport.global_request("are-you-there")
                self.run(channel)
        except (paramiko.SSHException, EOFError, OSError):
            pass  # the client refused the host key
        finally:
            transport.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, paramiko.PKey, paramiko.PKey]:
    """The client's key file, the client's key and the host's key."""
    client, host = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
    path = tmp_path_factory.mktemp("keys") / "id"
    client.write_private_key_file(str(path))
    return path, client, host


@pytest.fixture
def server(keys: tuple[Path, paramiko.PKey, paramiko.PKey]) -> Server:
    return Server(Login(keys[1]), keys[2])


@pytest.fixture
def listener() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


@pytest.fixture
def opened(
    keys: tuple[Path, paramiko.PKey, paramiko.PKey], listener: socket.socket
) -> Callable[..., SshStream]:
    def open_it(
        seconds: float = DEADLINE,
        key: Path = keys[0],
        host_key: str = f"{keys[2].get_name()} {keys[2].get_base64()}",
        check: Callable[[], None] = lambda: None,
    ) -> SshStream:
        port = listener.getsockname()[1]
        deadline = time.monotonic() + seconds
        return open_ssh("127.0.0.1", port, key, host_key, code(), deadline, check)

    return open_it


Opened = Callable[..., SshStream]


def test_the_agent_is_the_command(
    listener: socket.socket, serve: Serve, server: Server, opened: Opened, bootstrap: Bootstrap
) -> None:
    server.run = lambda channel: relay(channel.recv, channel.sendall, bootstrap.line)
    # QEMU takes connections for a guest whose server isn't up yet, and drops them.
    serve(listener, lambda early: None, lambda early: None, server)
    stream = opened()
    stream.send(b"hello")
    assert stream.recv(DEADLINE) == b"hello"
    assert stream.recv(0.01) == b""
    assert server.login.command.decode() == COMMAND
    stream.close()
    with pytest.raises(ChannelError, match="SSH connection to the guest"):
        stream.recv(DEADLINE)
    with pytest.raises(ChannelError, match="SSH connection to the guest failed"):
        stream.send(b"x")


@pytest.mark.parametrize(
    "key",
    [paramiko.ECDSAKey.generate(), paramiko.RSAKey.generate(2048)],
    ids=["same type", "another type"],
)
def test_another_host_key_is_refused(
    listener: socket.socket, serve: Serve, server: Server, opened: Opened, key: paramiko.PKey
) -> None:
    server.key = key
    serve(listener, server)
    with pytest.raises(ChannelError, match="is not the guest: it has another host key"):
        opened()
    assert not server.login.started.is_set()


def test_a_key_the_guest_does_not_know(
    listener: socket.socket, serve: Serve, server: Server, opened: Opened, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    paramiko.ECDSAKey.generate().write_private_key_file(str(stranger))
    serve(listener, server)
    with pytest.raises(ChannelError, match="refuses the image's SSH key"):
        opened(key=stranger)


def test_a_socket_without_an_answer(opened: Opened) -> None:
    with pytest.raises(ChannelError, match=r"waited in vain for SSH at 127\.0\.0\.1:\d+"):
        opened(seconds=0.5)


def test_the_machines_reason_ends_the_wait(opened: Opened) -> None:
    def check() -> None:
        raise RuntimeError("QEMU ended")

    with pytest.raises(RuntimeError, match="QEMU ended"):
        opened(check=check)


def test_an_agent_that_does_not_start(
    listener: socket.socket, serve: Serve, server: Server, opened: Opened
) -> None:
    server.run = lambda channel: channel.sendall_stderr(b"sh: python3.11: not found\n")
    serve(listener, server)
    with pytest.raises(ChannelError, match="SSH connection to the guest ended") as caught:
        opened()
    assert "python3.11: not found" in caught.value.details


def test_a_guest_that_runs_no_command(
    listener: socket.socket,
    serve: Serve,
    server: Server,
    opened: Opened,
    keys: tuple[Path, paramiko.PKey, paramiko.PKey],
) -> None:
    server.login = Login(keys[1], exec_allowed=False)
    serve(listener, server)
    with pytest.raises(ChannelError, match=r"did not start 'python3\.11"):
        opened()


@pytest.fixture
def forwarded(
    keys: tuple[Path, paramiko.PKey, paramiko.PKey], listener: socket.socket
) -> Callable[[int], SshStream]:
    def open_it(agent_port: int) -> SshStream:
        port = listener.getsockname()[1]
        host_key = f"{keys[2].get_name()} {keys[2].get_base64()}"
        deadline = time.monotonic() + DEADLINE
        return open_forwarded(
            "127.0.0.1", port, keys[0], host_key, agent_port, deadline, lambda: None
        )

    return open_it


def test_an_agent_that_runs_already_is_connected_without_a_command(
    listener: socket.socket,
    serve: Serve,
    server: Server,
    forwarded: Callable[[int], SshStream],
) -> None:
    server.run = lambda channel: channel.sendall(channel.recv(100).upper())
    serve(listener, lambda early: None, server)
    stream = forwarded(AGENT_PORT)
    stream.send(b"hello")
    assert stream.recv(DEADLINE) == b"HELLO"
    assert server.login.command == b""
    stream.close()


def test_an_agent_that_does_not_listen(
    listener: socket.socket,
    serve: Serve,
    server: Server,
    forwarded: Callable[[int], SshStream],
) -> None:
    serve(listener, server)
    with pytest.raises(ChannelError, match="did not connect SSH to its agent at port 4042"):
        forwarded(4042)


@pytest.mark.parametrize("line", ["", "ssh-ed25519", "ssh-ed25519 !!", "rot13 AAAA"])
def test_a_bad_host_key_line(opened: Opened, line: str) -> None:
    with pytest.raises(ChannelError, match="not a host key"):
        opened(host_key=line)


def test_no_key_file(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match=r"cannot use the SSH key .*nowhere"):
        opened(key=tmp_path / "nowhere")
