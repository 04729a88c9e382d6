"""Waits for events that are shorter than a millisecond."""

from __future__ import annotations

import select

MILLISECOND = 0.001


def events(epoll: select.epoll, timeout: float) -> list[tuple[int, int]]:
    """Return descriptors with events, and wait up to `timeout` seconds for the first.

    `epoll.poll` alone waits for whole milliseconds, which is long for a request.
    """
    if 0 < timeout < MILLISECOND:
        select.select([epoll], [], [], timeout)
        timeout = 0
    return epoll.poll(timeout)
