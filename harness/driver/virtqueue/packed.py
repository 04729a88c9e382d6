"""The driver's side of a packed virtqueue (virtio 2.8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.driver.errors import BadArgumentError
from harness.driver.interface import Buffer, QueueLayout, QueueState, Used
from harness.driver.memory import DmaMemory
from harness.driver.virtqueue.base import Described, Virtqueue
from harness.virtio.ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    EVENT_SUPPRESSION,
    MAX_QUEUE_SIZE,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
)
from harness.virtio.shared import Descriptors, fence, load_fence, store_fence

UNUSUAL_ID = 0x5A5A
"""Other bits in buffer ids that the device has to ignore (virtio 2.8.6, 2.8.7)."""

UNUSUAL_FLAGS = DESC_F_NEXT | PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED
"""Flags of an indirect table's descriptors that the device has to ignore (virtio 2.8.7)."""


@dataclass
class _Chain:
    """The descriptors of one buffer id, and their place; `flags` are those of the first.

    `before` has the flags that were in the ring before, `writable` is the number of
    device-writable bytes. In an `unusual` chain only the last descriptor has the buffer id.
    """

    entries: list[tuple[int, int, int]]
    table: int | None
    writable: int
    unusual: bool = False
    place: int = 0
    flags: int = 0
    before: list[int] = field(default_factory=list)


