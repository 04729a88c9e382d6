"""Waits for events that are shorter than a millisecond, and bounds of a socket's waits."""

from __future__ import annotations

import select
import socket
import struct

MILLISECOND = 0.001
TIMEVAL = struct.Struct("@ll")
"""Seconds and microseconds, as the options of a socket take them."""


def events(epoll: select.epoll, timeout: float) -> list[tuple[int, int]]:
    """Return descriptors with events, and wait up to `timeout` seconds for the first.

    `epoll.poll` alone waits for whole milliseconds, which is long for a request.
    """
    if 0 < timeout < MILLISECOND:
        select.select([epoll], [], [], timeout)
        timeout = 0
    return epoll.poll(timeout)


def bound_waits(link: socket.socket, seconds: float, *options: int) -> None:
    """Have the kernel bound each wait of a blocking socket: BlockingIOError after `seconds`.

    `options` are SO_RCVTIMEO, SO_SNDTIMEO or both. A timeout of Python's would take a poll() before
    each call. At least a millisecond is waited.
    """
    bound = TIMEVAL.pack(*divmod(max(int(seconds * 1e6), 1000), 1_000_000))
    for option in options:
        link.setsockopt(socket.SOL_SOCKET, option, bound)
