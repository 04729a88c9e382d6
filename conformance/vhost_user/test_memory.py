"""The memory that front-end and back-end share, and its changes."""

import os

import pytest

from conformance.vhost_user.front_end import Shared, check_ok, read
from conformance.waiting import eventually
from harness.report import clause, on, reads_only
from harness.virtio.vhost_user import REGION, FrontEndRequest, ProtocolFeature

pytestmark = on("vhost-user")

SLOTS = ProtocolFeature.CONFIGURE_MEM_SLOTS
ROUNDS = 8

MOST = 12
"""Regions that a test adds, if the back-end takes as many."""


def check_read(ring, memory=None, count=8):
    """Read into a region, in several requests at once."""
    check_ok(ring.wait(ring.send(*[read(n, 1 + n % 3) for n in range(count)], memory=memory)))


@reads_only
@clause("VU-memory-01")
def test_rings_and_buffers_lie_in_any_region_at_any_offset(front):
    vmm = front()
    second, third = vmm.more(offset=0x3000), vmm.more(offset=0x10000)
    vmm.agree()
    vmm.share()
    ring = vmm.ring(region=second)
    ring.start()
    vmm.ready()

    for region in (vmm.regions[0], second, third):
        check_read(ring, region.memory)
    check_ok(
        ring.wait(
            [flight for region in vmm.regions for flight in ring.send(read(), memory=region.memory)]
        )
    )


@reads_only
@clause("VU-memory-07")
def test_the_memory_table_is_replaced_while_requests_run(front):
    vmm = front(prefer={"iops": 400})
    ring = vmm.begin()
    other = vmm.more(offset=0x1000)
    total = 0
    for turn in range(ROUNDS):
        flights = ring.send(*[read(n) for n in range(6)])
        if turn % 2:
            vmm.replace(vmm.regions[0])
        else:
            vmm.replace(other, vmm.regions[0])
            check_read(ring, other.memory)
            total += 8
        check_ok(ring.wait(flights))
        total += 6

    assert not ring.again
    assert ring.queue.state().used_idx == total


@reads_only
@clause("VU-memory-02")
def test_the_memory_table_is_replaced_between_requests(front):
    vmm = front()
    ring = vmm.begin()
    other = vmm.more(offset=0x1000)
    for turn in range(ROUNDS):
        check_read(ring)
        if turn % 2:
            vmm.replace(vmm.regions[0])
        else:
            vmm.replace(other, vmm.regions[0])
            check_read(ring, other.memory)


@reads_only
@clause("VU-memory-03")
def test_as_many_regions_can_be_added_as_there_are_slots(front):
    vmm = front(needs=[SLOTS])
    slots = vmm.ask_number(FrontEndRequest.GET_MAX_MEM_SLOTS)
    assert slots > 0, "GET_MAX_MEM_SLOTS returns 0"
    ring = vmm.begin()
    for _ in range(min(slots, MOST) - 1):
        vmm.add_region(vmm.more())

    for region in vmm.regions:
        check_read(ring, region.memory, count=2)


@reads_only
@clause("VU-memory-04", "VU-memory-05")
def test_regions_are_added_and_removed_while_requests_run(front):
    vmm = front(needs=[SLOTS], prefer={"iops": 400})
    ring = vmm.begin()
    if vmm.ask_number(FrontEndRequest.GET_MAX_MEM_SLOTS) < 2:
        pytest.skip("the back-end has one slot for memory")
    other = vmm.more(offset=0x2000)
    for _ in range(ROUNDS):
        flights = ring.send(*[read(n) for n in range(6)])
        vmm.add_region(other)
        check_read(ring, other.memory, count=3)
        flights += ring.send(*[read(n) for n in range(3)])
        vmm.remove_region(other)
        check_ok(ring.wait(flights))

    assert not ring.again
    assert ring.queue.state().used_idx == 12 * ROUNDS


@reads_only
@clause("VU-memory-05")
@pytest.mark.parametrize("offset", [None, 0x7000], ids=["same offset", "another offset"])
def test_other_memory_takes_the_place_of_a_region_that_was_removed(front, offset):
    vmm = front(needs=[SLOTS])
    ring = vmm.begin()
    if vmm.ask_number(FrontEndRequest.GET_MAX_MEM_SLOTS) < 2:
        pytest.skip("the back-end has one slot for memory")
    old = vmm.more()
    vmm.add_region(old)
    check_read(ring, old.memory)
    before = bytes(old.view)

    vmm.remove_region(old, offset)
    new = Shared(1, offset=0x1000)
    vmm.regions.append(new)
    vmm.add_region(new)
    check_read(ring, new.memory)

    assert bytes(old.view) == before, "the region that was removed is still written to"
    check_read(ring)


def at_end(pipe):
    """Return True if nobody has the other end of an empty pipe open."""
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


@reads_only
@clause("VU-memory-06")
def test_a_descriptor_that_comes_with_a_removal_is_closed(front):
    """The back-end may refuse such a message, or hang up. It has to close the descriptor."""
    vmm = front(needs=[SLOTS])
    vmm.begin()
    if vmm.ask_number(FrontEndRequest.GET_MAX_MEM_SLOTS) < 2:
        pytest.skip("the back-end has one slot for memory")
    other = vmm.more()
    vmm.add_region(other)
    ours, theirs = os.pipe()
    try:
        os.set_blocking(ours, False)
        try:
            vmm.send(FrontEndRequest.REM_MEM_REG, REGION.pack(*other.entry), [theirs])
        finally:
            os.close(theirs)
        vmm.send(FrontEndRequest.GET_FEATURES)
        vmm.answer()

        assert eventually(lambda: at_end(ours)), "the descriptor is still open after the removal"
    finally:
        os.close(ours)
