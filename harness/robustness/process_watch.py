"""Judgement of the device's processes while and after the driver breaks a rule."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.robustness.fate import Fate

if TYPE_CHECKING:
    from harness.robustness.device_process import DeviceProcess

GLANCE = 0.06
"""Seconds between two looks at a process. A process that sleeps at both looks is idle."""

LOOKS = 20
LOOK_PAUSE = 0.005
"""Number of looks, and seconds between two. A process that sleeps at one of them does not poll."""

ENOUGH = 0.5
"""Seconds of CPU that a process has to use without a pause to count as spinning.

A process with a processor of its own uses them in the same time.
"""

SURELY = 1.5
"""Same as ENOUGH, for a process that somebody still waits for: it may have work to do."""

WITHOUT_PAUSE = 0.75
"""Smallest part of any time for which a thread without pauses has used or awaited the CPU.

The kernel counts a wait only once it is over.
"""

PATIENCE = 2.0
"""Seconds after which a process that somebody waits for is asked whether it still answers."""

LONGEST = 10.0
"""Seconds after which a process is no longer watched.

It could have used ENOUGH CPU time by then and did not.
"""

GROWTH = 64 << 20
"""Bytes of memory that a device may need for a request without counting as grown."""

DYING = 2.0
"""Longest time, in seconds, until a process ends after it has closed its connections."""


@dataclass(frozen=True)
class Judgement:
    """A fate, and the evidence for it, in one line or several."""

    fate: Fate
    evidence: str

    def __str__(self) -> str:
        return f"{self.fate}: {self.evidence}"


def worst(judgements: Iterable[Judgement]) -> Judgement:
    """Return the worst of some judgements; there has to be at least one."""
    return max(judgements, key=lambda judgement: judgement.fate.severity)


class ProcessWatch:
    """Watches our processes that are the device, from now on; none for an external device.

    A process that uses a CPU without a pause already when the watch begins polls by design. It is
    not judged as spinning.
    """

    def __init__(self, processes: Iterable[DeviceProcess]) -> None:
        self._processes = tuple(processes)
        self._memory = {process.pid: process.own_memory() for process in self._processes}
        self._polling = frozenset(
            process.pid for process in self._processes if process.polls or self._polls(process)
        )
        self._ended: Judgement | None = None

    def crash(self, within: float = 0.0) -> Judgement | None:
        """Return the crash of a process that has ended, or ends within `within` seconds.

        Processes that all answer their monitors are not about to end; the wait is skipped then.
        """
        deadline = time.monotonic() + within
        while not self._ended:
            for process in self._processes:
                if not process.alive():
                    return Judgement(Fate.CRASHED, " / ".join(process.last_words().splitlines()))
            if time.monotonic() >= deadline or all(
                process.monitored and process.answers() for process in self._processes
            ):
                return None
            time.sleep(0.02)
        return None

    def spin(self) -> Judgement | None:
        """Return the judgement of a process that spins. Nobody may use the device meanwhile."""
        if self._ended:
            return self._ended
        for process in self._processes:
            if process.pid in self._polling:
                continue
            if not self._at_rest(process) and (judgement := self._observe(process)):
                return judgement
        return None

    @classmethod
    def _polls(cls, process: DeviceProcess) -> bool:
        """Return True if a process uses a CPU without a pause, before anything was done to it."""
        return cls._never_sleeps(process) and cls._observe(process) is not None

    @staticmethod
    def _never_sleeps(process: DeviceProcess) -> bool:
        """Return True if a thread of the process runs, or waits for a processor, at every look."""
        for _ in range(LOOKS):
            if not process.runnable():
                return False
            time.sleep(LOOK_PAUSE)
        return True

    @staticmethod
    def _at_rest(process: DeviceProcess) -> bool:
        if process.runnable():
            return False
        time.sleep(GLANCE)
        return not process.runnable()

    @staticmethod
    def _observe(process: DeviceProcess) -> Judgement | None:
        """Observe a process until it pauses, or has used enough CPU time."""
        begun, before, used = time.monotonic(), process.wanted(), process.cpu_seconds()
        while (wall := time.monotonic() - begun) < LONGEST:
            time.sleep(GLANCE)
            gains = (now - before.get(thread, 0.0) for thread, now in process.wanted().items())
            without_pause = max(gains, default=0.0) > WITHOUT_PAUSE * wall
            spent = process.cpu_seconds() - used
            if wall > ENOUGH / 2 and not without_pause:
                return None
            if spent >= ENOUGH and without_pause:
                return _spins(process, spent, time.monotonic() - begun)
        return None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Kill a process that spins or hangs while a driver waits for it, which ends the wait.

        For spinning only first threads count, which serve devices: the thread of a virtual
        processor whose driver polls is busy for a good reason.
        """
        over = threading.Event()
        guards = [
            threading.Thread(target=self._guard, args=(process, over), daemon=True)
            for process in self._processes
        ]
        for guard in guards:
            guard.start()
        try:
            yield
        finally:
            over.set()
            for guard in guards:
                guard.join()

    def _guard(self, process: DeviceProcess, over: threading.Event) -> None:
        begun, before, used = time.monotonic(), process.first_thread_wanted(), process.cpu_seconds()
        first = begun
        while not over.wait(ENOUGH):
            wall, gain = time.monotonic() - begun, process.first_thread_wanted() - before
            spent = process.cpu_seconds() - used
            if gain < WITHOUT_PAUSE * wall:
                begun, before, used = begun + wall, before + gain, used + spent
                if (
                    begun - first > PATIENCE
                    and process.alive()
                    and not process.answers()
                    # A process that died in between has crashed; it does not hang.
                    and process.alive()
                    and not over.is_set()
                ):
                    if process.first_thread_wanted() - before > (time.monotonic() - begun) / 2:
                        continue  # it has begun to spin in between
                    # On a very busy host, or if the first thread waits for one that spins, a
                    # process that spins looks as if it hangs. But it never sleeps.
                    if process.pid not in self._polling and self._never_sleeps(process):
                        spent = process.cpu_seconds() - used
                        self._ended = _spins(process, spent, time.monotonic() - begun)
                    else:
                        self._ended = _hung(process)
                    process.kill()
                    return
            elif spent >= SURELY and process.pid not in self._polling:
                self._ended = _spins(process, spent, wall)
                process.kill()
                return

    def hung(self) -> Judgement | None:
        """Return the judgement of a process that no longer answers its monitor."""
        for process in self._processes:
            if not process.answers():
                return _hung(process)
        return None

    def dead(self, trouble: bool) -> Judgement | None:
        """Return the judgement of a device that no longer runs: crashed, spins, or hangs.

        `trouble` says that the driver got an error or no answer. Only then a process that ends a
        moment later has crashed, and one that does not answer its monitor hangs.
        """
        found = self.crash(DYING if trouble else 0.0) or self.spin()
        return found or (self.hung() if trouble else None)

    def growth(self) -> Judgement | None:
        """Return the judgement of a process whose memory has grown by more than GROWTH."""
        for process in self._processes:
            more = process.own_memory() - self._memory[process.pid]
            if more > GROWTH:
                return Judgement(
                    Fate.GREW, f"{process.name} uses {more >> 20} MiB more memory than before"
                )
        return None

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Return True if `done` becomes true within `seconds`, while all processes live."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline or self.crash():
                return False
            time.sleep(0.01)
        return True


def _spins(culprit: DeviceProcess, used: float, wall: float) -> Judgement:
    return Judgement(
        Fate.SPINS,
        f"{culprit.name} used {used:.1f} s of CPU in {wall:.1f} s,"
        " and waited for it the rest of the time",
    )


def _hung(process: DeviceProcess) -> Judgement:
    words = " / ".join(process.last_words().splitlines())
    return Judgement(Fate.WEDGED, f"{process.name} no longer answers: {words}")
