"""Start and end of machines in the background while a test uses another one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """One-element prefetch pool of machines or guests.

    `take` returns the ready one and starts the next in a thread; `give_back` stops one in the
    background. The caller of `take` owns the machine until `give_back`. `close` stops the machine
    that nobody took, and waits for the machines that are stopping.
    """

    def __init__(self, start: Callable[[], T], end: Callable[[T], None]) -> None:
        """Store `start`, which returns a running machine, and `end`, which stops one.

        Both run in threads.
        """
        self._start = start
        self._end = end
        # Two threads: one can start a machine while the other stops one.
        self._workers = ThreadPoolExecutor(2, "ahead")
        self._next: Future[T] | None = None

    def take(self) -> T:
        """Return a running machine. Raise what `start` raises."""
        ready, self._next = self._next, None
        machine = ready.result() if ready else self._start()
        self._next = self._workers.submit(self._start)
        return machine

    def give_back(self, machine: T) -> None:
        """Stop a machine in the background."""
        self._workers.submit(self._end, machine)

    def close(self) -> None:
        """Stop everything that is left. A second call does nothing."""
        ready, self._next = self._next, None
        if ready and ready.exception() is None:  # a machine that failed to start has ended already
            self._end(ready.result())
        self._workers.shutdown()
