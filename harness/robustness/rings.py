"""Virtqueues written by hand: every descriptor as the test wants it, legal or not."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod

from harness.driver.interface import Buffer, Driver, QueueLayout
from harness.robustness.guarded_memory import GuardedMemory
from harness.virtio.ring import (
    DESC,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
)

U16 = struct.Struct("<H")

AVAIL_FLAGS, AVAIL_IDX, AVAIL_RING = 0, 2, 4
USED_IDX = 2
"""Offsets in the driver and the device area of a split virtqueue."""

FLAGS = 14
"""Offset of the flags in a packed descriptor."""


class Ring(ABC):
    """One virtqueue of a driver that keeps to no rule. It starts as `queue_setup` left it."""

    def __init__(self, driver: Driver, canaries: GuardedMemory, layout: QueueLayout) -> None:
        self.layout = layout
        self._driver = driver
        self._canaries = canaries

    @property
    def size(self) -> int:
        """Descriptors."""
        return self.layout.size

    @abstractmethod
    def put(self, slot: int, buffer: Buffer, flags: int, extra: int = 0) -> None:
        """Write one descriptor of the ring.

        `flags` beside WRITE, which is the buffer's; `extra` is `next` of a
        split descriptor, the buffer id of a packed one.
        """

    @abstractmethod
    def lay(self, *buffers: Buffer, flags: int = 0) -> None:
        """Write a chain of descriptors that is not available yet.

        `flags` go into each of them, beside those that make it well-formed.
        """

    @abstractmethod
    def offer(self) -> None:
        """Make the chain available that was laid last."""

    @abstractmethod
    def used(self) -> bool:
        """Whether the device has used what was offered last."""

    @abstractmethod
    def table_entry(self, buffer: Buffer, flags: int, extra: int = 0) -> bytes:
        """A descriptor as it stands in an indirect table."""

    @abstractmethod
    def table(self, address: int, *buffers: Buffer) -> None:
        """Write an indirect table, well-formed."""

    def give(self, buffer: Buffer) -> None:
        """A buffer in a chain is the device's if it is writable."""
        if buffer.writable:
            self._canaries.give(buffer.address, buffer.length)


class SplitRing(Ring):
    """A split virtqueue (virtio 2.7)."""

    def __init__(self, driver: Driver, canaries: GuardedMemory, layout: QueueLayout) -> None:
        super().__init__(driver, canaries, layout)
        canaries.watch("the descriptor table", layout.desc, DESC_SIZE * layout.size)
        canaries.watch("the available ring", layout.driver, AVAIL_RING + 2 * layout.size)
        self.idx = 0

    def put(self, slot: int, buffer: Buffer, flags: int, extra: int = 0) -> None:
        entry = self.table_entry(buffer, flags, extra)
        self._canaries.write(self.layout.desc + DESC_SIZE * slot, entry)
        self.give(buffer)

    def table_entry(self, buffer: Buffer, flags: int, extra: int = 0) -> bytes:
        flags |= DESC_F_WRITE if buffer.writable else 0
        return DESC.pack(buffer.address, buffer.length, flags, extra)

    def lay(self, *buffers: Buffer, flags: int = 0) -> None:
        for slot, buffer in enumerate(buffers):
            more = DESC_F_NEXT if slot + 1 < len(buffers) else 0
            self.put(slot, buffer, flags | more, slot + 1)

    def table(self, address: int, *buffers: Buffer) -> None:
        for position, buffer in enumerate(buffers):
            flags = DESC_F_NEXT if position + 1 < len(buffers) else 0
            entry = self.table_entry(buffer, flags, position + 1)
            self._canaries.write(address + DESC_SIZE * position, entry)
            self.give(buffer)

    def offer(self) -> None:
        self.available(0)

    def available(self, *heads: int, by: int | None = None) -> None:
        """Put heads into the available ring, and move its index by so many (None: as many)."""
        for position, head in enumerate(heads):
            slot = (self.idx + position) % self.size
            self._canaries.write(self.layout.driver + AVAIL_RING + 2 * slot, U16.pack(head))
        self.idx = (self.idx + (len(heads) if by is None else by)) & 0xFFFF
        self._canaries.write(self.layout.driver + AVAIL_IDX, U16.pack(self.idx))

    def used(self) -> bool:
        raw = self._driver.memory_read(self.layout.device + USED_IDX, U16.size)
        return self.idx != 0 and bool(U16.unpack(raw)[0] == self.idx)


class PackedRing(Ring):
    """A packed virtqueue (virtio 2.8)."""

    def __init__(self, driver: Driver, canaries: GuardedMemory, layout: QueueLayout) -> None:
        super().__init__(driver, canaries, layout)
        canaries.watch("the driver's event suppression area", layout.driver, 4)
        self._slot, self._wrap = 0, True
        self._head: tuple[int, bool] = (0, True)
        self._flags = 0

    @property
    def available_flags(self) -> int:
        """AVAIL and USED of a descriptor that is made available in this round."""
        return PACKED_DESC_F_AVAIL if self._wrap else PACKED_DESC_F_USED

    def put(self, slot: int, buffer: Buffer, flags: int, extra: int = 0) -> None:
        entry = self.table_entry(buffer, flags, extra)
        self._canaries.write(self.layout.desc + DESC_SIZE * slot, entry)
        self.give(buffer)

    def table_entry(self, buffer: Buffer, flags: int, extra: int = 0) -> bytes:
        flags |= DESC_F_WRITE if buffer.writable else 0
        return PACKED_DESC.pack(buffer.address, buffer.length, extra, flags)

    def lay(self, *buffers: Buffer, flags: int = 0) -> None:
        self._head = (self._slot, self._wrap)
        for position, buffer in enumerate(buffers):
            more = DESC_F_NEXT if position + 1 < len(buffers) else 0
            if position:
                self.put(self._slot, buffer, flags | more | self.available_flags)
            else:
                # All but the flags, which come when the rest is there.
                entry = self.table_entry(buffer, flags | more | self.available_flags)
                at = self.layout.desc + DESC_SIZE * self._slot
                self._canaries.write(at, entry[:FLAGS])
                self.give(buffer)
                self._flags = U16.unpack(entry[FLAGS:])[0]
            self._slot += 1
            if self._slot == self.size:
                self._slot, self._wrap = 0, not self._wrap

    def table(self, address: int, *buffers: Buffer) -> None:
        for position, buffer in enumerate(buffers):
            self._canaries.write(address + DESC_SIZE * position, self.table_entry(buffer, 0))
            self.give(buffer)

    def offer(self) -> None:
        self.set_flags(self._head[0], self._flags)

    def set_flags(self, slot: int, flags: int) -> None:
        """Write the flags of one descriptor, and nothing else."""
        if slot == self._head[0]:
            self._flags = flags
        self._canaries.write(self.layout.desc + DESC_SIZE * slot + FLAGS, U16.pack(flags))

    def used(self) -> bool:
        slot, wrap = self._head
        raw = self._driver.memory_read(self.layout.desc + DESC_SIZE * slot + FLAGS, U16.size)
        flags = U16.unpack(raw)[0]
        available, used = bool(flags & PACKED_DESC_F_AVAIL), bool(flags & PACKED_DESC_F_USED)
        # A driver that breaks the rules may have written what looks used.
        return available == used == wrap and flags != self._flags
