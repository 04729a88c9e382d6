"""Shared fields of a ring never hold a value that must not occur there, not even briefly.

Driver and model work on one ring in shared memory while another process reads it.
VBLK_WATCHER_LOOKS sets the number of reads for each ring, for example 1000000000.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from harness.driver.interface import Buffer
from harness.driver.memory import DmaMemory, Region
from harness.driver.virtqueue.packed import PackedQueue
from harness.driver.virtqueue.split import SplitQueue
from harness.model.memory import Memory
from harness.model.memory import Region as Shown
from harness.model.packed import PackedRing
from harness.model.ring import Addresses, Ring
from harness.model.split import SplitRing
from harness.virtio.ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    PACKED_DESC,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
)
from tests.watcher.watcher import Rule, Seen, Watcher

LOOKS = int(os.environ.get("VBLK_WATCHER_LOOKS", "1000000"))
CHANGES = 200
"""The least number of changes that it must see: on a busy host the ring may rest for a while."""

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="with one CPU nothing reads the ring while it changes"
)

SIZE = 1 << 16
BASE = 1 << 32
"""Bus address where the memory begins. Offsets in the file are addresses without it."""

WRITTEN = 513
"""The used length that the device reports, in bytes."""

READABLE = Buffer(BASE + SIZE - 4096, 16, False)
WRITABLE = Buffer(BASE + SIZE - 2048, 1024, True)
BUFFERS = (READABLE, WRITABLE)

AVAILABLE = (0x0080, 0x8000)
"""AVAIL and USED of an available descriptor, in odd and in even rounds of a packed ring."""

USED = (0x8080 | DESC_F_WRITE, DESC_F_WRITE)
"""The flags of a used descriptor of a device-writable buffer."""


class Shared:
    """Memory in a file that another process can map."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("rings")
        os.truncate(self.fd, SIZE)
        self._map = mmap.mmap(self.fd, SIZE)
        view = memoryview(self._map)
        self.driver = DmaMemory([Region(BASE, view[: SIZE - 4096])])
        self.device = Memory([Shown(BASE, BASE, view)])

    def watched(self, rules: list[Rule], work: Callable[[], None], looks: int = LOOKS) -> Seen:
        """Repeat `work` while the watcher reads; return its observations."""
        for _ in range(64):
            work()  # every field has been written
        watcher = Watcher(self.fd, rules, looks, CHANGES)
        try:
            for turn in count():
                work()
                if turn % 256 == 0 and not watcher.looking():
                    return watcher.result()
        finally:
            watcher.close()
        raise AssertionError("unreachable")


@pytest.fixture
def shared() -> Iterator[Shared]:
    memory = Shared()
    yield memory
    os.close(memory.fd)


def at(address: int, more: int = 0) -> int:
    """Return the offset in the file for a bus address."""
    return address - BASE + more


def check(seen: Seen) -> None:
    """Assert that the watcher saw changes and no bad value."""
    assert seen.bad == {}
    assert seen.looks >= LOOKS
    assert seen.changes >= CHANGES, "the watcher saw no change of the ring"


def split(shared: Shared, event_idx: bool) -> tuple[SplitQueue, SplitRing]:
    """Return both sides of a queue of 8 whose descriptor 0 is never used."""
    queue = SplitQueue(shared.driver, 0, 8, event_idx=event_idx)
    queue.add([READABLE])
    ring = SplitRing(8, event_idx, 0)
    map_ring(ring, shared, queue)
    return queue, ring


def map_ring(ring: Ring, shared: Shared, queue: SplitQueue | PackedQueue) -> None:
    layout = queue.layout
    ring.map(shared.device, Addresses(layout.desc, layout.driver, layout.device))


def cycle(queue: SplitQueue | PackedQueue, ring: Ring, indirect: bool) -> None:
    """Make a chain available, use it, and ask for interrupts, for none, and for kicks."""
    queue.set_interrupts_enabled(True)
    queue.publish([queue.add(BUFFERS, indirect)])
    queue.needs_notification()
    chain = ring.take()
    assert chain
    ring.want_kicks()
    ring.use(chain, WRITTEN)
    ring.notification_due()
    queue.set_interrupts_enabled(False)
    (used,) = queue.take_used()
    queue.release(used.id)


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event-idx"])
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_a_split_ring_shows_no_intermediate_value(
    shared: Shared, indirect: bool, event_idx: bool
) -> None:
    queue, ring = split(shared, event_idx)
    layout, size = queue.layout, queue.size
    table = queue.memory.alloc(32, 16)  # the first table that is allocated has this address
    queue.memory.free(table)
    used_idx, avail_idx = at(layout.device, 2), at(layout.driver, 2)
    descriptor = at(layout.desc, 16)  # of slot 1, the only head
    rules = [
        Rule("avail idx", avail_idx, forward=True),
        Rule("used idx", used_idx, forward=True),
        Rule("avail flags", at(layout.driver), values=(0,) if event_idx else (0, 1)),
        Rule("used flags", at(layout.device), values=(0,)),
        *(Rule(f"avail {n}", at(layout.driver, 4 + 2 * n), values=(1,)) for n in range(size)),
        *(Rule(f"used {n} id", at(layout.device, 4 + 8 * n), 4, (1,)) for n in range(size)),
        *(Rule(f"used {n} len", at(layout.device, 8 + 8 * n), 4, (WRITTEN,)) for n in range(size)),
    ]
    if event_idx:
        rules += [
            Rule("avail_event", at(layout.device, 4 + 8 * size), forward=True),
        ]
    if indirect:
        rules += chain_rules("descriptor", descriptor, table, 32, DESC_F_INDIRECT, 0)
        rules += [
            Rule(**{**vars(rule), "indices": (avail_idx, used_idx)})
            for rule in (
                *chain_rules("entry 0", at(table), *place(READABLE), DESC_F_NEXT, 1),
                *chain_rules("entry 1", at(table, 16), *place(WRITABLE), DESC_F_WRITE, 0),
            )
        ]
    else:
        rules += chain_rules("descriptor 1", descriptor, *place(READABLE), DESC_F_NEXT, 2)
        rules += chain_rules("descriptor 2", descriptor + 16, *place(WRITABLE), DESC_F_WRITE, 0)

    check(shared.watched(rules, lambda: cycle(queue, ring, indirect)))


