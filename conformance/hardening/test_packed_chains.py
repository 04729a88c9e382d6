"""Invalid chains in packed virtqueues (virtio 2.8)."""

import pytest

from harness.driver.interface import Buffer
from harness.report import hardening
from harness.virtio.ring import (
    DESC_F_NEXT,
    EVENT_SUPPRESSION,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
)

AVAILABLE = PACKED_DESC_F_AVAIL
"""The flags of an available descriptor in the first round."""

MARKS = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED

RESERVED_FLAGS = 0x7F78


@pytest.fixture
def kind():
    """The format of the rings: packed only."""
    return "packed"


@pytest.mark.parametrize("writable", [False, True], ids=["readable", "writable"])
@hardening("2.8.6", "a chain through all descriptors of the ring that has no end")
def test_a_chain_without_an_end(victim, writable):
    disk = victim()
    disk.lay(*disk.read())
    shared = disk.area(16) if writable else disk.data(16)
    for slot in range(1, disk.ring.size):
        disk.ring.put(slot, shared, DESC_F_NEXT | AVAILABLE)

    with disk.must_survive():
        disk.go()


@hardening("2.8.6", "a request whose chain has no end, its head included")
def test_a_whole_request_without_an_end(victim):
    disk = victim()
    disk.lay(disk.header())
    area = disk.area(512)
    for slot in range(1, disk.ring.size):
        disk.ring.put(slot, area, DESC_F_NEXT | AVAILABLE)
    disk.ring.put(0, disk.header(), DESC_F_NEXT | AVAILABLE)

    with disk.must_survive():
        disk.kick()


@hardening("2.8.6", "a chain that runs on into descriptors that are not available")
def test_a_chain_that_runs_into_unavailable_descriptors(victim):
    disk = victim()
    buffers = disk.read()
    disk.lay(*buffers)
    disk.ring.put(2, buffers[2], DESC_F_NEXT | AVAILABLE)

    with disk.must_survive():
        disk.go()


@pytest.mark.parametrize("rounds", [1, 5], ids=["once", "again-and-again"])
@hardening("2.8.6", "a chain as long as the ring")
def test_a_chain_as_long_as_the_ring(victim, rounds):
    disk = victim(size=8)
    filler = [disk.area(512) for _ in range(disk.ring.size - 2)]

    with disk.must_survive():
        for _ in range(rounds):
            disk.send(disk.header(), *filler, disk.status())
            disk.settle()


@pytest.mark.parametrize(
    "marks",
    [PACKED_DESC_F_USED, MARKS, 0],
    ids=["the-other-rounds", "used", "neither"],
)
@hardening("2.8.1", "a head with the wrong wrap counter")
def test_a_head_of_another_round(victim, marks):
    disk = victim()
    disk.lay(*disk.read())

    with disk.must_survive():
        disk.ring.set_flags(0, DESC_F_NEXT | marks)
        disk.kick()


@pytest.mark.parametrize(
    "marks",
    [PACKED_DESC_F_USED, MARKS, 0],
    ids=["the-other-rounds", "used", "neither"],
)
@hardening("2.8.6", "a chain whose later descriptors have the wrong wrap counter")
def test_a_chain_with_descriptors_of_another_round(victim, marks):
    disk = victim()
    buffers = disk.read()
    disk.lay(*buffers)
    disk.ring.put(1, buffers[1], DESC_F_NEXT | marks)
    disk.ring.put(2, buffers[2], marks)

    with disk.must_survive():
        disk.go()


@hardening("2.8.1", "a ring whose descriptors are available in both rounds, by turns")
def test_a_ring_with_alternating_available_flags(victim):
    disk = victim(size=4)
    buffers = disk.read()
    disk.lay(*buffers)

    with disk.must_survive():
        for slot in range(disk.ring.size):
            mark = (PACKED_DESC_F_AVAIL, PACKED_DESC_F_USED)[slot % 2]
            disk.ring.put(slot, buffers[slot % 3], mark)
        disk.kick()
        disk.kick()


