"""Waits of the suite: they end, whatever the device does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from conformance import waiting
from harness.driver.interface import Interrupts


class Clock:
    """A clock that only moves when somebody sleeps or looks: no machine is too busy for it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.0001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "time", Clock())


def disk(*completed: list[int]) -> SimpleNamespace:
    """Return a disk whose completions at each look are these; the last repeats."""
    looks = list(completed)
    return SimpleNamespace(
        driver=SimpleNamespace(completed=lambda: looks.pop(0) if len(looks) > 1 else looks[0])
    )


def test_each_look_at_what_has_completed_is_had_the_last_one_too() -> None:
    seen = list(waiting.until_completed(disk([], [4], [4], [4, 5]), [4, 5]))
    assert seen == [[], [4], [4], [4, 5]]


def test_requests_that_never_complete_fail_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 0.01)
    with pytest.raises(AssertionError, match="2 of 3 requests did not complete in time"):
        for _ in waiting.until_completed(disk([], [4]), [4, 5, 6]):
            pass


def interrupted(*counts: int, idle: bool = False) -> SimpleNamespace:
    """Return a disk whose interrupts at each look are these; the last repeats."""
    looks = list(counts)
    driver = SimpleNamespace(
        interrupts=lambda: Interrupts(looks.pop(0) if len(looks) > 1 else looks[0])
    )
    return SimpleNamespace(driver=driver, idle=lambda within: idle)


def test_interrupts_that_still_arrive_are_counted() -> None:
    assert waiting.settled(interrupted(1, 1, 2, 2, 2, 3)) == Interrupts(3)


def test_a_device_that_interrupts_without_end_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(waiting, "SOON", 0.05)
    assert waiting.settled(interrupted(*range(1000))).queue < 100


def test_a_device_that_has_nothing_to_do_is_not_waited_for() -> None:
    disk = interrupted(4, 5, idle=True)
    begun = waiting.time.monotonic()

    waiting.let_pass(5.0, disk=disk)
    counts = waiting.settled(disk)

    assert counts == Interrupts(4)
    assert waiting.time.monotonic() - begun < 1


def test_a_device_that_cannot_say_so_is_waited_for() -> None:
    begun = waiting.time.monotonic()

    waiting.let_pass(5.0, disk=interrupted(4))

    assert waiting.time.monotonic() - begun >= 5
