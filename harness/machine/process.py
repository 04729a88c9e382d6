"""QEMU as a child process that cannot outlive us."""

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

# setpriv asks the kernel to kill the child when we die; the shell then looks whether that has
# already happened, and becomes QEMU.
GUARD = '[ "$PPID" = "$0" ] && exec "$@"'
TERM_DEADLINE = 2.0
KILL_DEADLINE = 10.0


class Process:
    """QEMU, started; its stdout and stderr go to the file `stderr`.

    The kernel's "parent's death" is that of the *thread* that made the child,
    so `thread`, which lives until QEMU has ended, is the one to do it. QEMU is
    in a session of its own: a Ctrl-C of the terminal is for us to handle.
    """

    def __init__(
        self, line: list[str], stderr: Path, thread: LoopThread, inherited: Iterable[int] = ()
    ) -> None:
        """`inherited` are open files that it gets under the same numbers."""
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise MachineError("setpriv is not on PATH; install it: apt-get install util-linux")
        # A connected pair: no path to wait for, and QEMU's end is the end of the file.
        self.qmp_socket, theirs = socket.socketpair()
        self._status: int | None = None
        try:
            line = [*line, *self.channel_options(theirs.fileno())]
            self.command = shlex.join(line)
            guard = [setpriv, "--pdeathsig", "KILL", "sh", "-c", GUARD, str(os.getpid())]
            try:
                self._child = thread.run(
                    _spawn([*guard, *line], stderr, [theirs.fileno(), *inherited])
                )
            except OSError as error:
                raise MachineError(f"{line[0]} was not started: {error.strerror}") from error
        except BaseException:
            self.qmp_socket.close()
            raise
        finally:
            theirs.close()

    @staticmethod
    def channel_options(fd: int) -> list[str]:
        """The options that put QMP on a socket."""
        return ["-chardev", f"socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"]

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._child.pid

    def alive(self) -> bool:
        """Return whether it runs.

        One that has ended is not reaped before `end`. Until then its id is also that of its
        group, and of nobody else.
        """
        return self._ended() is None

    def wait(self, timeout: float) -> bool:
        """Return whether it has ended, after at most `timeout` seconds."""
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
        """End it and its descendants, by SIGTERM or else SIGKILL, and reap it.

        It leads a session: a signal to its group reaches what a wrapper script started, too.
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
        self.qmp_socket.close()

    def fate(self) -> str:
        """How it ended, in words."""
        status = self._ended()
        if status is None:
            return "QEMU is running"
        if status < 0:
            return f"QEMU was ended by {signal.Signals(-status).name}"
        return f"QEMU exited with status {status}"

    def _signal(self, signum: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # its group is gone, or all of it ended
            os.killpg(self.pid, signum)

    def _ended(self) -> int | None:
        """Return its exit status, negative for a signal's number; None while it runs."""
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


async def _spawn(line: list[str], stderr: Path, inherited: list[int]) -> subprocess.Popen[bytes]:
    with stderr.open("wb") as log:
        return subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=inherited,
            start_new_session=True,
        )