@hardening("2.8.1", "the descriptors of a used chain made available again in their old round")
def test_used_descriptors_available_again_in_the_same_round(victim):
    disk = victim()

    with disk.must_survive():
        disk.send(*disk.read())
        disk.settle()
        for _ in range(10):
            disk.ring.set_flags(0, DESC_F_NEXT | AVAILABLE)
            disk.kick()


@pytest.mark.parametrize("ident", ["size", "all-ones"])
@hardening("2.8.6", "a buffer id beyond the queue's size")
def test_a_buffer_id_out_of_range(victim, ident):
    disk = victim()
    buffers = disk.read()
    disk.lay(*buffers)
    number = disk.ring.size if ident == "size" else 0xFFFF
    disk.ring.put(2, buffers[2], AVAILABLE, number)

    with disk.must_survive():
        disk.go()


@hardening("2.8.6", "two chains with the same buffer id")
def test_two_chains_with_the_same_buffer_id(victim):
    disk = victim()
    disk.lay(*disk.read(), *disk.read())
    last = disk.status()
    disk.ring.put(2, last, AVAILABLE)

    with disk.must_survive():
        disk.go()


@hardening("2.8.6", "a chain with another buffer id in every descriptor")
def test_a_chain_of_different_buffer_ids(victim):
    disk = victim()
    buffers = disk.read()
    disk.lay(*buffers)
    disk.ring.put(1, buffers[1], DESC_F_NEXT | AVAILABLE, 40)
    disk.ring.put(2, buffers[2], AVAILABLE, 41)

    with disk.must_survive():
        disk.go()


@hardening("2.8.4", "descriptors with all reserved flags set")
def test_reserved_descriptor_flags(victim):
    disk = victim()
    disk.ring.lay(*disk.read(), flags=RESERVED_FLAGS)

    with disk.must_survive():
        disk.go()


@hardening("2.8.4", "descriptors of nothing but zeroes that are available")
def test_a_ring_of_empty_descriptors(victim):
    disk = victim()
    for slot in range(disk.ring.size):
        disk.ring.put(slot, Buffer(0, 0), AVAILABLE)

    with disk.must_survive():
        disk.kick()


@hardening("2.8.7", "an indirect descriptor in the middle of a chain")
def test_indirect_in_the_middle_of_a_chain(victim):
    disk = victim()
    buffers = disk.read()
    table = disk.table(*buffers)
    disk.lay(*buffers)
    disk.ring.put(1, table, DESC_F_NEXT | AVAILABLE | 4)

    with disk.must_survive():
        disk.go()


@hardening("2.8.19", "an indirect descriptor with a successor")
def test_indirect_with_next(victim):
    disk = victim()
    buffers = disk.read()
    disk.refer(disk.table(*buffers), 4 | DESC_F_NEXT)
    disk.ring.put(1, buffers[2], AVAILABLE)

    with disk.must_survive():
        disk.go()


@hardening("2.8.19", "an indirect table with the flags of a ring")
def test_an_indirect_table_with_flags_of_a_ring(victim):
    disk = victim()
    buffers = disk.read()
    table = disk.table(*buffers)
    for position, buffer in enumerate(buffers):
        entry = disk.ring.table_entry(buffer, DESC_F_NEXT | MARKS | RESERVED_FLAGS, 0xFFFF)
        disk.canaries.write(table.address + 16 * position, entry)
    disk.refer(table)

    with disk.must_survive():
        disk.go()


@pytest.mark.parametrize("flags", [2, 3, 0xFFFF], ids=["one-descriptor", "reserved", "all-ones"])
@hardening("2.8.14", "an event suppression area that makes no sense")
def test_an_invalid_event_suppression_area(victim, flags):
    disk = victim()
    disk.canaries.write(disk.ring.layout.driver, EVENT_SUPPRESSION.pack(0x7FFF, flags))

    with disk.must_survive():
        disk.send(*disk.read())
