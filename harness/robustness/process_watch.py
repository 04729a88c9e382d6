"""The verdicts on a device whose driver broke a rule, and what its processes do meanwhile."""

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
"""Seconds between two looks at a process; one that sleeps at both is at rest."""

ENOUGH = 0.5
"""Seconds of CPU that a process has to use, without a pause, to be called spinning: in as many
seconds where it has a processor for itself."""

SURELY = 1.5
"""The same for a process that somebody still waits for. It may have something to do."""

WITHOUT_PAUSE = 0.75
"""Of any time, what a thread that does not pause has had the CPU or waited for it, at the least:
the kernel counts a wait only once it is over."""

PATIENCE = 2.0
"""Seconds after which a process that somebody waits for is asked whether it still answers."""

LONGEST = 10.0
"""Seconds after which a process that could have ENOUGH by then is let be."""

GROWTH = 64 << 20
"""Bytes of memory that a request may cost a device, and it still be called sound."""

DYING = 2.0
"""Seconds that a process may take to end which has closed its connections already."""


@dataclass(frozen=True)
class Judgement:
    """A verdict, and what it goes by, in a line or several."""

    fate: Fate
    evidence: str

    def __str__(self) -> str:
        return f"{self.fate}: {self.evidence}"


def worst(judgements: Iterable[Judgement]) -> Judgement:
    """The worst of some judgements; there has to be one."""
    return max(judgements, key=lambda one: one.fate.severity)


class ProcessWatch:
    """The processes that are the device, from now on. None if it is somebody else's."""

    def __init__(self, processes: Iterable[DeviceProcess]) -> None:
        self._processes = tuple(processes)
        self._memory = {one.pid: one.own_memory() for one in self._processes}
        self._ended: Judgement | None = None

    def crash(self, within: float = 0.0) -> Judgement | None:
        """Which process has ended, or does within so many seconds, and its last words.

        Those that still answer their monitors are not about to, and nobody waits for that.
        """
        deadline = time.monotonic() + within
        while not self._ended:
            for one in self._processes:
                if not one.alive():
                    return Judgement(Fate.CRASHED, " / ".join(one.last_words().splitlines()))
            if time.monotonic() >= deadline or all(
                one.monitored and one.answers() for one in self._processes
            ):
                return None
            time.sleep(0.02)
        return None

    def spin(self) -> Judgement | None:
        """Which process does nothing but use its CPU. Nobody may drive the device meanwhile."""
        if self._ended:
            return self._ended
        for one in self._processes:
            if not one.polls and not self._at_rest(one) and (found := self._stare(one)):
                return found
        return None

    @staticmethod
    def _at_rest(one: DeviceProcess) -> bool:
        if one.runnable():
            return False
        time.sleep(GLANCE)
        return not one.runnable()

    @staticmethod
    def _stare(one: DeviceProcess) -> Judgement | None:
        """Look at a process until it pauses, or has used enough."""
        begun, before, used = time.monotonic(), one.wanted(), one.cpu_seconds()
        while (wall := time.monotonic() - begun) < LONGEST:
            time.sleep(GLANCE)
            gains = (now - before.get(thread, 0.0) for thread, now in one.wanted().items())
            without_pause = max(gains, default=0.0) > WITHOUT_PAUSE * wall
            spent = one.cpu_seconds() - used
            if wall > ENOUGH / 2 and not without_pause:
                return None
            if spent >= ENOUGH and without_pause:
                return _spins(one, spent, time.monotonic() - begun)
        return None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """End a process that spins, or hangs, while a driver waits for it: the wait is over then.

        Of what spins, only first threads count, which serve devices: a virtual processor whose
        driver polls is busy with good reason.
        """
        over = threading.Event()
        guards = [
            threading.Thread(target=self._guard, args=(one, over), daemon=True)
            for one in self._processes
        ]
        for guard in guards:
            guard.start()
        try:
            yield
        finally:
            over.set()
            for guard in guards:
                guard.join()

    def _guard(self, one: DeviceProcess, over: threading.Event) -> None:
        begun, before, used = time.monotonic(), one.first_thread_wanted(), one.cpu_seconds()
        first = begun
        while not over.wait(ENOUGH):
            wall, gain = time.monotonic() - begun, one.first_thread_wanted() - before
            spent = one.cpu_seconds() - used
            if gain < WITHOUT_PAUSE * wall:
                begun, before, used = begun + wall, before + gain, used + spent
                if (
                    begun - first > PATIENCE
                    and one.alive()
                    and not one.answers()
                    # One that died meanwhile has crashed, and will not hang.
                    and one.alive()
                    and not over.is_set()
                ):
                    if one.first_thread_wanted() - before > (time.monotonic() - begun) / 2:
                        continue  # it has begun to spin meanwhile
                    self._ended = _hung(one)
                    one.kill()
                    return
            elif spent >= SURELY and not one.polls:
                self._ended = _spins(one, spent, wall)
                one.kill()
                return

    def hung(self) -> Judgement | None:
        """Which process does not answer its monitor any more."""
        for one in self._processes:
            if not one.answers():
                return _hung(one)
        return None

    def growth(self) -> Judgement | None:
        """Which process has taken much more memory than it had."""
        for one in self._processes:
            more = one.own_memory() - self._memory[one.pid]
            if more > GROWTH:
                return Judgement(Fate.GREW, f"{one.name} has {more >> 20} MiB more than before")
        return None

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Whether `done` comes true in so many seconds, while all processes live."""
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


def _hung(one: DeviceProcess) -> Judgement:
    words = " / ".join(one.last_words().splitlines())
    return Judgement(Fate.WEDGED, f"{one.name} answers nobody any more: {words}")
