"""The only serial port of a guest: the shell on it starts the agent, which takes the port over.

Kernel messages, and text that the host's program prints on the same terminal, may come between the
agent's frames. The agent's protocol skips them. They are kept as the guest's console.
"""

from __future__ import annotations

import os
import re
import termios
import time
import tty
from contextlib import suppress
from pathlib import Path

from harness.channel.handover import hand_over
from harness.channel.serial import PROMPT, PortStream
from harness.channel.stream import POLL, ChannelError, Check

NUDGE = 2.0
"""Seconds after which the shell is asked for a prompt again."""

KEPT = 64 << 10
"""Bytes at the end of the console that are kept."""

MOST_READS = 64
"""Reads of at most 64 KiB of what a program has left behind."""

_PROMPT = re.compile(re.escape(PROMPT.encode()) + rb"(\x1b\[6n)?$")
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)\r?\n")
_KERNEL = re.compile(rb"\[ *\d+\.\d{6}\] [\x20-\x7e]+")
_LONGEST_LINE = 512

# Kernel messages below an emergency are not printed any more. The kernel receives as many bytes
# at a time as the UART holds. The last line reports the end of the agent.
_START = (
    "dmesg -n 1; stty -F /dev/ttyS0 115200;"
    " echo 14 > /sys/class/tty/ttyS0/rx_trig_bytes;"
    " python3.11 -S -E /agent/bootstrap.py /dev/ttyS0 < /dev/null > /dev/null 2>&1;"
    r" printf '\nVBLK-EXIT %d\n' $?"
    "\n"
)


def make_raw(terminal: int) -> None:
    """Make an open terminal pass all bytes as they are, in both directions."""
    tty.setraw(terminal, termios.TCSANOW)
    mode = termios.tcgetattr(terminal)
    # A program that switches output processing on again finds nothing to process.
    mode[1] = 0
    termios.tcsetattr(terminal, termios.TCSANOW, mode)


def open_terminal(path: Path) -> PortStream:
    """Open the terminal that a program has made for a guest's port. ChannelError if it is none."""
    try:
        terminal = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ChannelError(f"cannot open the guest's port {path}: {error.strerror}") from None
    try:
        make_raw(terminal)
    except termios.error:
        os.close(terminal)
        raise ChannelError(f"{path} is not a terminal") from None
    return PortStream(terminal)


class Console:
    """A guest's only serial port, first with a shell on it and then with the agent.

    It is the `Stream` of the agent. It owns and closes the port.
    """

    def __init__(self, port: PortStream) -> None:
        self._port = port
        self._text = b""
        self._line = b""
        self._shared = False

    def recv(self, timeout: float) -> bytes:
        """See `Stream`. Also raises ChannelError when the guest's kernel panics."""
        data = self._port.recv(timeout)
        self._line += data
        if self._shared:
            for message in _KERNEL.findall(self._line):
                if message not in self._text:
                    self._text += message + b"\n"
        else:
            self._text += data
        self._text = self._text[-KEPT:]
        if panic := _PANIC.search(self._line):
            reason = panic[1].decode(errors="replace").strip()
            raise ChannelError(f"the guest's kernel panicked: {reason}", self.text())
        self._line = self._line[-_LONGEST_LINE:]
        return data

    def send(self, data: bytes) -> None:
        """See `Stream`."""
        self._port.send(data)

    def close(self) -> None:
        """See `Stream`."""
        self._port.close()

    def drain(self) -> None:
        """Read what the guest, or a program that has ended, has printed by now."""
        with suppress(ChannelError):
            for _ in range(MOST_READS):
                if not self.recv(0):
                    return

    def text(self) -> str:
        """Return the end of what the guest printed, without the words of the bootstrap."""
        lines = self._text.decode(errors="replace").replace("\r", "").split("\n")
        return "\n".join(line for line in lines if not line.startswith("VBLK-"))

    def start_agent(self, payload: bytes, timeout: float, check: Check) -> None:
        """Wait for the shell's prompt, and start the agent on the port, within `timeout` seconds.

        `payload` is the agent's code as a zip file. Raises ChannelError with the console's last
        text, and the errors of `check`.
        """
        deadline = time.monotonic() + timeout
        self._wait_for_prompt(timeout, check)
        self.send(_START.encode())
        try:
            hand_over(self, payload, deadline, check)
        except ChannelError as error:
            raise ChannelError(str(error), self.text()) from error
        self._shared = True

    def _wait_for_prompt(self, timeout: float, check: Check) -> None:
        nudge_at = time.monotonic()
        deadline = nudge_at + timeout
        over = False
        while not over:  # once more when the time is over: this process may have been stalled
            now = time.monotonic()
            over = now >= deadline
            check()
            if now >= nudge_at:
                nudge_at = now + NUDGE
                self.send(b"\n")
            self.recv(POLL)
            if _PROMPT.search(self._text):
                return
        lines = [line for line in self.text().splitlines() if line.strip()]
        if not lines:
            raise ChannelError(f"nothing came from the guest's serial port within {timeout:g} s")
        raise ChannelError(
            f"the guest's serial port showed no prompt {PROMPT!r} within {timeout:g} s;"
            f" the last line was {lines[-1].strip()!r}",
            self.text(),
        )
