"""QEMU as a child process that cannot outlive us."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable
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
        try:
            line = [*line, *self.channel_options(theirs.fileno())]
            self.command = shlex.join(line)
            guard = [setpriv, "--pdeathsig", "KILL", "sh", "-c", GUARD, str(os.getpid())]
            self._child = thread.run(_spawn([*guard, *line], stderr, [theirs.fileno(), *inherited]))
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
        """Whether it runs."""
        return self._child.poll() is None

    def wait(self, timeout: float) -> bool:
        """Whether it has ended, waiting up to `timeout` seconds for it."""
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """End it, by SIGTERM or else SIGKILL, and reap it."""
        if self.alive():
            self._child.terminate()
            if not self.wait(TERM_DEADLINE):
                self._child.kill()
                self._child.wait(KILL_DEADLINE)
        self.qmp_socket.close()

    def fate(self) -> str:
        """How it ended, in words."""
        status = self._child.poll()
        if status is None:
            return "QEMU is running"
        if status < 0:
            return f"QEMU was ended by {signal.Signals(-status).name}"
        return f"QEMU exited with status {status}"


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
