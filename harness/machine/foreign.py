"""A daemon of somebody else as child process: started by a command, watched, and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import join

from harness.machine.errors import CommandFailedError, MachineError
from harness.machine.logs import end_of, tail
from harness.machine.process import Process
from harness.machine.supervisor import SHOWN, Supervised

COMMAND_TIMEOUT = 30.0
"""Seconds that a command of the user may take."""

LOG_KEPT = 4 << 20
"""Bytes at the end of the output that go into the artifacts."""

PAUSE = 0.01
ENTERED = 0.5
"""Seconds after which a socket that /proc/net/unix does not show under its path is taken as
listening."""

LAST_OUTPUT = "its last output"
"""Words before the last line of a process in messages."""

LISTENING = 0x10000
"""__SO_ACCEPTCON in the flags of /proc/net/unix."""


class ForeignDaemon(Supervised):
    """A process that runs a user's command, with its children; its output goes to a file."""

    def __init__(
        self,
        name: str,
        line: Sequence[str],
        terminal: int | None = None,
        printed: Callable[[], str] = lambda: "",
    ) -> None:
        """Start `line`; messages call the process `name`. MachineError if there is no such program.

        With a `terminal`, an open file, that is its stdin and stdout. `printed` returns what it
        has written there. It has no control channel: `stop` sends a signal at once.
        """
        self.process_name = self.subject = name
        super().__init__()
        self._printed = printed
        self._last_line = ""
        self._ended_by_us = False
        try:
            self._launch([*line], terminal=terminal)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Process id, which is also that of its group."""
        assert self._process
        return self._process.pid

    @property
    def command(self) -> str:
        """Command line, quoted for a shell."""
        assert self._process
        return self._process.command

    def ended_well(self) -> bool:
        """Return True if it has ended with status 0."""
        return self._process is not None and self._process.status == 0

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return True if it has ended."""
        return self._process is None or self._process.wait(seconds)

    def fate(self) -> str:
        """Return in words if it runs, or how it ended. Its own end is not confused with `stop`."""
        if self._ended_by_us:
            return f"{self.process_name} was running until the harness ended it"
        return super().fate()

    def _request_end(self, process: Process) -> None:
        self._ended_by_us = True

    def _last_lines(self) -> list[str]:
        text = f"{self._printed()}\n{tail(self._stderr, SHOWN)}"
        return [line for line in text.splitlines() if line.strip()][-SHOWN:]

    def last_line(self) -> str:
        """Return how it ended, and the last line of its output, in one line. Also after `stop`."""
        if self._stopped:
            return self._last_line
        words = self._last_lines()
        return f"{self.fate()}; {LAST_OUTPUT}: {words[-1].strip() if words else 'nothing'}"

    def output(self) -> str:
        """Return its output, of a long one the end."""
        return end_of(self._stderr, LOG_KEPT)

    def _keep(self) -> None:
        super()._keep()
        if self._process:
            self._last_line = self.last_line()

    def wait_until_ready(self, socket: Path | None, line: str, seconds: float) -> None:
        """Wait until its output has `line`; if that is empty, until it listens on `socket`.

        MachineError if it ends before that, or `seconds` pass.
        """
        awaited = f"the line {line!r} in its output" if line else f"that it listens on {socket}"
        deadline = time.monotonic() + seconds
        appeared: float | None = None
        while True:
            if line:
                if line in self.output():
                    return
            elif socket is None:
                return
            elif socket.is_socket():
                appeared = appeared or time.monotonic()
                if listens(socket, time.monotonic() - appeared > ENTERED):
                    return
            if not self.alive():
                raise MachineError(f"{self.last_line()}; awaited was {awaited}", self.last_words())
            if time.monotonic() > deadline:
                raise MachineError(
                    f"{self.process_name} was not ready within {seconds:g} s;"
                    f" awaited was {awaited}. {self.last_line()}",
                    self.last_words(),
                )
            time.sleep(PAUSE)


def listens(socket: Path, unknown: bool) -> bool:
    """Return True if a process listens on a UNIX socket, `unknown` if the kernel does not say."""
    # Connections have the path of their listener, too.
    flags = [int(words[3], 16) for words in _sockets_at(socket)]
    return any(found & LISTENING for found in flags) if flags else unknown


def alone_serves(pid: int, socket: Path) -> bool:
    """Return True if a process without children listens on a UNIX socket.

    False as well if the kernel does not show it.
    """
    process = Path(f"/proc/{pid}")
    open_files = set()
    try:
        children = [file.read_text() for file in process.glob("task/*/children")]
        for file in process.glob("fd/*"):
            with suppress(FileNotFoundError):  # closed in between
                open_files.add(str(file.readlink()))
    except OSError:
        return False
    if not children or any(children):
        return False
    listening = [words for words in _sockets_at(socket) if int(words[3], 16) & LISTENING]
    return any(f"socket:[{words[6]}]" in open_files for words in listening)


def _sockets_at(socket: Path) -> list[list[str]]:
    """Return the columns of /proc/net/unix for the sockets with a path."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]
    except OSError:
        return []
    return [words for line in lines if (words := line.split(maxsplit=7))[7:] == [str(socket)]]


def run(line: Sequence[str], timeout: float = COMMAND_TIMEOUT) -> str:
    """Run a user's command to its end, no shell in between. Return its output.

    MachineError if it fails: CommandFailedError if it ends by itself with another status than 0.

    The error has the last line of its output, and all of it as `details`. The process group of a
    command that takes longer than `timeout` seconds is killed.
    """
    shown = join(line)
    # A file, not a pipe: a daemon that the command leaves behind would keep a pipe open.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise MachineError(f"{shown}: {error}") from None
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{shown} has not ended within {timeout:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        text = output.read(LOG_KEPT).decode(errors="replace").strip()
    if process.returncode:
        last = (text.splitlines() or ["no output"])[-1]
        kind = CommandFailedError if process.returncode > 0 else MachineError
        raise kind(f"{shown} ended with {process.returncode}: {last}", text)
    return text