def place(buffer: Buffer) -> tuple[int, int]:
    return buffer.address, buffer.length


def chain_rules(name: str, offset: int, address: int, length: int, *halves: int) -> list[Rule]:
    """Return the rules for a descriptor that is written repeatedly with the same values."""
    return [
        Rule(f"{name} address", offset, 8, (address,)),
        Rule(f"{name} length", offset + 8, 4, (length,)),
        *(
            Rule(f"{name}, 16 bits at {12 + 2 * n}", offset + 12 + 2 * n, 2, (half,))
            for n, half in enumerate(halves)
        ),
    ]


def packed(shared: Shared, kept: bool) -> tuple[PackedQueue, PackedRing]:
    """Return both sides of a ring of 4.

    With `kept`, the device keeps the chain with buffer id 0, and used descriptors begin at an odd
    offset.
    """
    queue = PackedQueue(shared.driver, 0, 4, event_idx=True)
    ring = PackedRing(4, True, 1 << 15 | 1 << 31)
    map_ring(ring, shared, queue)
    if kept:
        queue.publish([queue.add([WRITABLE]), queue.add([WRITABLE])])
        first, second = ring.take(), ring.take()
        assert first and second and first.id == 0
        ring.use(second, WRITTEN)
        queue.release(queue.take_used()[0].id)
    return queue, ring


def packed_rules(queue: PackedQueue, indirect: bool) -> list[Rule]:
    layout = queue.layout
    own = (DESC_F_INDIRECT,) if indirect else (DESC_F_NEXT, DESC_F_WRITE)
    flags = (*(bits | flag for bits in AVAILABLE for flag in own), *USED)
    offsets = range(queue.size) if indirect else (1, 3)
    ident = 0 if indirect else 1
    return [
        *(Rule(f"flags {n}", at(layout.desc, 16 * n + 14), 2, flags) for n in range(queue.size)),
        *(Rule(f"id {n}", at(layout.desc, 16 * n + 12), 2, (ident,)) for n in range(queue.size)),
        Rule(
            "driver's offset",
            at(layout.driver),
            values=tuple(offset | wrap for offset in offsets for wrap in (0, 1 << 15)),
        ),
        Rule(
            "driver's event flags",
            at(layout.driver, 2),
            values=(RING_EVENT_FLAGS_DISABLE, RING_EVENT_FLAGS_DESC),
        ),
        Rule("device's event area", at(layout.device), 4, (0,)),
    ]


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_a_packed_ring_shows_no_intermediate_value(shared: Shared, indirect: bool) -> None:
    queue, ring = packed(shared, kept=not indirect)
    rules = packed_rules(queue, indirect)
    if indirect:
        table = queue.memory.alloc(32, 16)
        queue.memory.free(table)
        available = tuple(bits | DESC_F_INDIRECT for bits in AVAILABLE)
        rules += [
            Rule(
                **{
                    **vars(rule),
                    "name": f"{rule.name}, by {n}",
                    "flags": at(queue.layout.desc, 16 * n + 14),
                    "available": available,
                }
            )
            for rule in (
                *chain_rules("entry 0", at(table), *place(READABLE), 0, 0),
                *chain_rules("entry 1", at(table, 16), *place(WRITABLE), 0, DESC_F_WRITE),
            )
            for n in range(queue.size)
        ]

    check(shared.watched(rules, lambda: cycle(queue, ring, indirect)))


def test_the_watcher_sees_what_pack_into_does_to_the_flags(shared: Shared) -> None:
    queue, ring = packed(shared, kept=True)
    table = memoryview(queue._ring)

    class Packing:
        """Replacement of `struct.pack_into` that keeps the old flags of a descriptor."""

        def __init__(self) -> None:
            self._table = queue._table

        def write(self, slot: int, address: int, length: int, first: int) -> None:
            PACKED_DESC.pack_into(table, 16 * slot, address, length, first, self.last(slot))

        def last(self, slot: int) -> int:
            return self._table.last(slot)

        def set_last(self, slot: int, value: int) -> None:
            self._table.set_last(slot, value)

    queue._table = Packing()  # type: ignore[assignment]

    flags = [rule for rule in packed_rules(queue, indirect=False) if rule.name.startswith("flags")]
    seen = shared.watched(flags, lambda: cycle(queue, ring, indirect=False), looks=1 << 40)

    assert seen.bad  # 0, or one byte of the new flags
