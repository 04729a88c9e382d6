"""An event loop for file descriptors and timers, in one thread."""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable
from itertools import count


class Loop:
    """Calls a handler while its descriptor is readable, and other handlers at their time."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor. Call this before the descriptor is closed."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def at(self, when: float, handler: Callable[[], None]) -> None:
        """Call `handler` once, when the monotonic clock reaches `when` (seconds)."""
        heapq.heappush(self._timers, (when, next(self._numbers), handler))

    def run(self) -> None:
        """Run until no descriptor is watched."""
        while self._handlers:
            for fd, _ in self._epoll.poll(self._patience()):
                # An earlier handler of this round may have removed this descriptor.
                if handler := self._handlers.get(fd):
                    handler()
            # A handler that asks to be called at once is called after the descriptors' turn.
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()

    def _patience(self) -> float | None:
        return max(self._timers[0][0] - time.monotonic(), 0.0) if self._timers else None
