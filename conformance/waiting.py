"""Waits that the driver's interface does not have."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from harness.driver.errors import DriverError
from harness.targets import LacksError

if TYPE_CHECKING:
    from harness.driver.interface import Driver, Interrupts
    from harness.targets import Disk

QUIET = 0.2
"""Seconds to wait for something that must not happen."""

STILL = 0.05
"""Seconds without an interrupt after which all that were sent before have arrived."""

SOON = 3.0
"""Seconds within which something that must happen does happen, also on a busy machine."""


PATIENCE = 10.0
"""Seconds within which a few requests complete, also on slow storage."""

LOOKS = 60
"""Looks at a device in which nothing changes, before there is a pause between two looks."""

LOOK_PAUSE = 0.0001
"""Seconds of that pause. Without it the looks at a slow device would keep a processor busy."""


def pause_after(looks: int) -> None:
    """Give the processor away between two looks at a device.

    `looks` is the number of looks since the last change. After LOOKS of them, sleep: what a device
    shows for less than LOOK_PAUSE seconds may not be seen then.
    """
    if looks < LOOKS:
        os.sched_yield()  # the device may need this processor
    else:
        time.sleep(LOOK_PAUSE)


def eventually(condition: Callable[[], bool], timeout: float = SOON) -> bool:
    """Wait up to `timeout` seconds for `condition`, and return True when it came true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def until_completed(disk: Disk, tokens: Sequence[int]) -> Iterator[list[int]]:
    """Yield the completed requests repeatedly, until all have completed.

    A test uses it to observe the device in between. AssertionError after PATIENCE seconds.
    """
    deadline = time.monotonic() + PATIENCE
    looks = before = 0
    while True:
        done = disk.driver.completed()
        yield done
        if len(done) >= len(tokens):
            return
        missing = len(tokens) - len(done)
        assert time.monotonic() < deadline, (
            f"{missing} of {len(tokens)} requests did not complete in time"
        )
        looks = looks + 1 if len(done) == before else 0
        before = len(done)
        pause_after(looks)


def values_until_zero(read: Callable[[], int], timeout: float = SOON) -> list[int]:
    """Call `read` until it returns 0 or `timeout` seconds have passed; return all values."""
    values = [read()]

    def is_zero() -> bool:
        values.append(read())
        return values[-1] == 0

    if values[-1] != 0:
        eventually(is_zero, timeout)
    return values


def reset_queue_0(driver: Driver, select: str, reset: str) -> list[int]:
    """Start the reset of queue 0 through its registers; return all values of `reset` after that.

    `select` and `reset` are the registers' names. The list ends with 0, or after SOON seconds.
    """
    driver.register_write(select, 0)
    driver.register_write(reset, 1)
    return values_until_zero(lambda: driver.register_read(reset))


def let_pass(seconds: float = QUIET, *, disk: Disk | None = None) -> None:
    """Wait, so that a faulty device has time to show its fault.

    With a `disk` the wait is over when its device says that it has nothing more to do.
    """
    begun = time.monotonic()
    if disk is None or not disk.idle(seconds):
        time.sleep(max(begun + seconds - time.monotonic(), 0.0))


def need_one_done(done: Callable[[], bool]) -> None:
    """Wait until a request is done that was sent with others, so that the device has seen them.

    Skip if none is done within SOON seconds. Before that, a thread of the device that serves the
    queue may not have looked at it.
    """
    if not eventually(done):
        pytest.skip(f"the device has completed none of the requests in flight within {SOON:g} s")


def let_finish(disk: Disk, seconds: float = QUIET) -> None:
    """Wait, so that a faulty device finishes what it has begun, also on a busy machine.

    Where what carries the device can be stopped, it is stopped and continues: QEMU finishes what
    its disks have in flight before it stops, also throttled requests. A daemon is only delayed.
    """
    let_pass(seconds, disk=disk)
    with suppress(LacksError), disk.paused():
        pass


def settled(disk: Disk) -> Interrupts:
    """Wait until no interrupt has arrived for STILL seconds, and return the driver's counts.

    The wait is shorter for a device that says that it has nothing more to do.

    A device may signal a queue when it starts, and may signal a completion twice. These interrupts
    are counted here, and are not taken for the one that a test waits for next. On a busy machine
    one may still come later, so this is no baseline for interrupts that must not come. Return after
    SOON seconds from a device that never stops.
    """
    driver = disk.driver
    if disk.idle(STILL):
        return driver.interrupts()
    found, deadline = driver.interrupts(), time.monotonic() + SOON
    since = time.monotonic()
    while time.monotonic() - since < STILL and time.monotonic() < deadline:
        time.sleep(STILL / 5)
        now = driver.interrupts()
        if now != found:
            found, since = now, time.monotonic()
    return found


def trouble(act: Callable[[], object]) -> str | None:
    """Call `act`; return the message of its DriverError, or None without an error.

    For a device whose wrong answer may be a closed connection or no answer at all.
    """
    try:
        act()
    except DriverError as error:
        return error.message
    return None


def resize(disk: Disk, capacity: int) -> None:
    """Resize a disk, for a test of other effects than the new capacity.

    Skip if the device never shows the new capacity; the tests of the capacity check that.
    """
    disk.resize(capacity)
    if not eventually(lambda: disk.driver.config().capacity == capacity):
        pytest.skip("the device does not show the new capacity after a resize")
