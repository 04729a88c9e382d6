"""Devices that use buffers in order (IN_ORDER), on split and packed virtqueues."""

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
    """A device on a split virtqueue; one used element may stand for several chains."""

    def __init__(self, queue: SplitQueue) -> None:
        self.queue = queue
        self._avail = queue.memory.view(queue.layout.driver, 6 + 2 * queue.size).cast("H")
        self._used = queue.memory.view(queue.layout.device, 6 + 8 * queue.size)
        self._next = 0
        self._used_idx = 0

    def available(self) -> list[int]:
        """Return the heads that are available and not used yet."""
        count = (self._avail[1] - self._next) & 0xFFFF
        return [self._avail[2 + (self._next + n) % self.queue.size] for n in range(count)]

    def idle(self) -> bool:
        """True when no chain is available."""
        return not self.available()

    def use(self, count: int, length: int) -> None:
        """Use the next `count` chains with one used element, for the last of them."""
        self.tell(self.available()[count - 1], length, count)
        self._next = (self._next + count) & 0xFFFF

    def tell(self, head: int, length: int, count: int = 1) -> None:
        """Write one used element, and move the used index by `count`."""
        slot = self._used_idx % self.queue.size
        struct.pack_into("<II", self._used, 4 + 8 * slot, head, length)
        self._used_idx = (self._used_idx + count) & 0xFFFF
        struct.pack_into("<H", self._used, 2, self._used_idx)

    def slots(self, head: int) -> list[int]:
        """Return the indices of a chain's descriptors in the table."""
        found = [head]
        while True:
            at = self.queue.layout.desc + DESC.size * found[-1]
            _, _, flags, following = DESC.unpack(self.queue.memory.view(at, DESC.size))
            if not flags & DESC_F_NEXT:
                return found
            found.append(following)


class PackedDevice:
    """A device on a packed virtqueue; one used descriptor may stand for several chains."""

    def __init__(self, queue: PackedQueue) -> None:
        self.queue = queue
        self._next, self._wrap = 0, True

    def _descriptor(self, at: int) -> memoryview:
        return self.queue.memory.view(self.queue.layout.desc + PACKED_DESC.size * at, 16)

    def idle(self) -> bool:
        """True when no chain is available."""
        flags = PACKED_DESC.unpack(self._descriptor(self._next))[3]
        available = bool(flags & PACKED_DESC_F_AVAIL)
        return available == bool(flags & PACKED_DESC_F_USED) or available != self._wrap

    def use(self, count: int, length: int) -> None:
        """Use the next `count` chains with one used descriptor, at the slot of the first."""
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
