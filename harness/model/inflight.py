"""The requests in flight of a virtqueue, in memory that outlives the device's process.

The layout is the one that QEMU's docs/interop/vhost-user.rst suggests. Every batch of used buffers
has one buffer. A new process finds out from the region which requests it has to execute again.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod

from harness.model.memory import BrokenError
from harness.model.packed import PackedRing
from harness.model.ring import Chain, Ring
from harness.model.split import SplitRing

VERSION = 1

VERSION_AT = 8
"""Offset of the version in a region; 0 says that the region was not initialised."""

SPLIT_HEADER = struct.Struct("=QHHHH")
"""Features, version, entries, head of the last batch, used index."""

SPLIT_ENTRY = struct.Struct("=B5xHQ")
"""In flight or not, next of the last batch, counter."""

PACKED_HEADER = struct.Struct("=QHHHHHHBB8x")
"""Features, version, entries. Then the values after and before the present change of each of:
head of the free list, used position, wrap counter."""

PACKED_ENTRY = struct.Struct("=BxHHHQHHIQ")
"""In flight or not, next, last entry of the chain, its length, counter; the descriptor: id, flags,
length, address."""

ALIGN = 64


def region_size(queue_size: int) -> int:
    """Return the bytes that a virtqueue of this size needs, whatever its format."""
    need = PACKED_HEADER.size + PACKED_ENTRY.size * queue_size
    return -(-need // ALIGN) * ALIGN


class InFlight(ABC):
    """The region of one virtqueue."""

    def __init__(self, region: memoryview) -> None:
        self.region = region
        self._counter = 0

    @abstractmethod
    def recover(self, ring: Ring) -> list[Chain]:
        """Return the chains that were in flight when the last process ended, in their order.

        The ring goes on after them. With nothing in flight it begins at its base.
        """

    @abstractmethod
    def taken(self, chain: Chain) -> None:
        """Note that the device has taken a chain."""

    @abstractmethod
    def using(self, chain: Chain) -> None:
        """Note that a chain is about to be marked used."""

    @abstractmethod
    def used(self, chain: Chain) -> None:
        """Note that a chain was marked used."""

    @abstractmethod
    def gave_back(self, chain: Chain) -> None:
        """Note that the device has not taken a chain after all."""

    def _initialised(self) -> bool:
        return bool(struct.unpack_from("=H", self.region, VERSION_AT)[0] == VERSION)


class SplitInFlight(InFlight):
    """The region of a split virtqueue. An entry belongs to the head with its number."""

    def __init__(self, region: memoryview, size: int) -> None:
        super().__init__(region)
        if SPLIT_HEADER.size + SPLIT_ENTRY.size * size > len(region):
            raise BrokenError(f"the region for requests in flight is too small for {size} entries")
        self._size = size

    def recover(self, ring: Ring) -> list[Chain]:
        assert isinstance(ring, SplitRing)
        index = ring.used_index
        _, _, entries, head, known = SPLIT_HEADER.unpack_from(self.region)
        behind = (index - known) & 0xFFFF
        if not self._initialised() or entries != self._size or behind > self._size:
            # It is new, or about a ring that was set up again.
            self._head = self._size
            for at in range(self._size):
                self._set(at, 0)
            self._write_header(index)
            return []
        self._head = head
        for _ in range(behind):
            if head < self._size:
                self._set(head, 0)
                head = self._entry(head)[1]
        self._write_header(index)
        waiting = [
            (entry[2], at)
            for at, entry in ((at, self._entry(at)) for at in range(self._size))
            if entry[0]
        ]
        if not waiting:
            return []
        self._counter = max(waiting)[0] + 1
        ring.go_on_at(index + len(waiting))
        return [ring.chain_at(at) for _, at in sorted(waiting)]

    def taken(self, chain: Chain) -> None:
        _, following, _ = self._entry(chain.id)
        SPLIT_ENTRY.pack_into(self.region, self._at(chain.id), 0, following, self._counter)
        self._counter += 1
        self._set(chain.id, 1)

    def using(self, chain: Chain) -> None:
        busy, _, counter = self._entry(chain.id)
        SPLIT_ENTRY.pack_into(self.region, self._at(chain.id), busy, self._head, counter)
        self._head = chain.id
        self._write_header(SPLIT_HEADER.unpack_from(self.region)[4])

    def used(self, chain: Chain) -> None:
        self._set(chain.id, 0)
        self._write_header(SPLIT_HEADER.unpack_from(self.region)[4] + 1)

    def gave_back(self, chain: Chain) -> None:
        self._set(chain.id, 0)

    @staticmethod
    def _at(head: int) -> int:
        return SPLIT_HEADER.size + SPLIT_ENTRY.size * head

    def _entry(self, head: int) -> tuple[int, int, int]:
        busy, following, counter = SPLIT_ENTRY.unpack_from(self.region, self._at(head))
        return busy, following, counter

    def _set(self, head: int, busy: int) -> None:
        self.region[self._at(head)] = busy

    def _write_header(self, used_index: int) -> None:
        head = min(self._head, 0xFFFF)
        SPLIT_HEADER.pack_into(self.region, 0, 0, VERSION, self._size, head, used_index & 0xFFFF)


class PackedInFlight(InFlight):
    """The region of a packed virtqueue. A chain has as many entries as descriptors in the ring."""

    def __init__(self, region: memoryview, size: int) -> None:
        super().__init__(region)
        if PACKED_HEADER.size + PACKED_ENTRY.size * size > len(region):
            raise BrokenError(f"the region for requests in flight is too small for {size} entries")
        self._size = size
        self._free = 0
        self._used = 0
        self._wrap = 1
        self._first: dict[int, int] = {}
        """Position of a chain in flight -> its first entry."""

    def recover(self, ring: Ring) -> list[Chain]:
        assert isinstance(ring, PackedRing)
        header = PACKED_HEADER.unpack_from(self.region)
        _, _, entries, free, old_free, used, old_used, wrap, old_wrap = header
        start, wrap_at_start = ring.used_place
        if not self._initialised() or entries != self._size:
            self._begin(start, wrap_at_start)
            return []
        if used == old_used or not ring.is_used(old_used, bool(old_wrap)):
            free, used, wrap = old_free, old_used, old_wrap
        self._free, self._used, self._wrap = free, used, wrap
        at = free
        for _ in range(self._size):
            if at >= self._size:
                break
            self.region[self._at(at)] = 0
            at = self._entry(at)[1]
        self._commit()
        waiting = sorted(
            (entry[4], at)
            for at, entry in ((at, self._entry(at)) for at in range(self._size))
            if entry[0]
        )
        if not waiting:
            if (used, wrap) != (start, wrap_at_start):
                self._begin(start, wrap_at_start)
            return []
        self._counter = waiting[-1][0] + 1
        chains = []
        taken = sum(self._entry(first)[3] for _, first in waiting)
        ring.go_on_at(used, bool(wrap), taken)
        for number, (_, first) in enumerate(waiting):
            descriptors = []
            at = first
            for _ in range(self._entry(first)[3]):
                _, following, _, _, _, ident, flags, length, address = self._entry(at)
                descriptors.append((address, length, ident, flags))
                at = following
            # Their places in the ring are not known, and not needed: they are not given back.
            chain = ring.chain_of(descriptors, -1 - number)
            self._first[chain.position] = first
            chains.append(chain)
        return chains

    def _begin(self, used: int, wrap: int) -> None:
        for at in range(self._size):
            PACKED_ENTRY.pack_into(self.region, self._at(at), 0, at + 1, 0, 0, 0, 0, 0, 0, 0)
        self._free, self._used, self._wrap = 0, used, wrap
        self._commit()

    def taken(self, chain: Chain) -> None:
        first = at = self._free
        self._change(first, busy=1, length=0, counter=self._counter)
        self._counter += 1
        last = first
        for address, length, ident, flags in chain.descriptors:
            if at >= self._size:
                raise BrokenError("more descriptors in flight than the queue has")
            busy, following, end, count, counter, *_ = self._entry(at)
            PACKED_ENTRY.pack_into(
                self.region,
                self._at(at),
                busy,
                following,
                end,
                count,
                counter,
                ident,
                flags,
                length,
                address,
            )
            last, at = at, following
        self._change(first, last=last, length=len(chain.descriptors))
        self._free = at
        self._first[chain.position] = first
        self._commit()

    def using(self, chain: Chain) -> None:
        self._release(chain)
        self._used += chain.slots
        if self._used >= self._size:
            self._used, self._wrap = self._used - self._size, 1 - self._wrap
        self._write_header(old=False)

    def used(self, chain: Chain) -> None:
        self.region[self._at(self._first.pop(chain.position))] = 0
        self._commit()

    def gave_back(self, chain: Chain) -> None:
        self._release(chain)
        self.used(chain)

    def _release(self, chain: Chain) -> None:
        first = self._first[chain.position]
        self._change(self._entry(first)[2], following=self._free)
        self._free = first

    def _at(self, entry: int) -> int:
        """Return the offset of an entry. BrokenError for a number that the front-end has spoilt."""
        if entry >= self._size:
            raise BrokenError(f"the region for requests in flight names an entry {entry}")
        return PACKED_HEADER.size + PACKED_ENTRY.size * entry

    def _entry(self, entry: int) -> tuple[int, ...]:
        return PACKED_ENTRY.unpack_from(self.region, self._at(entry))

    def _change(
        self,
        entry: int,
        busy: int | None = None,
        following: int | None = None,
        last: int | None = None,
        length: int | None = None,
        counter: int | None = None,
    ) -> None:
        fields = list(self._entry(entry))
        for place, value in enumerate((busy, following, last, length, counter)):
            if value is not None:
                fields[place] = value
        PACKED_ENTRY.pack_into(self.region, self._at(entry), *fields)

    def _commit(self) -> None:
        self._write_header(old=True)

    def _write_header(self, old: bool) -> None:
        """Write the present state, and with `old` also as the one before the present change."""
        _, _, _, _, old_free, _, old_used, _, old_wrap = PACKED_HEADER.unpack_from(self.region)
        if old:
            old_free, old_used, old_wrap = self._free, self._used, self._wrap
        PACKED_HEADER.pack_into(
            self.region,
            0,
            0,
            VERSION,
            self._size,
            self._free,
            old_free,
            self._used,
            old_used,
            self._wrap,
            old_wrap,
        )
