"""A child process that ends at the latest with this process."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from harness.machine.errors import MachineError
from harness.machine.monitor import LoopThread

# setpriv asks the kernel to kill the child when its parent ends. The shell then checks that the
# parent is still there, and executes the program.
GUARD = '[ "$PPID" = "$0" ] && exec "$@"'
TERM_DEADLINE = 2.0
KILL_DEADLINE = 10.0


class Process:
    """A started child; its stdout and stderr go to the file `stderr`.

    The kernel kills the child when the *thread* that created it ends. So the child
    is created in `thread`, which runs until the child has ended. The child has its own session,
    so a Ctrl-C in the terminal reaches this process only.
    """

    def __init__(
        self,
        name: str,
        line: list[str],
        stderr: Path,
        thread: LoopThread,
        inherited: Iterable[int] = (),
        terminal: int | None = None,
    ) -> None:
        """Start the command `line`; messages call the child `name`.

        It inherits the open files `inherited`, with the same numbers. With a `terminal`, an open
        file, that is its stdin and stdout.
        """
        self.name = name
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise MachineError("setpriv is not on PATH; install it: apt-get install util-linux")
        # A connected pair needs no path, and reports end of file when the child ends.
        self.channel, theirs = socket.socketpair()
        self._status: int | None = None
        try:
            options = self.channel_options(theirs.fileno())
            passed = [theirs.fileno(), *inherited] if options else [*inherited]
            line = [*line, *options]
            self.command = shlex.join(line)
            guard = [setpriv, "--pdeathsig", "KILL", "sh", "-c", GUARD, str(os.getpid())]
            try:
                self._child = thread.run(_spawn([*guard, *line], stderr, passed, terminal))
            except OSError as error:
                raise MachineError(f"{line[0]} was not started: {error.strerror}") from error
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()

    @staticmethod
    def channel_options(fd: int) -> list[str]:
        """Return the options that make the child use an inherited socket; none if it uses none."""
        return []

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def alive(self) -> bool:
        """Return True while the process runs.

        A process that has ended is not reaped before `end`. Until then the kernel gives its id,
        which is also that of its group, to no other process.
        """
        return self._ended() is None

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the end of the process; return True if it has ended."""
        deadline = time.monotonic() + timeout
        pause = 0.0005
        while self.alive():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, 0.02)
        return True

    def end(self) -> None:
        """End the process and its descendants with SIGTERM, else SIGKILL, and reap it.

        The process leads a session: a signal to its group also reaches children of a wrapper.
        """
        if self._child.returncode is None:
            if self.alive():
                self._signal(signal.SIGTERM)
                self.wait(TERM_DEADLINE)
            self._signal(signal.SIGKILL)
            ended = self.wait(KILL_DEADLINE)
            self._ended()
            if ended:
                self._child.wait(KILL_DEADLINE)
        self.channel.close()

    @property
    def status(self) -> int | None:
        """Exit status, negative for the number of a signal, None while it runs."""
        return self._ended()

    def fate(self) -> str:
        """Return in words how the process ended."""
        status = self._ended()
        if status is None:
            return f"{self.name} is running"
        if status < 0:
            return f"{self.name} was ended by {signal.Signals(-status).name}"
        return f"{self.name} exited with status {status}"

    def _signal(self, signum: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # its group is gone, or all of it ended
            os.killpg(self.pid, signum)

    def _ended(self) -> int | None:
        """Return the exit status, negative for the number of a signal, None while it runs."""
        if self._status is None and self._child.returncode is not None:
            self._status = self._child.returncode
        if self._status is None:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            try:
                found = os.waitid(os.P_PID, self.pid, flags)
            except ChildProcessError:  # somebody else has reaped it
                self._status = self._child.poll() or 0
            else:
                if found is not None:
                    exited = found.si_code == os.CLD_EXITED
                    self._status = found.si_status if exited else -found.si_status
        return self._status


async def _spawn(
    line: list[str], stderr: Path, inherited: list[int], terminal: int | None
) -> subprocess.Popen[bytes]:
    with stderr.open("wb") as log:
        return subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=log if terminal is None else terminal,
            stderr=log,
            pass_fds=inherited,
            start_new_session=True,
        )
