"""The log of a migration: a bit for each page of memory that the device has written to.

See "Migration" in QEMU's docs/interop/vhost-user.rst.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

from harness.virtio.vhost_user import LOG_PAGE

Mark = Callable[[int, int], None]
"""Marks as written: a bus address, and a number of bytes."""


class DirtyLog:
    """A log in memory that the front-end shares.

    A bit is set by a load and a store, because Python has no atomic operation on shared memory. A
    front-end that clears bits at the same moment may set one again, or lose one.
    """

    def __init__(self, fd: int, size: int, offset: int) -> None:
        """Map `size` bytes of the file `fd` at `offset`. OSError or ValueError if that fails."""
        self._bits = memoryview(mmap.mmap(fd, offset + size))[offset:]
        self.event = -1
        """An eventfd that is signalled after a bit was set, -1 for none."""

    def mark(self, address: int, length: int) -> None:
        """Mark the pages of `length` bytes at a bus address. Pages beyond the log have no bit."""
        if not length:
            return
        last = min((address + length - 1) // LOG_PAGE, 8 * len(self._bits) - 1)
        for page in range(address // LOG_PAGE, last + 1):
            self._bits[page // 8] |= 1 << page % 8
        if self.event >= 0:
            os.eventfd_write(self.event, 1)
