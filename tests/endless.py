"""Bounds of time and memory for waits on peers that write without end."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bounded(late: float, memory: int) -> Iterator[None]:
    """Check that a wait takes less than `late` seconds and holds less than `memory` bytes."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < late
    assert peak < memory
