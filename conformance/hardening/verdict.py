"""The verdicts on a device whose driver broke a rule, and what its processes do meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report.hardened import ORDER, Verdict

if TYPE_CHECKING:
    from harness.target.process import DeviceProcess

GLANCE = 0.06
"""Seconds after which a process that has had little CPU is not looked at any longer."""

STARES = 2
STARE = 0.4
"""Seconds of each of so many looks at one that has had much: some work takes a while."""

BUSY = 0.8
"""Of a second, the CPU time that a spinning thread has had or waited for, at the least."""

GROWTH = 64 << 20
"""Bytes of memory that a request may cost a device, and it still be called sound."""

DYING = 2.0
"""Seconds that a process may take to end which has closed its connections already."""


@dataclass(frozen=True)
class Judgement:
    """A verdict, and what it goes by, in a line or several."""

    verdict: Verdict
    evidence: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.evidence}"


def worst(judgements: Iterable[Judgement]) -> Judgement:
    """The worst of some judgements; there has to be one."""
    return max(judgements, key=lambda one: ORDER.index(one.verdict))


class Vitals:
    """The processes that are the device, from now on. None if it is somebody else's."""

    def __init__(self, processes: Iterable[DeviceProcess]) -> None:
        self._processes = tuple(processes)
        self._memory = {one.pid: one.own_memory() for one in self._processes}

    def crash(self, within: float = 0.0) -> Judgement | None:
        """Which process has ended, or does within so many seconds, and its last words."""
        deadline = time.monotonic() + within
        while True:
            for one in self._processes:
                if not one.alive():
                    return Judgement(Verdict.CRASHED, " / ".join(one.last_words().splitlines()))
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.02)

    def spin(self) -> Judgement | None:
        """Which process does nothing but use its CPU. Nobody may drive the device meanwhile."""
        if not self._busiest(GLANCE):
            return None
        begun, used = time.monotonic(), {one.pid: one.cpu_seconds() for one in self._processes}
        looks = [self._busiest(STARE) for _ in range(STARES)]
        culprit = looks[-1]
        if culprit is None or None in looks:
            return None
        used_now = culprit.cpu_seconds() - used[culprit.pid]
        return Judgement(
            Verdict.SPINS,
            f"{culprit.name} used {used_now:.1f} s of CPU in {time.monotonic() - begun:.1f} s,"
            " and waited for it the rest of the time",
        )

    def _busiest(self, seconds: float) -> DeviceProcess | None:
        """The process of a thread that has wanted the CPU for nearly all of the next seconds."""
        before = {one.pid: one.wanted() for one in self._processes}
        begun = time.monotonic()
        time.sleep(seconds)
        wall = time.monotonic() - begun
        for one in self._processes:
            earlier = before[one.pid]
            gains = (now - earlier.get(thread, 0.0) for thread, now in one.wanted().items())
            if max(gains, default=0.0) > BUSY * wall:
                return one
        return None

    def hung(self) -> Judgement | None:
        """Which process does not answer its monitor any more."""
        for one in self._processes:
            if not one.answers():
                words = " / ".join(one.last_words().splitlines())
                return Judgement(Verdict.WEDGED, f"{one.name} answers nobody any more: {words}")
        return None

    def growth(self) -> Judgement | None:
        """Which process has taken much more memory than it had."""
        for one in self._processes:
            more = one.own_memory() - self._memory[one.pid]
            if more > GROWTH:
                return Judgement(Verdict.GREW, f"{one.name} has {more >> 20} MiB more than before")
        return None

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Whether `done` comes true in so many seconds, while all processes live."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline or self.crash():
                return False
            time.sleep(0.01)
        return True
