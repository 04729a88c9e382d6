"""QEMU as a child process that ends at the latest with this process."""

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

# setpriv asks the kernel to kill the child when its parent ends. The shell then checks that the
# parent is still there, and executes QEMU.
GUARD = '[ "$PPID" = "$0" ] && exec "$@"'
TERM_DEADLINE = 2.0
KILL_DEADLINE = 10.0


class Process:
    """A started QEMU; its stdout and stderr go to the file `stderr`.

    The kernel kills the child when the *thread* that created it ends. So the child
    is created in `thread`, which runs until QEMU has ended. QEMU has its own session,
    so a Ctrl-C in the terminal reaches this process only.
    """

    def __init__(
        self, line: list[str], stderr: Path, thread: LoopThread, inherited: Iterable[int] = ()
    ) -> None:
        """Start QEMU; it inherits the open files `inherited`, with the same numbers."""
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise MachineError("setpriv is not on PATH; install it: apt-get install util-linux")
        # A connected pair needs no path, and reports end of file when QEMU ends.
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
        """Return the options that put QMP on a socket."""
        return ["-chardev", f"socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"]

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._child.pid

    def alive(self) -> bool:
        """True while the process runs."""
        return self._child.poll() is None

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the end of the process; return True if it has ended."""
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """End the process with SIGTERM, else SIGKILL, and reap it."""
        if self.alive():
            self._child.terminate()
            if not self.wait(TERM_DEADLINE):
                self._child.kill()
                self._child.wait(KILL_DEADLINE)
        self.qmp_socket.close()

    def fate(self) -> str:
        """Return in words how the process ended."""
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
