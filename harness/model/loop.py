"""An event loop for file descriptors and timers, in one thread."""

from __future__ import annotations

import heapq
import os
import select
import time
from collections.abc import Callable, Collection
from itertools import count


class Loop:
    """Calls a handler while its descriptor is readable, and other handlers at their time."""

    looks = 0
    """Looks for further events after some have come, before the loop waits."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._waiting: list[tuple[float, Callable[[bool], None]]] = []

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor. Call this before the descriptor is closed."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def at(self, when: float, handler: Callable[[], None]) -> int:
        """Call `handler` once, when the monotonic clock reaches `when` (seconds).

        Return a number for `cancel`.
        """
        number = next(self._numbers)
        heapq.heappush(self._timers, (when, number, handler))
        return number

    def cancel(self, numbers: Collection[int]) -> None:
        """Forget calls that `at` was asked for, so that an idle loop does not wait for them."""
        self._timers = [timer for timer in self._timers if timer[1] not in numbers]
        heapq.heapify(self._timers)

    def when_idle(self, until: float, handler: Callable[[bool], None]) -> None:
        """Call `handler` once: with True when there is nothing to do and no timer is set.

        It is called with False when the monotonic clock reaches `until` (seconds) before that.
        """
        self._waiting.append((until, handler))

    def run(self) -> None:
        """Run until no descriptor is watched."""
        events: list[tuple[int, int]] = []
        while self._handlers:
            events = self._next_events(self.looks if events else 0)
            for fd, _ in events:
                # An earlier handler of this round may have removed this descriptor.
                if handler := self._handlers.get(fd):
                    handler()
            # A handler that asks to be called at once is called after the descriptors' turn.
            now, busy = time.monotonic(), bool(events)
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
                busy = True
            if self._waiting:
                self._tell_waiting(not busy and not self._timers, now)

    def _next_events(self, looks: int) -> list[tuple[int, int]]:
        """Return the next events; wait for them after `looks` looks, if nothing else is due."""
        for _ in range(looks if self._patience() != 0.0 else 0):
            if events := self._epoll.poll(0):
                return events
            os.sched_yield()
        return self._epoll.poll(self._patience())

    def _tell_waiting(self, idle: bool, now: float) -> None:
        """Call the handlers that wait, if the loop is idle or their time is over."""
        waiting, self._waiting = self._waiting, []
        for until, handler in waiting:
            if idle or until <= now:
                handler(idle)
            else:
                self._waiting.append((until, handler))

    def _patience(self) -> float | None:
        """Return for how long nothing can be due, in seconds; None without a limit."""
        if not self._timers:
            return 0.0 if self._waiting else None
        due = min([self._timers[0][0], *(until for until, _ in self._waiting)])
        return max(due - time.monotonic(), 0.0)
