"""Devices that keep the order of buffers (IN_ORDER), on either kind of virtqueue."""

from __future__ import annotations

import struct

from harness.driver.virtqueue.packed import PackedQueue
from harness.driver.virtqueue.split import SplitQueue
from harness.virtio.ring import (
    DESC,
    DESC_F_NEXT,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
)


class SplitDevice:
    """Takes chains from the available ring; tells of several with one used element."""

    def __init__(self, queue: SplitQueue) -> None:
        self.queue = queue
        self._avail = queue.memory.view(queue.layout.driver, 6 + 2 * queue.size).cast("H")
        self._used = queue.memory.view(queue.layout.device, 6 + 8 * queue.size)
        self._next = 0
        self._used_idx = 0

    def available(self) -> list[int]:
        """Heads that became available and were not used yet."""
        count = (self._avail[1] - self._next) & 0xFFFF
        return [self._avail[2 + (self._next + n) % self.queue.size] for n in range(count)]

    def idle(self) -> bool:
        """Whether nothing is available."""
        return not self.available()

    def use(self, count: int, length: int) -> None:
        """Use the next chains, all told by one element for the last of them."""
        self.tell(self.available()[count - 1], length, count)
        self._next = (self._next + count) & 0xFFFF

    def tell(self, head: int, length: int, count: int = 1) -> None:
        """Write one used element, and move the used index by `count`."""
        slot = self._used_idx % self.queue.size
        struct.pack_into("<II", self._used, 4 + 8 * slot, head, length)
        self._used_idx = (self._used_idx + count) & 0xFFFF
        struct.pack_into("<H", self._used, 2, self._used_idx)

    def slots(self, head: int) -> list[int]:
        """The descriptors of a chain, by where they lie in the table."""
        found = [head]
        while True:
            at = self.queue.layout.desc + DESC.size * found[-1]
            _, _, flags, following = DESC.unpack(self.queue.memory.view(at, DESC.size))
            if not flags & DESC_F_NEXT:
                return found
            found.append(following)


class PackedDevice:
    """Takes chains from the ring; tells of several with one used descriptor."""

    def __init__(self, queue: PackedQueue) -> None:
        self.queue = queue
        self._next, self._wrap = 0, True

    def _descriptor(self, at: int) -> memoryview:
        return self.queue.memory.view(self.queue.layout.desc + PACKED_DESC.size * at, 16)

    def idle(self) -> bool:
        """Whether nothing is available."""
        flags = PACKED_DESC.unpack(self._descriptor(self._next))[3]
        available = bool(flags & PACKED_DESC_F_AVAIL)
        return available == bool(flags & PACKED_DESC_F_USED) or available != self._wrap

    def use(self, count: int, length: int) -> None:
        """Use the next chains, all told by one descriptor where the first of them lies."""
        at, wrap = self._next, self._wrap
        for _ in range(count):
            ident = self._take()
        flags = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED if wrap else 0
        PACKED_DESC.pack_into(self._descriptor(at), 0, 0, length, ident, flags)

    def _take(self) -> int:
        while True:
            _, _, ident, flags = PACKED_DESC.unpack(self._descriptor(self._next))
            assert bool(flags & PACKED_DESC_F_AVAIL) == self._wrap
            assert bool(flags & PACKED_DESC_F_USED) != self._wrap
            self._next += 1
            if self._next == self.queue.size:
                self._next, self._wrap = 0, not self._wrap
            if not flags & DESC_F_NEXT:
                return int(ident)
