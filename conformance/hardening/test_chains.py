"""Invalid chains and available rings in split virtqueues (virtio 2.7)."""

import pytest

from harness.driver.interface import Buffer
from harness.report import hardening
from harness.virtio.ring import DESC_F_INDIRECT, DESC_F_NEXT

NOTHING = Buffer(0, 0)

RESERVED_FLAGS = 0xFFF8


@pytest.fixture
def kind():
    """The format of the rings: split only."""
    return "split"


@pytest.mark.parametrize("back_to", [0, 1, 2], ids=["the-head", "the-middle", "itself"])
@hardening("2.7.5.2", "a chain of descriptors that leads back into itself")
def test_a_chain_that_loops(victim, back_to):
    disk = victim()
    buffers = disk.read()
    disk.lay(*buffers)
    disk.ring.put(2, buffers[2], DESC_F_NEXT, back_to)

    with disk.must_survive():
        disk.go()


@hardening("2.7.5.2", "a descriptor that is its own successor")
def test_a_head_that_loops(victim):
    disk = victim()
    disk.lay(*disk.read())
    disk.ring.put(0, disk.header(), DESC_F_NEXT, 0)

    with disk.must_survive():
        disk.go()


@pytest.mark.parametrize("writable", [False, True], ids=["readable", "writable"])
@hardening("2.7.5.2", "a chain through all descriptors of the ring, and back")
def test_a_chain_that_loops_through_the_whole_ring(victim, writable):
    disk = victim()
    disk.lay(*disk.read())
    shared = disk.area(16) if writable else disk.data(16)
    for slot in range(1, disk.ring.size):
        disk.ring.put(slot, shared, DESC_F_NEXT, (slot + 1) % disk.ring.size)

    with disk.must_survive():
        disk.go()


@pytest.mark.parametrize("beyond", [0, 1, 4096], ids=["size", "one-more", "far"])
@hardening("2.7.5", "a descriptor whose successor is outside the table")
def test_a_next_outside_the_table(victim, beyond):
    disk = victim()
    buffers = disk.read()
    disk.lay(*buffers)
    disk.ring.put(1, buffers[1], DESC_F_NEXT, disk.ring.size + beyond)

    with disk.must_survive():
        disk.go()


@hardening("2.7.5", "a descriptor whose successor is descriptor 65535")
def test_a_next_of_all_ones(victim):
    disk = victim()
    buffers = disk.read()
    disk.lay(*buffers)
    disk.ring.put(0, buffers[0], DESC_F_NEXT, 0xFFFF)

    with disk.must_survive():
        disk.go()


@hardening("2.7.5", "a descriptor of nothing but zeroes")
def test_a_descriptor_of_zeroes(victim):
    disk = victim()
    disk.ring.put(0, NOTHING, 0)

    with disk.must_survive():
        disk.go()


@hardening("2.7.5", "a chain that ends in an empty descriptor")
def test_a_chain_that_runs_into_an_empty_descriptor(victim):
    disk = victim()
    buffers = disk.read()
    disk.lay(*buffers)
    disk.ring.put(2, buffers[2], DESC_F_NEXT, 9)

    with disk.must_survive():
        disk.go()


@hardening("2.7.5", "descriptors with all reserved flags set")
def test_reserved_descriptor_flags(victim):
    disk = victim()
    disk.ring.lay(*disk.read(), flags=RESERVED_FLAGS)

    with disk.must_survive():
        disk.go()


@hardening("2.7.13.1", "two chains that share their last descriptors")
def test_two_chains_that_share_descriptors(victim):
    disk = victim()
    buffers = disk.read()
    disk.lay(*buffers)
    disk.ring.put(3, disk.header(), DESC_F_NEXT, 1)

    with disk.must_survive():
        disk.ring.available(0, 3)
        disk.kick()


@pytest.mark.parametrize("times", [2, 64], ids=["twice", "as-often-as-the-ring-has-room"])
@hardening("2.7.13.2", "one chain, several times in the available ring")
def test_one_chain_many_times(victim, times):
    disk = victim()
    disk.lay(*disk.read())

    with disk.must_survive():
        disk.ring.available(*[0] * min(times, disk.ring.size))
        disk.kick()


