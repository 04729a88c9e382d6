"""The split virtqueue, from the device's side (virtio 2.7)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from harness.model.memory import BrokenError, Memory
from harness.model.ring import Addresses, Chain, Ring, descriptors, look_at_table
from harness.virtio.ring import (
    AVAIL_F_NO_INTERRUPT,
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_SIZE,
    avail_size,
    used_size,
)
from harness.virtio.shared import fence, load_fence, store_fence


class SplitRing(Ring):
    """A split virtqueue.

    Indices count modulo 2^16. The used index is kept in the driver's memory.
    """

    def __init__(self, size: int, event_idx: bool, base: int) -> None:
        super().__init__(size, event_idx)
        self._next = base & 0xFFFF
        self._announced: int | None = None

    def map(self, memory: Memory, addresses: Addresses) -> None:
        self._memory = memory
        self._desc = memory.user(addresses.desc, DESC_SIZE * self.size)
        self._avail = memory.user(addresses.driver, avail_size(self.size)).cast("H")
        device = memory.user(addresses.device, used_size(self.size))
        self._used = device.cast("H")
        self._elements = device[4 : 4 + 8 * self.size].cast("I")
        if self._announced is None:
            self._announced = self._used[1]

    @property
    def base(self) -> int:
        return self._next

    @property
    def used_index(self) -> int:
        """Return the used index in the driver's memory."""
        return int(self._used[1])

    def go_on_at(self, index: int) -> None:
        """Take the chain at this available index next."""
        self._next = index & 0xFFFF

    def chain_at(self, head: int) -> Chain:
        """Return the chain with this head, which was taken before."""
        chain = Chain(head, self._next)
        self._read_chain(chain)
        return chain

    # --- what is available

    def take(self) -> Chain | None:
        waiting = (self._avail[1] - self._next) & 0xFFFF
        if waiting > self.size:
            raise BrokenError(f"{waiting} chains available in a queue of {self.size}")
        if not waiting:
            return None
        load_fence()
        chain = Chain(self._avail[2 + self._next % self.size], self._next)
        self._read_chain(chain)
        self._next = (self._next + 1) & 0xFFFF
        return chain

    def look(self) -> dict[str, Any] | None:
        index = self._avail[1]
        if not 0 < (index - self._next) & 0xFFFF <= self.size:
            return None  # `take` tells about an index that is too far ahead
        load_fence()
        head = at = self._avail[2 + self._next % self.size]
        chain: list[list[int]] = []
        table: list[list[int]] = []
        while at < self.size and len(chain) <= self.size:
            address, length, flags, following = DESC.unpack_from(self._desc, DESC_SIZE * at)
            chain.append([at, address, length, flags, following])
            if flags & DESC_F_INDIRECT:
                table = look_at_table(self._memory, address, length)
            if not flags & DESC_F_NEXT:
                break
            at = following
        return {
            "head": head,
            "position": self._next,
            "descriptors": chain,
            "table": table,
            "index": index,
            "flags": self._avail[0],
        }

    def look_again(self, seen: list[list[int]]) -> list[list[int]]:
        slots = (entry[0] for entry in seen)
        return [[slot, *DESC.unpack_from(self._desc, DESC_SIZE * slot)] for slot in slots]

    def waiting(self) -> int:
        waiting = (self._avail[1] - self._next) & 0xFFFF
        return waiting if waiting <= self.size else 0

    def impossible(self) -> int | None:
        index = self._avail[1]
        return index if (index - self._next) & 0xFFFF > self.size else None

    def asked(self) -> tuple[int, int]:
        return self._used[0], self._used[2 + 4 * self.size]

    def given_up(self, chain: Chain) -> Collection[int]:
        return ()

    def give_back(self, chain: Chain) -> None:
        self._next = chain.position

    def _read_chain(self, chain: Chain) -> None:
        at, seen = chain.id, 0
        while True:
            if at >= self.size or seen == self.size:
                raise BrokenError(
                    f"descriptor {at} as number {seen + 1} of a chain in a queue of {self.size}"
                )
            address, length, flags, following = DESC.unpack_from(self._desc, DESC_SIZE * at)
            if self.is_table(flags, seen):
                self._read_table(chain, self._memory.bus(address, length))
                return  # no element may follow
            chain.add(self._memory, address, length, flags)
            if not flags & DESC_F_NEXT:
                return
            at, seen = following, seen + 1

    def is_table(self, flags: int, seen: int) -> bool:
        """Return True if a descriptor refers to an indirect table (virtio 2.7.5.3.2).

        `seen` is the number of descriptors before it in the chain.
        """
        return bool(flags & DESC_F_INDIRECT)

    def _read_table(self, chain: Chain, table: memoryview) -> None:
        entries = descriptors(table)
        at, seen = 0, 0
        while True:
            if at >= len(entries) or seen == len(entries):
                raise BrokenError(f"entry {at} of an indirect table of {len(entries)}")
            address, length, flags, following = entries[at]
            if flags & DESC_F_INDIRECT:
                raise BrokenError("an indirect table within an indirect table")
            chain.add(self._memory, address, length, flags)
            if not flags & DESC_F_NEXT:
                return
            at, seen = following, seen + 1

    # --- what is used

    def use(self, chain: Chain, length: int) -> None:
        index = self._used[1]
        slot = index % self.size
        self._elements[2 * slot], self._elements[2 * slot + 1] = chain.id, length
        store_fence()
        self._used[1] = (index + 1) & 0xFFFF

    def notification_due(self) -> bool:
        fence()
        new, old = self._used[1], self._announced or 0
        self._announced = new
        return new != old and self.wanted(old, new)

    def wanted(self, old: int, new: int) -> bool:
        """Return True if the driver wants a notification for the use of `old` to `new`."""
        if not self.event_idx:
            return not self._avail[0] & AVAIL_F_NO_INTERRUPT
        used_event = self._avail[2 + self.size]
        return (used_event - old) & 0xFFFF < (new - old) & 0xFFFF

    def want_kicks(self) -> None:
        self._used[0] = self.flags()
        if self.event_idx:
            self._used[2 + 4 * self.size] = self._next
        fence()

    def flags(self) -> int:
        """Return the used ring's flags (virtio 2.7.10.2)."""
        return 0