class PackedQueue(Virtqueue):
    """A packed virtqueue: descriptor ring and two event suppression areas.

    The "head" of a chain is its buffer id. Fields that the other side may read or change at the
    same time are read by one load and written by one store, the flags of a descriptor after the
    rest of it: see `harness.virtio.shared`. `_available` counts descriptors over two rounds of the
    ring; in the first round the wrap counter is 1. `_fresh` is the number of descriptors that
    became available since the last `needs_notification`, which may be more than two rounds.
    """

    def __init__(
        self,
        memory: DmaMemory,
        index: int,
        size: int,
        in_order: bool = False,
        event_idx: bool = False,
        least_aligned: bool = False,
    ) -> None:
        if not 0 < size <= MAX_QUEUE_SIZE:
            raise BadArgumentError(f"a virtqueue has 1 to {MAX_QUEUE_SIZE} descriptors, not {size}")
        super().__init__(memory, index, size, in_order, event_idx)
        self.layout = QueueLayout(
            index=index,
            size=size,
            desc=self._area(DESC_SIZE * size, DESC_SIZE, least_aligned),
            driver=self._area(EVENT_SUPPRESSION.size, 4, least_aligned),
            device=self._area(EVENT_SUPPRESSION.size, 4, least_aligned),
        )
        self._ring = memory.view(self.layout.desc, DESC_SIZE * size)
        self._table = Descriptors(self._ring)
        # Each area is two fields: desc_event_off_wrap and desc_event_flags.
        self._driver = memory.view(self.layout.driver, EVENT_SUPPRESSION.size).cast("H")
        # The device may change both at any time, so they are read by one load.
        self._device = memory.view(self.layout.device, EVENT_SUPPRESSION.size).cast("I")
        self._ids = list(range(size - 1, -1, -1))
        self._chains: dict[int, _Chain] = {}
        self._unpublished: list[int] = []
        self._free = size
        self._next, self._avail_wrap = 0, True
        self._available = self._fresh = 0
        self._used, self._used_wrap = 0, True

    # --- what the driver makes available

    def add(
        self,
        buffers: Sequence[Buffer],
        indirect: bool = False,
        shift: int | None = None,
        unusual: bool = False,
    ) -> int:
        """Write a chain into the ring, except its first flags, and return its buffer id."""
        if not buffers:
            raise BadArgumentError("a chain needs at least one buffer")
        needed = 1 if indirect else len(buffers)
        if needed > self._free:
            raise BadArgumentError(
                f"queue {self.index} has {self._free} free descriptors, not {needed}"
            )
        entries = [
            (buffer.address, buffer.length, DESC_F_WRITE if buffer.writable else 0)
            for buffer in buffers
        ]
        table = None
        if indirect:
            table = self._alloc_table(DESC_SIZE * len(entries), shift)
            view = self.memory.view(table, DESC_SIZE * len(entries))
            descriptors = Descriptors(view)
            for position, (address, length, flags) in enumerate(entries):
                descriptors.write(position, address, length, UNUSUAL_ID if unusual else 0)
                descriptors.set_last(position, flags | (UNUSUAL_FLAGS if unusual else 0))
            entries = [(table, len(view), DESC_F_INDIRECT | (DESC_F_WRITE if unusual else 0))]
        ident = self._ids.pop()
        writable = sum(buffer.length for buffer in buffers if buffer.writable)
        self._chains[ident] = _Chain(entries, table, writable, unusual)
        self._place(ident)
        return ident

    def _place(self, ident: int) -> None:
        """Write a chain's descriptors at the next place, except the flags of the first."""
        chain = self._chains[ident]
        chain.place, chain.before = self._next + (0 if self._avail_wrap else self.size), []
        for position, (address, length, flags) in enumerate(chain.entries):
            at = self._next
            written_id = ident
            if position < len(chain.entries) - 1:
                flags |= DESC_F_NEXT
                if chain.unusual:
                    written_id ^= UNUSUAL_ID
            flags |= PACKED_DESC_F_AVAIL if self._avail_wrap else PACKED_DESC_F_USED
            chain.before.append(self._table.last(at))
            self._table.write(at, address, length, written_id)
            if position:
                store_fence()
                self._table.set_last(at, flags)
            else:
                chain.flags = flags
            self._next += 1
            if self._next == self.size:
                self._next, self._avail_wrap = 0, not self._avail_wrap
        self._free -= len(chain.entries)
        self._unpublished.append(ident)

    def publish(self, heads: Iterable[int]) -> None:
        """Write the first flags of chains, those of the first chain last (virtio 2.8.21.1).

        They must be the oldest unpublished chains, in the order of `add`: a ring has
        no other order.
        """
        wanted = list(heads)
        if wanted != self._unpublished[: len(wanted)]:
            raise BadArgumentError(
                f"a packed ring makes chains available as they were added: {self._unpublished}"
            )
        if not wanted:
            return
        del self._unpublished[: len(wanted)]
        self._made_available(wanted)
        last = self._chains[wanted[-1]]
        self._available = (last.place + len(last.entries)) % (2 * self.size)
        for ident in reversed(wanted):
            chain = self._chains[ident]
            self._fresh += len(chain.entries)
            store_fence()
            self._table.set_last(chain.place % self.size, chain.flags)

    def republish(self, head: int) -> None:
        """Write a used chain that was not released into the ring again, and publish it."""
        self._place(head)
        self.publish((head,))

    def next_available(self) -> int:
        """Return the offset in the ring (bits 0 to 14) and the wrap counter (bit 15)."""
        wrapped, offset = divmod(self._available, self.size)
        return offset | (not wrapped) << 15

    def set_interrupts_enabled(self, wanted: bool) -> None:
        """Enable or disable used buffer notifications (virtio 2.8.10).

        With EVENT_IDX they are enabled for the next used descriptor only.
        """
        if wanted and self.event_idx:
            # The position first: the device uses it as soon as the flags are written.
            self._driver[0] = self._used | self._used_wrap << 15
            store_fence()
            self._driver[1] = RING_EVENT_FLAGS_DESC
        else:
            self._driver[1] = RING_EVENT_FLAGS_ENABLE if wanted else RING_EVENT_FLAGS_DISABLE

    def needs_notification(self) -> bool:
        """Return True if the device's event suppression area asks for one (virtio 2.8.10)."""
        fence()
        fresh, self._fresh = self._fresh, 0
        flags, off_wrap = divmod(self._device[0], 1 << 16)
        if flags != RING_EVENT_FLAGS_DESC:
            return bool(flags != RING_EVENT_FLAGS_DISABLE)
        place = (off_wrap & 0x7FFF) + (0 if off_wrap & 1 << 15 else self.size)
        return bool((self._available - 1 - place) % (2 * self.size) < fresh)

    # --- what the device has used

    def used_pending(self) -> bool:
        """Return True if the next descriptor in the device's order is marked used."""
        flags = self._table.last(self._used)
        available = bool(flags & PACKED_DESC_F_AVAIL)
        return available == bool(flags & PACKED_DESC_F_USED) == self._used_wrap

    def take_used(self) -> list[Used]:
        """Return new used descriptors, in ring order. The chains keep their buffer ids."""
        taken: list[Used] = []
        while self.used_pending():
            load_fence()
            _, length, ident, _ = PACKED_DESC.unpack_from(self._ring, DESC_SIZE * self._used)
            for head in self._implied_by_in_order(ident, self.size):
                taken.append(Used(head, self._chains[head].writable))
                self._skip(head)
            taken.append(Used(ident, length))
            self._skip(ident)
        return taken

    def _skip(self, ident: int) -> None:
        """Advance past the descriptors of a used chain, or past one for an unknown chain."""
        chain = self._chains.get(ident)
        self._free += len(chain.entries) if chain else 0
        self._used += len(chain.entries) if chain else 1
        if self._used >= self.size:
            self._used, self._used_wrap = self._used - self.size, not self._used_wrap

    def release(self, head: int) -> None:
        """Free a chain's buffer id and its indirect table. An unknown id is ignored."""
        chain = self._chains.pop(head, None)
        if chain is None:
            return
        if head in self._unpublished:
            self._take_back(head, chain)
        self._ids.append(head)
        if chain.table is not None:
            self.memory.free(chain.table)

    def _take_back(self, ident: int, chain: _Chain) -> None:
        """Remove the chain that was added last, and restore the flags that were there before."""
        self._unpublished.remove(ident)
        self._free += len(chain.entries)
        for flags in reversed(chain.before):
            self._next -= 1
            if self._next < 0:
                self._next, self._avail_wrap = self.size - 1, not self._avail_wrap
            self._table.set_last(self._next, flags)

    def chain(self, head: int) -> bytes:
        """Return a chain's indirect table; the device may write the ring itself (virtio 2.8.1)."""
        chain = self._chains[head]
        if chain.table is None:
            return b""
        return bytes(self.memory.view(chain.table, chain.entries[0][1]))

    def described(self, head: int, raw: bytes) -> Described:
        """Return the chain. The device may have written the ring since, so the ring is not read."""
        chain = self._chains[head]
        last = len(chain.entries) - 1
        slots, written = [], bytearray()
        for position, (address, length, flags) in enumerate(chain.entries):
            place = (chain.place + position) % (2 * self.size)
            flags |= DESC_F_NEXT if position < last else 0
            flags |= PACKED_DESC_F_AVAIL if place < self.size else PACKED_DESC_F_USED
            ident = head ^ UNUSUAL_ID if chain.unusual and position < last else head
            slots.append(place % self.size)
            written += PACKED_DESC.pack(address, length, ident, flags)
        return True, slots, bytes(written) + raw, chain.table or 0

    def state(self) -> QueueState:
        """Return positions in the ring, with the wrap counter in bit 15, and both event flags."""
        used = self._used | self._used_wrap << 15
        return QueueState(
            index=self.index,
            size=self.size,
            avail_flags=self._driver[1],
            avail_idx=self._next | self._avail_wrap << 15,
            used_flags=self._device[0] >> 16,
            used_idx=used,
            last_used=used,
            free_descriptors=self._free,
            in_flight=len(self._chains),
        )
