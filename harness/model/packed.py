"""The packed virtqueue, from the device's side (virtio 2.8)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from harness.model.memory import BrokenError, Memory
from harness.model.ring import Addresses, Chain, Ring, descriptors, look_at_table
from harness.virtio.ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    EVENT_SUPPRESSION,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
)
from harness.virtio.shared import Descriptors, fence, load_fence, store_fence

WRAP = 1 << 15
"""Wrap counter next to an offset, in vhost-user's base and in event suppression areas."""


class PackedRing(Ring):
    """A packed virtqueue.

    Positions count descriptors from the start of round 0, whose wrap counter is 1.
    """

    def __init__(self, size: int, event_idx: bool, base: int) -> None:
        super().__init__(size, event_idx)
        self._next = self._position(base & 0xFFFF)
        self._used = self._position(base >> 16)
        self._announced = self._used

    def _position(self, place: int) -> int:
        return (place & ~WRAP) + (0 if place & WRAP else self.size)

    def _place(self, position: int) -> int:
        offset = position % self.size
        return offset | (WRAP if self._wrap(position) else 0)

    def _wrap(self, position: int) -> bool:
        """Return the wrap counter of the round that contains a position."""
        return position // self.size % 2 == 0

    def map(self, memory: Memory, addresses: Addresses) -> None:
        self._memory = memory
        self._ring = memory.user(addresses.desc, DESC_SIZE * self.size)
        self.table = Descriptors(self._ring)
        # The driver may change both fields at any time, so they are read by one load.
        self._driver = memory.user(addresses.driver, EVENT_SUPPRESSION.size).cast("I")
        # desc_event_off_wrap and desc_event_flags
        self._device = memory.user(addresses.device, EVENT_SUPPRESSION.size).cast("H")

    @property
    def base(self) -> int:
        return self._place(self._next) | self._place(self._used) << 16

    @property
    def used_place(self) -> tuple[int, int]:
        """Return where the next chain is marked used: offset and wrap counter."""
        return self._used % self.size, int(self._wrap(self._used))

    def is_used(self, offset: int, wrap: bool) -> bool:
        """Return True if the descriptor at an offset is used in the round of this wrap counter."""
        flags = self.table.last(offset % self.size)
        return bool(flags & PACKED_DESC_F_AVAIL) == bool(flags & PACKED_DESC_F_USED) == wrap

    def go_on_at(self, offset: int, wrap: bool, taken: int) -> None:
        """Mark the next chain used at this place; take the one `taken` descriptors after it."""
        self._used = self._announced = self._position(offset | (WRAP if wrap else 0))
        self._next = self._used + taken

    def chain_of(self, descriptors: list[tuple[int, int, int, int]], position: int) -> Chain:
        """Return the chain of these descriptors, which were taken before."""
        chain = Chain(0, position, 0)
        for descriptor in descriptors:
            if not self._add(chain, *descriptor):
                break
        return chain

    # --- what is available

    def take(self) -> Chain | None:
        if not self.available(self._next):
            return None
        load_fence()
        chain = Chain(0, self._next, 0)
        self._read_chain(chain)
        self._next += chain.slots
        return chain

    def look(self) -> dict[str, Any] | None:
        if not self.available(self._next):
            return None
        load_fence()
        chain: list[list[int]] = []
        table: list[list[int]] = []
        while len(chain) <= self.size:
            slot = (self._next + len(chain)) % self.size
            address, length, ident, flags = PACKED_DESC.unpack_from(self._ring, DESC_SIZE * slot)
            chain.append([slot, address, length, flags, ident])
            if flags & DESC_F_INDIRECT:
                entries = look_at_table(self._memory, address, length)
                table = [
                    [at, start, size, last, idents] for at, start, size, idents, last in entries
                ]
            if not flags & DESC_F_NEXT:
                break
        return {
            "head": self._next % self.size,
            "position": self._next,
            "descriptors": chain,
            "table": table,
            "index": 0,
            "flags": self._driver[0] >> 16,
        }

    def look_again(self, seen: list[list[int]]) -> list[list[int]]:
        found = []
        for slot, *_ in seen:
            address, length, ident, flags = PACKED_DESC.unpack_from(self._ring, DESC_SIZE * slot)
            found.append([slot, address, length, flags, ident])
        return found

    def waiting(self) -> int:
        places = range(self._next, self._next + self.size)
        return next((n for n, place in enumerate(places) if not self.available(place)), self.size)

    def asked(self) -> tuple[int, int]:
        return self._device[1], self._device[0]

    def given_up(self, chain: Chain) -> Collection[int]:
        return {(self._used + number) % self.size for number in range(chain.slots)}

    def give_back(self, chain: Chain) -> None:
        self._next = chain.position

    def available(self, position: int) -> bool:
        """Return True if the driver has made the descriptor at a position available."""
        flags = self.table.last(position % self.size)
        wrap = self._wrap(position)
        return (
            bool(flags & PACKED_DESC_F_AVAIL) == wrap and bool(flags & PACKED_DESC_F_USED) != wrap
        )

    def _read_chain(self, chain: Chain) -> None:
        """Read the chain's elements, and count its slots.

        Its buffer id is in the last descriptor.
        """
        while True:
            if chain.slots == self.size:
                raise BrokenError(f"a chain longer than its ring of {self.size}")
            at = DESC_SIZE * ((chain.position + chain.slots) % self.size)
            address, length, ident, flags = PACKED_DESC.unpack_from(self._ring, at)
            if not self._add(chain, address, length, ident, flags):
                return

    def _add(self, chain: Chain, address: int, length: int, ident: int, flags: int) -> bool:
        """Add a descriptor to a chain. Return True if another follows."""
        chain.id = ident
        chain.slots += 1
        kept = flags & ~(PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED)
        chain.descriptors.append((address, length, ident, kept))
        if flags & DESC_F_INDIRECT:
            # The WRITE flag of this descriptor has no meaning, and in the table only WRITE has one.
            table = self._memory.bus(address, length)
            for address, length, _, flags in descriptors(table):
                chain.add(self._memory, address, length, flags & DESC_F_WRITE)
            return False
        chain.add(self._memory, address, length, flags)
        return bool(flags & DESC_F_NEXT)

    # --- what is used

    def use(self, chain: Chain, length: int) -> None:
        at = self._used % self.size
        flags = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED if self._wrap(self._used) else 0
        self.table.write_used(at, length, chain.id)
        store_fence()
        self.table.set_last(at, flags | (DESC_F_WRITE if length else 0))
        self._used += chain.slots

    def notification_due(self) -> bool:
        fence()
        old, self._announced = self._announced, self._used
        return old != self._used and self.wanted(old, self._used)

    def wanted(self, old: int, new: int) -> bool:
        """Return True if the driver wants a notification for the use of `old` to `new`."""
        flags, off_wrap = divmod(self._driver[0], 1 << 16)
        if flags == RING_EVENT_FLAGS_DISABLE:
            return False
        if flags != RING_EVENT_FLAGS_DESC or not self.event_idx:
            return True
        wrap, offset = bool(off_wrap & WRAP), off_wrap & ~WRAP
        return any(
            self._wrap(number * self.size) == wrap and old <= number * self.size + offset < new
            for number in range(old // self.size, new // self.size + 1)
        )

    def want_kicks(self) -> None:
        self._device[1] = RING_EVENT_FLAGS_ENABLE
        fence()
