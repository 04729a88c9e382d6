"""The serial channel: a shell on the console starts the agent on a second serial port.

pexpect controls the shell. When the agent runs, the console is not used any more
(QEMU keeps its log), and all messages are frames on the second port.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from pathlib import Path

import pexpect
from pexpect.fdpexpect import fdspawn

from harness.channel.handover import hand_over
from harness.channel.stream import POLL, SEND_TIMEOUT, ChannelError, Check

PROMPT = "vblk# "
_Patterns = list[re.Pattern[str] | type[pexpect.TIMEOUT] | type[pexpect.EOF]]
_PATTERNS: _Patterns = [
    # With line editing, busybox asks the terminal for the cursor position after the prompt.
    re.compile(PROMPT + r"(\x1b\[6n)?$"),
    # Only with its end: a console delivers a few characters at a time.
    re.compile(r"Kernel panic - not syncing: [^\r\n]*(?=[\r\n])"),
    pexpect.TIMEOUT,
    pexpect.EOF,
]
# Text of this length without a match is dropped: a guest that writes without end fills no memory.
_TOO_MUCH = re.compile(r"(?s).{65536}")
_CONNECT_TIMEOUT = 5.0  # seconds
_NUDGE = 2.0  # seconds after which the shell is asked for a prompt again
_TAIL = 4000  # characters of the console in an error

# QEMU delivers at most as many bytes at a time as the trigger level of the UART, so the level is
# the highest. It delivers fewer bytes only after the time of four characters, so the port is fast.
# The last line reports the end of the agent: unlike a socket, a port does not end by itself.
_START = (
    "(stty -F /dev/ttyS1 115200; echo 14 > /sys/class/tty/ttyS1/rx_trig_bytes;"
    " python3.11 -S -E /agent/bootstrap.py /dev/ttyS1;"
    r" printf '\nVBLK-EXIT %d\n' $? > /dev/ttyS1) &"
)
_EXIT = re.compile(rb"\nVBLK-EXIT (\d+)\r?\n")
_LONGEST_EXIT = 32  # bytes


class PortStream:
    """A guest's serial port on the host: an open socket or terminal, which this object owns."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._tail = b""
        os.set_blocking(descriptor, False)

    def recv(self, timeout: float) -> bytes:
        """See `Stream`. Also raises ChannelError when the agent on this port has ended."""
        if self._descriptor < 0:
            raise ChannelError("the guest's serial port failed: it was closed here")
        if not select.select([self._descriptor], [], [], timeout)[0]:
            return b""
        try:
            data = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise ChannelError(f"the guest's serial port failed: {error.strerror}") from error
        if not data:
            raise ChannelError("the guest's serial port was closed")
        self._tail += data
        ended = _EXIT.search(self._tail)
        if ended:
            status = ended[1].decode()
            raise ChannelError(f"the agent in the guest ended with status {status}")
        self._tail = self._tail[-_LONGEST_EXIT:]
        return data

    def send(self, data: bytes) -> None:
        """See `Stream`."""
        deadline = time.monotonic() + SEND_TIMEOUT
        rest = memoryview(data)
        while rest:
            left = deadline - time.monotonic()
            if self._descriptor < 0:
                raise ChannelError("the guest's serial port failed: it was closed here")
            if left <= 0 or not select.select([], [self._descriptor], [], left)[1]:
                raise ChannelError(
                    f"the guest's serial port did not take {len(data)} bytes in"
                    f" {SEND_TIMEOUT:.0f} s"
                )
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise ChannelError(f"the guest's serial port failed: {error.strerror}") from error

    def close(self) -> None:
        """See `Stream`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SerialStream(PortStream):
    """A guest's serial port, through the UNIX socket at `path` of its QEMU."""

    def __init__(self, path: Path) -> None:
        super().__init__(_connect(path).detach())


def open_serial(
    console: Path, stream: Path, payload: bytes, deadline: float, check: Check
) -> SerialStream:
    """Start the agent of a guest whose ports are the UNIX sockets `console` and `stream`.

    `payload` is the agent's code as a zip file, `deadline` a time of
    time.monotonic(). Raises ChannelError with the console's last text, and the
    errors of `check`.
    """
    # First, so that no byte of the bootstrap is lost.
    port = SerialStream(stream)
    try:
        with _Console(console, deadline, check) as shell:
            shell.wait_for_prompt()
            shell.run(_START)

            def watch() -> None:
                shell.drain()
                check()

            try:
                hand_over(port, payload, deadline, watch)
            except ChannelError as error:
                shell.drain()
                raise ChannelError(str(error), shell.tail()) from error
    except BaseException:
        port.close()
        raise
    return port


class _Console:
    """The shell on the guest's console."""

    def __init__(self, path: Path, deadline: float, check: Check) -> None:
        self._deadline = deadline
        self._check = check
        self._socket = _connect(path)
        self._socket.setblocking(True)
        self._spawn = fdspawn(self._socket.fileno(), encoding="utf-8", codec_errors="replace")

    def __enter__(self) -> _Console:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait_for_prompt(self) -> None:
        """Wait for the shell's prompt. ChannelError if the guest panics, or at the deadline.

        What has come is read once more when the time is over: this process may have been stalled.
        """
        nudge_at = time.monotonic()
        over = False
        while not over:
            now = time.monotonic()
            over = now >= self._deadline
            self._check()
            if now >= nudge_at:
                nudge_at = now + _NUDGE
                self._send("\n")
            match self._expect(_PATTERNS, POLL):
                case 0:
                    return
                case 1:
                    raise ChannelError(f"the guest died: {self._spawn.after}", self.tail())
                case 3:
                    self._check()
                    raise ChannelError("the guest's console was closed", self.tail())
        raise ChannelError(
            f"waited in vain for the shell's prompt {PROMPT!r} on the guest's console", self.tail()
        )

    def run(self, command: str) -> None:
        """Type a command."""
        self._send(f"{command}\n")

    def drain(self) -> None:
        """Read the console's output: a guest whose output nobody reads could block."""
        self._expect([pexpect.EOF, pexpect.TIMEOUT], 0)

    def tail(self) -> str:
        """Return the last text of the console."""
        parts = (self._spawn.before, self._spawn.after)
        return "".join(part for part in parts if isinstance(part, str))[-_TAIL:]

    def _expect(self, patterns: _Patterns, timeout: float) -> int:
        """Return the index of the pattern that comes first; pexpect.EOF also for a reset.

        A text that is too long counts as pexpect.TIMEOUT.
        """
        try:
            found = self._spawn.expect_list([*patterns, _TOO_MUCH], timeout=timeout)
            return found if found < len(patterns) else patterns.index(pexpect.TIMEOUT)
        except OSError:
            return patterns.index(pexpect.EOF)

    def _send(self, text: str) -> None:
        try:
            self._spawn.send(text)
        except OSError as error:
            self._check()
            self.drain()
            raise ChannelError(
                f"the guest's console failed: {error.strerror}", self.tail()
            ) from error


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_CONNECT_TIMEOUT)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise ChannelError(f"cannot connect to the guest's port at {path}: {error}") from error
    return connection
