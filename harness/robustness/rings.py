"""Virtqueues written by hand: the test chooses every descriptor, legal or not."""

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
"""Offsets in the driver area and the device area of a split virtqueue."""

FLAGS = 14
"""Offset of the flags in a packed descriptor."""


class Ring(ABC):
    """One virtqueue of a driver that follows no rule.

    It starts in the state after `queue_setup`.
    """

    def __init__(self, driver: Driver, canaries: GuardedMemory, layout: QueueLayout) -> None:
        self.layout = layout
        self._driver = driver
        self._canaries = canaries

    @property
    def size(self) -> int:
        """Return the number of descriptors."""
        return self.layout.size

    @abstractmethod
    def put(self, slot: int, buffer: Buffer, flags: int, extra: int = 0) -> None:
        """Write one descriptor of the ring.

        `flags` are added to WRITE, which comes from the buffer. `extra` is `next` of a split
        descriptor, and the buffer id of a packed one.
        """

    @abstractmethod
    def lay(self, *buffers: Buffer, flags: int = 0) -> None:
        """Write a chain of descriptors that is not available yet.

        `flags` are added to each descriptor, in addition to those of a well-formed chain.
        """

    @abstractmethod
    def append(self, *descriptors: tuple[Buffer, int]) -> None:
        """Write a chain at the next free slots, and make it available.

        Each buffer has its flags: they are added to WRITE, which comes from the buffer.
        """

    @abstractmethod
    def offer(self) -> None:
        """Make the chain of the last `lay` available."""

    @abstractmethod
    def used(self) -> bool:
        """Return True if the device has used the chain that was offered last."""

    @abstractmethod
    def table_entry(self, buffer: Buffer, flags: int, extra: int = 0) -> bytes:
        """Return the bytes of a descriptor for an indirect table."""

    @abstractmethod
    def table(self, address: int, *buffers: Buffer) -> None:
        """Write a well-formed indirect table."""

    def give(self, buffer: Buffer) -> None:
        """Give a buffer to the device if it is writable."""
        if buffer.writable:
            self._canaries.give(buffer.address, buffer.length)


class SplitRing(Ring):
    """A split virtqueue (virtio 2.7)."""

    def __init__(self, driver: Driver, canaries: GuardedMemory, layout: QueueLayout) -> None:
        super().__init__(driver, canaries, layout)
        canaries.watch("the descriptor table", layout.desc, DESC_SIZE * layout.size)
        canaries.watch("the available ring", layout.driver, AVAIL_RING + 2 * layout.size)
        self.idx = 0
        self._slot = 0

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

    def append(self, *descriptors: tuple[Buffer, int]) -> None:
        head = self._slot
        for buffer, flags in descriptors:
            following = (self._slot + 1) % self.size
            self.put(self._slot, buffer, flags, following)
            self._slot = following
        self.available(head)

    def offer(self) -> None:
        self.available(0)

    def available(self, *heads: int, by: int | None = None) -> None:
        """Put heads into the available ring, and advance its index by `by`.

        None advances it by the number of heads.
        """
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
        """Return the flags AVAIL and USED of a descriptor made available in this round."""
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
                # Write everything but the flags; they follow in `offer`.
                entry = self.table_entry(buffer, flags | more | self.available_flags)
                at = self.layout.desc + DESC_SIZE * self._slot
                self._canaries.write(at, entry[:FLAGS])
                self.give(buffer)
                self._flags = U16.unpack(entry[FLAGS:])[0]
            self._advance()

    def table(self, address: int, *buffers: Buffer) -> None:
        for position, buffer in enumerate(buffers):
            self._canaries.write(address + DESC_SIZE * position, self.table_entry(buffer, 0))
            self.give(buffer)

    def append(self, *descriptors: tuple[Buffer, int]) -> None:
        """Write a chain at the next free slots, with these as buffer ids, and make it available.

        AVAIL or USED in a descriptor's flags invert that bit.
        """
        self._head = (self._slot, self._wrap)
        written = []
        for buffer, flags in descriptors:
            written.append((self._slot, buffer, flags ^ self.available_flags))
            self._advance()
        # The first comes last: it makes the chain available.
        for slot, buffer, flags in reversed(written):
            self.put(slot, buffer, flags, slot)
        if written:
            _, first, flags = written[0]
            self._flags = U16.unpack(self.table_entry(first, flags)[FLAGS:])[0]

    def _advance(self) -> None:
        self._slot += 1
        if self._slot == self.size:
            self._slot, self._wrap = 0, not self._wrap

    def offer(self) -> None:
        self.set_flags(self._head[0], self._flags)

    def set_flags(self, slot: int, flags: int) -> None:
        """Write only the flags of one descriptor."""
        if slot == self._head[0]:
            self._flags = flags
        self._canaries.write(self.layout.desc + DESC_SIZE * slot + FLAGS, U16.pack(flags))

    def used(self) -> bool:
        slot, wrap = self._head
        raw = self._driver.memory_read(self.layout.desc + DESC_SIZE * slot + FLAGS, U16.size)
        flags = U16.unpack(raw)[0]
        available, used = bool(flags & PACKED_DESC_F_AVAIL), bool(flags & PACKED_DESC_F_USED)
        # A driver that breaks the rules may itself have written flags that look used.
        return available == used == wrap and flags != self._flags
