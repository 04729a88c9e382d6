"""Waiting, in the two ways a test needs beside the driver's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from harness.driver.errors import DriverError

if TYPE_CHECKING:
    from harness.targets import Disk

QUIET = 0.2
"""Seconds in which something that ought not to happen would have happened."""

SOON = 3.0
"""Seconds in which something that ought to happen does happen, on a busy machine too."""


PATIENCE = 10.0
"""Seconds in which a few requests complete, on slow storage too."""


def eventually(condition: Callable[[], bool], timeout: float = SOON) -> bool:
    """Whether `condition` comes true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def until_completed(disk: Disk, tokens: Sequence[int]) -> Iterator[list[int]]:
    """The requests that have completed, again and again, up to when all have.

    For a test that looks at something meanwhile. It fails if they take too long.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        done = disk.driver.completed()
        yield done
        if len(done) >= len(tokens):
            return
        missing = len(tokens) - len(done)
        assert time.monotonic() < deadline, f"{missing} of {len(tokens)} requests never completed"


def let_pass(seconds: float = QUIET) -> None:
    """Give a device that would do something wrong the time to do it."""
    time.sleep(seconds)


def trouble(act: Callable[[], object]) -> str | None:
    """The error that the driver reports of `act`, None if there is none.

    For where the wrong answer of a device may be to hang up as well as to be silent.
    """
    try:
        act()
    except DriverError as error:
        return error.message
    return None


def resize(disk: Disk, capacity: int) -> None:
    """Resize a disk, for a test of what that leads to beside the capacity.

    A device that never shows the new capacity is for the tests of capacity: here it is a skip.
    """
    disk.resize(capacity)
    if not eventually(lambda: disk.driver.config().capacity == capacity):
        pytest.skip("the device does not show that it was resized")