@pytest.mark.parametrize("head", ["size", "far", "all-ones"])
@hardening("2.7.6", "a head in the available ring that is outside the table")
def test_a_head_outside_the_table(victim, head):
    disk = victim()
    disk.lay(*disk.read())

    with disk.must_survive():
        disk.ring.available({"size": disk.ring.size, "far": 0x4000, "all-ones": 0xFFFF}[head])
        disk.kick()


@pytest.mark.parametrize("by", [0x7FFF, 0x8000, 0xFFFF], ids=["half", "half-and-one", "back"])
@hardening("2.7.6.1", "an available index that jumps")
def test_an_available_index_that_jumps(victim, by):
    disk = victim()
    disk.lay(*disk.read())

    with disk.must_survive():
        disk.ring.available(0, by=by)
        disk.kick()


@hardening("2.7.6.1", "an available index that is one more than the ring has room")
def test_an_available_index_just_beyond_the_ring(victim):
    disk = victim()
    disk.lay(*disk.read())

    with disk.must_survive():
        disk.ring.available(*[0] * disk.ring.size, by=disk.ring.size + 1)
        disk.kick()


@hardening("2.7.6.1", "an available index that is taken back after the device has used a chain")
def test_an_available_index_that_goes_back(victim):
    disk = victim()
    disk.lay(*disk.read())

    with disk.must_survive():
        disk.go()
        disk.settle()
        disk.ring.available(by=0xFFFF)
        disk.kick()


@hardening("2.7.6.1", "an available index that moves on with every notification, and no chains")
def test_an_available_index_that_keeps_jumping(victim):
    disk = victim()
    disk.lay(*disk.read())

    with disk.must_survive():
        for _ in range(20):
            disk.ring.available(by=disk.ring.size)
            disk.kick()


@hardening("2.7.6", "all bits of the available ring's flags")
def test_reserved_flags_of_the_available_ring(victim):
    disk = victim()
    disk.canaries.write(disk.ring.layout.driver, b"\xff\xff")

    with disk.must_survive():
        disk.send(*disk.read())


@pytest.mark.parametrize("by", [1, 0x8000], ids=["one", "half"])
@hardening("2.7.8", "a used index that the driver has changed")
def test_a_used_index_that_the_driver_has_changed(victim, by):
    disk = victim()
    device = disk.ring.layout.device
    disk.lay(*disk.read())

    with disk.must_survive():
        disk.canaries.write(device + 2, by.to_bytes(2, "little"))
        disk.go()


@hardening("2.7.5.3.1", "an indirect descriptor with a successor")
def test_indirect_with_next(victim):
    disk = victim()
    buffers = disk.read()
    disk.refer(disk.table(*buffers), DESC_F_INDIRECT | DESC_F_NEXT)
    disk.ring.put(1, buffers[2], 0)

    with disk.must_survive():
        disk.go()


@hardening("2.7.5.3.1", "an indirect table that leads back into itself")
def test_an_indirect_table_that_loops(victim):
    disk = victim()
    buffers = disk.read()
    table = disk.table(*buffers)
    entry = disk.ring.table_entry(buffers[2], DESC_F_NEXT, 0)
    disk.canaries.write(table.address + 32, entry)
    disk.refer(table)

    with disk.must_survive():
        disk.go()


@pytest.mark.parametrize("following", [3, 0xFFFF], ids=["just-behind", "far"])
@hardening("2.7.5.3", "an indirect table whose chain leads out of it")
def test_an_indirect_chain_that_leaves_its_table(victim, following):
    disk = victim()
    buffers = disk.read()
    table = disk.table(*buffers)
    entry = disk.ring.table_entry(buffers[1], DESC_F_NEXT, following)
    disk.canaries.write(table.address + 16, entry)
    disk.refer(table)

    with disk.must_survive():
        disk.go()
