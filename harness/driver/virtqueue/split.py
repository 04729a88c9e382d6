"""The split virtqueue, from the driver's side (virtio 2.7).

Rings are little-endian and so are the machines this runs on: 16- and 32-bit
fields go through cast views, so that each is read or written in one access.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.driver.errors import BadArgumentError
from harness.driver.interface import Buffer, QueueLayout, QueueState, Used
from harness.driver.memory import DmaMemory
from harness.virtio.ring import (
    AVAIL_F_NO_INTERRUPT,
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    MAX_QUEUE_SIZE,
    avail_size,
    used_size,
)

from .base import Virtqueue


class SplitQueue(Virtqueue):
    """Descriptor table, available ring and used ring of one virtqueue, zeroed at first.

    With `align` (bytes) they lie in one piece, the used ring aligned to it: the
    legacy layout (virtio 2.7.2).
    """

    def __init__(self, memory: DmaMemory, index: int, size: int, align: int | None = None) -> None:
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise BadArgumentError(f"{size} is no size for a split virtqueue: not a power of 2")
        self.memory = memory
        self.index = index
        self.size = size
        if align is None:
            desc = memory.alloc(DESC_SIZE * size, DESC_SIZE)
            driver = memory.alloc(avail_size(size), 2)
            device = memory.alloc(used_size(size), 4)
        else:
            used_at = -(-(DESC_SIZE * size + avail_size(size)) // align) * align
            desc = memory.alloc(used_at + used_size(size), align)
            driver, device = desc + DESC_SIZE * size, desc + used_at
        self.layout = QueueLayout(index, size, desc, driver, device)
        self._desc = memory.view(self.layout.desc, DESC_SIZE * size)
        self._avail = memory.view(self.layout.driver, avail_size(size)).cast("H")
        self._used = memory.view(self.layout.device, used_size(size)).cast("H")
        self._elements = memory.view(self.layout.device + 4, 8 * size).cast("I")
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, tuple[list[int], int | None]] = {}
        self._avail_idx = 0
        self._last_used = 0

    # --- what the driver makes available

    def add(self, buffers: Sequence[Buffer], indirect: bool = False) -> int:
        """Write a chain of descriptors, or one that refers to an indirect table; its head."""
        if not buffers:
            raise BadArgumentError("a chain needs at least one buffer")
        needed = 1 if indirect else len(buffers)
        if needed > len(self._free):
            raise BadArgumentError(
                f"queue {self.index} has {len(self._free)} free descriptors, not {needed}"
            )
        table = self.memory.alloc(DESC_SIZE * len(buffers), DESC_SIZE) if indirect else None
        taken = [self._free.pop() for _ in range(needed)]
        if table is not None:
            view = self.memory.view(table, DESC_SIZE * len(buffers))
            self._write_chain(view, range(len(buffers)), buffers)
            DESC.pack_into(self._desc, DESC_SIZE * taken[0], table, len(view), DESC_F_INDIRECT, 0)
        else:
            self._write_chain(self._desc, taken, buffers)
        self._chains[taken[0]] = (taken, table)
        return taken[0]

    @staticmethod
    def _write_chain(table: memoryview, slots: Sequence[int], buffers: Sequence[Buffer]) -> None:
        for position, (slot, buffer) in enumerate(zip(slots, buffers, strict=True)):
            last = position == len(buffers) - 1
            flags = (DESC_F_WRITE if buffer.writable else 0) | (0 if last else DESC_F_NEXT)
            following = 0 if last else slots[position + 1]
            DESC.pack_into(table, DESC_SIZE * slot, buffer.address, buffer.length, flags, following)

    def publish(self, heads: Iterable[int]) -> None:
        """Put chains into the available ring, then move its index once (virtio 2.7.13)."""
        for head in heads:
            self._avail[2 + self._avail_idx % self.size] = head
            self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        self._avail[1] = self._avail_idx

    def again(self, head: int) -> None:
        """Make a chain that was used, and not released, available once more."""
        self.publish((head,))

    def next_available(self) -> int:
        """The available index, 16 bits."""
        return self._avail_idx

    def want_interrupts(self, wanted: bool) -> None:
        """Set or clear the flag that asks the device for no interrupts (virtio 2.7.7)."""
        self._avail[0] = 0 if wanted else AVAIL_F_NO_INTERRUPT

    # --- what the device has used

    def used_pending(self) -> bool:
        """Whether the used ring holds elements that `take_used` has not returned."""
        return self._used[1] != self._last_used

    def take_used(self) -> list[Used]:
        """New elements of the used ring, in its order. Their chains stay as they are."""
        taken = []
        end = self._used[1]
        while self._last_used != end:
            slot = self._last_used % self.size
            taken.append(Used(self._elements[2 * slot], self._elements[2 * slot + 1]))
            self._last_used = (self._last_used + 1) & 0xFFFF
        return taken

    def release(self, head: int) -> None:
        """Free a used chain's descriptors and its indirect table; an unknown head is let be."""
        taken, table = self._chains.pop(head, ([], None))
        self._free.extend(reversed(taken))
        if table is not None:
            self.memory.free(table)

    def chain(self, head: int) -> bytes:
        """A chain as it stands in memory: its descriptors, then its indirect table."""
        taken, table = self._chains[head]
        raw = b"".join(bytes(self._desc[DESC_SIZE * n : DESC_SIZE * (n + 1)]) for n in taken)
        if table is None:
            return raw
        length = int.from_bytes(raw[8:12], "little")
        return raw + bytes(self.memory.view(table, length))

    def state(self) -> QueueState:
        """The indices as they stand in memory."""
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
