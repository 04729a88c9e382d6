"""The driver's side of a split virtqueue (virtio 2.7).

Fields that the other side may read or change at the same time are read by one load and written by
one store: see `harness.virtio.shared`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from harness.driver.errors import BadArgumentError
from harness.driver.interface import Buffer, QueueLayout, QueueState, Used
from harness.driver.memory import DmaMemory
from harness.driver.virtqueue.base import Described, Virtqueue
from harness.virtio.ring import (
    AVAIL_F_NO_INTERRUPT,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    MAX_QUEUE_SIZE,
    USED_F_NO_NOTIFY,
    avail_size,
    legacy_areas,
    used_size,
)
from harness.virtio.shared import Descriptors, fence, load_fence, store_fence

UNUSUAL = 0xFFFF
"""Value of the next field of a descriptor that has no next, in an unusual chain."""


@dataclass
class _Chain:
    """A chain: its descriptors, indirect table, and number of device-writable bytes.

    `length` is that of the table, in bytes.
    """

    slots: list[int]
    table: int | None
    length: int
    writable: int
    available: bool = False


class SplitQueue(Virtqueue):
    """A split virtqueue: descriptor table, available ring and used ring, zeroed at first.

    With `align` (bytes) they are contiguous, with the used ring aligned to it: the
    legacy layout (virtio 2.7.2). `_fresh` is the number of chains that became available since the
    last `needs_notification`, which may be more than the range of the available index.
    """

    def __init__(
        self,
        memory: DmaMemory,
        index: int,
        size: int,
        align: int | None = None,
        in_order: bool = False,
        event_idx: bool = False,
        least_aligned: bool = False,
    ) -> None:
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise BadArgumentError(f"{size} is no size for a split virtqueue: not a power of 2")
        super().__init__(memory, index, size, in_order, event_idx)
        if align is None:
            desc = self._area(DESC_SIZE * size, DESC_SIZE, least_aligned)
            driver = self._area(avail_size(size), 2, least_aligned)
            device = self._area(used_size(size), 4, least_aligned)
        else:
            driver_at, device_at, length = legacy_areas(size, align)
            desc = memory.alloc(length, align)
            driver, device = desc + driver_at, desc + device_at
        self.layout = QueueLayout(index, size, desc, driver, device)
        self._desc = memory.view(self.layout.desc, DESC_SIZE * size)
        self._table = Descriptors(self._desc)
        self._avail = memory.view(self.layout.driver, avail_size(size)).cast("H")
        self._used = memory.view(self.layout.device, used_size(size)).cast("H")
        self._elements = memory.view(self.layout.device + 4, 8 * size).cast("I")
        self._free = dict.fromkeys(range(size - 1, -1, -1))
        self._chains: dict[int, _Chain] = {}
        self._next = 0
        self._avail_idx = 0
        self._fresh = 0
        self._last_used = 0

    def begin_at(self, index: int) -> None:
        """Set both indices of a ring that was not used yet, here and in memory (modulo 2^16)."""
        self._avail_idx = self._last_used = index & 0xFFFF
        self._avail[1] = self._used[1] = self._avail_idx

    # --- what the driver makes available

    def add(
        self,
        buffers: Sequence[Buffer],
        indirect: bool = False,
        shift: int | None = None,
        unusual: bool = False,
    ) -> int:
        """Write a chain of descriptors, or one with an indirect table, and return its head."""
        if not buffers:
            raise BadArgumentError("a chain needs at least one buffer")
        needed = 1 if indirect else len(buffers)
        if needed > len(self._free):
            raise BadArgumentError(
                f"queue {self.index} has {len(self._free)} free descriptors, not {needed}"
            )
        slots = self._free_slots(needed)
        table = self._alloc_table(DESC_SIZE * len(buffers), shift) if indirect else None
        ignored = UNUSUAL if unusual else 0
        if table is not None:
            view = self.memory.view(table, DESC_SIZE * len(buffers))
            order = list(range(len(buffers)))
            if unusual and not self.in_order:  # a table is in order then (virtio 2.7.5.3.1)
                order[1:] = reversed(order[1:])
            self._write_chain(Descriptors(view), order, buffers, ignored)
            self._table.write(slots[0], table, len(view), DESC_F_INDIRECT)
            self._table.set_last(slots[0], ignored)
        else:
            self._write_chain(self._table, slots, buffers, ignored)
        for slot in slots:
            del self._free[slot]
        self._next = (slots[-1] + 1) % self.size
        writable = sum(buffer.length for buffer in buffers if buffer.writable)
        self._chains[slots[0]] = _Chain(slots, table, DESC_SIZE * len(buffers), writable)
        return slots[0]

    def _free_slots(self, count: int) -> list[int]:
        """Return descriptors for a chain, with IN_ORDER the next ones (virtio 2.7.5)."""
        if not self.in_order:
            return list(islice(reversed(self._free), count))
        slots = [(self._next + n) % self.size for n in range(count)]
        for slot in slots:
            if slot not in self._free:
                raise BadArgumentError(
                    f"queue {self.index} takes its descriptors in order, and {slot} is not free"
                )
        return slots

    @staticmethod
    def _write_chain(
        table: Descriptors, slots: Sequence[int], buffers: Sequence[Buffer], ignored: int
    ) -> None:
        """Write a chain; `ignored` goes into the last descriptor's next field."""
        for position, (slot, buffer) in enumerate(zip(slots, buffers, strict=True)):
            last = position == len(buffers) - 1
            flags = (DESC_F_WRITE if buffer.writable else 0) | (0 if last else DESC_F_NEXT)
            table.write(slot, buffer.address, buffer.length, flags)
            table.set_last(slot, ignored if last else slots[position + 1])

    def publish(self, heads: Iterable[int]) -> None:
        """Put chains into the available ring, then update its index once (virtio 2.7.13)."""
        heads = list(heads)
        self._fresh += len(heads)
        for head in heads:
            self._avail[2 + self._avail_idx % self.size] = head
            self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        known = [head for head in heads if head in self._chains]
        for head in known:
            self._chains[head].available = True
        self._made_available(known)
        store_fence()
        self._avail[1] = self._avail_idx

    def republish(self, head: int) -> None:
        """Make a used chain that was not released available again."""
        self.publish((head,))

    def next_available(self) -> int:
        """Return the available index (16 bits)."""
        return self._avail_idx

    def set_interrupts_enabled(self, wanted: bool) -> None:
        """Set or clear the flag that asks the device for no interrupts (virtio 2.7.7).

        With EVENT_IDX it writes used_event: the next used element, or the last used one for none.
        """
        if self.event_idx:
            self._avail[2 + self.size] = (self._last_used - (not wanted)) & 0xFFFF
        else:
            self._avail[0] = 0 if wanted else AVAIL_F_NO_INTERRUPT

    def needs_notification(self) -> bool:
        """Return True if flags, or avail_event with EVENT_IDX, ask for one (virtio 2.7.10)."""
        fence()
        fresh, self._fresh = self._fresh, 0
        if not self.event_idx:
            return not self._used[0] & USED_F_NO_NOTIFY
        avail_event = self._used[2 + 4 * self.size]
        return (self._avail_idx - 1 - avail_event) & 0xFFFF < fresh

    # --- what the device has used

    def used_pending(self) -> bool:
        """Return True if the used ring has elements that `take_used` has not returned."""
        return self._used[1] != self._last_used

    def take_used(self) -> list[Used]:
        """Return new elements of the used ring, in ring order, without releasing their chains."""
        taken: list[Used] = []
        end = self._used[1]
        load_fence()
        while self._last_used != end:
            slot = self._last_used % self.size
            used = Used(self._elements[2 * slot], self._elements[2 * slot + 1])
            passed = self._implied_by_in_order(used.id, ((end - self._last_used) & 0xFFFF) - 1)
            taken += [Used(head, self._chains[head].writable) for head in passed]
            taken.append(used)
            self._last_used = (self._last_used + 1 + len(passed)) & 0xFFFF
        return taken

    def release(self, head: int) -> None:
        """Free a chain's descriptors and its indirect table. An unknown head is ignored."""
        chain = self._chains.pop(head, None)
        if chain is None:
            return
        self._free.update(dict.fromkeys(reversed(chain.slots)))
        if not chain.available:
            self._next = head
        if chain.table is not None:
            self.memory.free(chain.table)

    def chain(self, head: int) -> bytes:
        """Return a chain in memory: its descriptors, then its indirect table."""
        chain = self._chains[head]
        raw = b"".join(bytes(self._desc[DESC_SIZE * n : DESC_SIZE * (n + 1)]) for n in chain.slots)
        if chain.table is None:
            return raw
        return raw + bytes(self.memory.view(chain.table, chain.length))

    def described(self, head: int, raw: bytes) -> Described:
        """Return the chain without a second look at the memory."""
        chain = self._chains[head]
        return False, chain.slots, raw, chain.table or 0

    def state(self) -> QueueState:
        """Return the indices and flags in memory."""
        return QueueState(
            index=self.index,
            size=self.size,
            avail_flags=self._avail[0],
            avail_idx=self._avail[1],
            used_flags=self._used[0],
            used_idx=self._used[1],
            last_used=self._last_used,
            free_descriptors=len(self._free),
            in_flight=len(self._chains),
        )
