"""What a device's process does with the host: whether it runs, its CPU time, its memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
NANO = 1e9
KIB = 1024

MONITOR_DEADLINE = 3.0
"""Seconds within which a process that is well answers a question of no consequence."""

KILL_DEADLINE = 10.0
"""Seconds that the kernel may take to end what was killed, on a busy host."""


@dataclass(frozen=True)
class DeviceProcess:
    """A process of ours that is the device, or a part of it.

    `name` is what it is called in reports. `last_words` says how it fares or ended, and
    the end of what it printed. `answers` asks its monitor whether it still does anything.
    `monitored` is False for a process without a monitor, of which `answers` knows nothing.
    `polls` says that it uses its CPU without a pause when it has nothing to do.
    """

    name: str
    pid: int
    alive: Callable[[], bool]
    last_words: Callable[[], str]
    answers: Callable[[], bool]
    monitored: bool = True
    polls: bool = False

    def cpu_seconds(self) -> float:
        """Seconds of CPU that it has had, in all its threads; 0 if it is gone."""
        with suppress(OSError):
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
            # The second field, the command in brackets, may hold anything.
            fields = stat.rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / TICKS
        return 0.0

    def runnable(self) -> bool:
        """Whether a thread of it runs now, or could if there were a processor free."""
        for task in Path(f"/proc/{self.pid}/task").glob("*"):
            with suppress(OSError):
                stat = (task / "stat").read_text(encoding="ascii", errors="replace")
                if stat.rpartition(")")[2].split()[0] == "R":
                    return True
        return False

    def wanted(self) -> dict[str, float]:
        """By thread, seconds of CPU that it has had or has waited for.

        A thread that spins gains one second in a second, however busy the host is.
        """
        times: dict[str, float] = {}
        for task in Path(f"/proc/{self.pid}/task").glob("*"):
            # A thread may end meanwhile, and a kernel without schedstats has no such file.
            with suppress(OSError):
                times[task.name] = _wanted(task)
        return times or {str(self.pid): self.cpu_seconds()}

    def first_thread_wanted(self) -> float:
        """The same of the first thread, which in QEMU and its daemon is the devices' own."""
        with suppress(OSError):
            return _wanted(Path(f"/proc/{self.pid}/task/{self.pid}"))
        return 0.0

    def own_memory(self) -> int:
        """Bytes of memory that is its own: no guest RAM that is shared, no files; 0 if gone."""
        with suppress(OSError):
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace")
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * KIB
        return 0

    def kill(self) -> None:
        """End it at once, whatever state it is in: a stopped or a spinning one too.

        It has ended when this returns, lest the next disk is looked for in what is about to die.
        """
        if not self.alive():
            return
        os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_DEADLINE
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.005)


def _wanted(task: Path) -> float:
    ran, waited, _ = (task / "schedstat").read_text(encoding="ascii").split()
    return (int(ran) + int(waited)) / NANO
