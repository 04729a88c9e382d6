"""State of a device's process on the host: running or not, CPU time, memory."""

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
"""Longest time in which a healthy process answers a harmless query, in seconds."""

KILL_DEADLINE = 10.0
"""Longest time until a killed process has ended, on a busy host, in seconds."""


STOP_DEADLINE = 5.0
"""Longest time until a process that was sent SIGSTOP has stopped, on a busy host, in seconds."""


def states(pid: int) -> set[str]:
    """Return the states of the threads of a process, as /proc shows them; none if it is gone."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            stat = (task / "stat").read_text(encoding="ascii", errors="replace")
            found.add(stat.rpartition(")")[2].split()[0])
    return found


def stop(pid: int) -> None:
    """Send SIGSTOP to a process, and wait until none of its threads runs.

    A thread finishes its system call first. ProcessLookupError if the process has ended.
    TimeoutError after STOP_DEADLINE seconds; then the process goes on.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + STOP_DEADLINE
    try:
        while not (now := states(pid)) <= set("TtZX"):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"process {pid} has not stopped {STOP_DEADLINE:g} s after SIGSTOP:"
                    f" its threads are in the states {', '.join(sorted(now))}"
                )
            time.sleep(0.001)
    except BaseException:  # Ctrl-C too
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        raise


def cpu_seconds(pid: int) -> float:
    """Return the CPU time used by all threads of a process, in seconds; 0 if it has ended."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        # The second field, the command in parentheses, may contain anything.
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    return 0.0


@dataclass(frozen=True)
class DeviceProcess:
    """A process of ours that is the device, or a part of it.

    `name` is its name in reports. `last_words` returns its state or its end, and the last lines
    that it printed. `answers` queries its monitor, and returns False if there is no answer.
    `monitored` is False for a process without a monitor, of which `answers` knows nothing.
    `polls` is True if it uses its CPU without a pause when it has nothing to do.
    """

    name: str
    pid: int
    alive: Callable[[], bool]
    last_words: Callable[[], str]
    answers: Callable[[], bool]
    monitored: bool = True
    polls: bool = False

    def cpu_seconds(self) -> float:
        """Return the CPU time used by all its threads, in seconds; 0 if it has ended."""
        return cpu_seconds(self.pid)

    def runnable(self) -> bool:
        """Return True if one of its threads runs now, or waits only for a free processor."""
        return "R" in states(self.pid)

    def may_be_ending(self) -> bool:
        """Return True if it may be on its way to its end, but has not come there.

        A thread runs, waits for a processor or a disk, or has ended already.
        """
        return not states(self.pid).isdisjoint("RDZX")

    def dumps_core(self) -> bool:
        """Return True if it has crashed, and the kernel still writes its memory to a core file.

        Until that is done it counts as alive, but nothing of it runs.
        """
        with suppress(OSError):
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace")
            return "CoreDumping:\t1" in status
        return False

    def wanted(self) -> dict[str, float]:
        """Return the CPU seconds that each thread has used or waited for, by thread id.

        A thread that spins gains one second per second, however busy the host is.
        """
        times: dict[str, float] = {}
        for task in Path(f"/proc/{self.pid}/task").glob("*"):
            # A thread may end in between, and a kernel without schedstats has no such file.
            with suppress(OSError):
                times[task.name] = _wanted(task)
        return times or {str(self.pid): self.cpu_seconds()}

    def first_thread_wanted(self) -> float:
        """Return the same for the first thread.

        In QEMU and its daemon this thread serves the devices.
        """
        with suppress(OSError):
            return _wanted(Path(f"/proc/{self.pid}/task/{self.pid}"))
        return 0.0

    def own_memory(self) -> int:
        """Return its private memory in bytes, without shared guest RAM; 0 if it has ended."""
        with suppress(OSError):
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace")
            for line in status.splitlines():
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * KIB
        return 0

    def pause(self) -> None:
        """Stop the process until `resume`. None of its threads runs on return.

        ProcessLookupError if it has ended, TimeoutError if it does not stop.
        """
        stop(self.pid)

    def resume(self) -> None:
        """Let the process go on after `pause`, if it has not ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process in any state, even if it is stopped or spins.

        The process has ended on return, so that the next disk does not use a process that is about
        to end.
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
