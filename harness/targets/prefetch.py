"""What starts, and ends, while a test is busy with another one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Machines without disks, or guests: each started before it is asked for.

    Who takes one owns it, until it is given back to be ended. `close` ends the
    one that nobody took, and waits for those that are ending.
    """

    def __init__(self, start: Callable[[], T], end: Callable[[T], None]) -> None:
        """`start` makes one that runs, `end` ends one; both are called in threads."""
        self._start = start
        self._end = end
        # One starts while another one ends.
        self._workers = ThreadPoolExecutor(2, "ahead")
        self._next: Future[T] | None = None

    def take(self) -> T:
        """One that runs. Raises what `start` raises."""
        ready, self._next = self._next, None
        one = ready.result() if ready else self._start()
        self._next = self._workers.submit(self._start)
        return one

    def give_back(self, one: T) -> None:
        """End one, in its own time."""
        self._workers.submit(self._end, one)

    def close(self) -> None:
        """End all that is left. A second call does nothing."""
        ready, self._next = self._next, None
        if ready and ready.exception() is None:  # one that did not start has ended
            self._end(ready.result())
        self._workers.shutdown()
