"""Waiting, in the two ways a test needs beside the driver's own."""

from __future__ import annotations

import time
from collections.abc import Callable

QUIET = 0.3
"""Seconds in which something that ought not to happen would have happened."""


def eventually(condition: Callable[[], bool], timeout: float = 3.0) -> bool:
    """Whether `condition` comes true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def let_pass(seconds: float = QUIET) -> None:
    """Give a device that would do something wrong the time to do it."""
    time.sleep(seconds)
