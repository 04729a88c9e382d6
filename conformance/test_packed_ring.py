"""The packed virtqueue: framing, wrapping, used descriptors, interrupts (virtio 2.8)."""

import pytest

from conformance.data import needed, sectors, untouched
from conformance.raw import RawRead
from conformance.rings import limit_queue
from conformance.waiting import SOON, let_pass, settled, until_completed
from harness.driver.interface import Request
from harness.report import clause, described, reads_only
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature
from harness.virtio.ring import (
    DESC_SIZE,
    EVENT_SUPPRESSION,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
)

WRAP = 1 << 15
"""The wrap counter in desc_event_off_wrap: 1 in the first round."""

DESCRIPTORS = 3
"""The number of descriptors of a read or a write with the driver's usual framing."""


@pytest.fixture
def packed(plug):
    """Factory of disks with a packed virtqueue."""

    def make(extra=(), **fields):
        return plug(packed=True, extra=[Feature.RING_PACKED, *extra], **fields)

    return make


def ring(disk):
    queue = disk.queues[0]
    return disk.driver.memory_read(queue.desc, DESC_SIZE * queue.size)


def suppress(disk, flags, off_wrap=0):
    """Write the driver's event suppression area."""
    area = EVENT_SUPPRESSION.pack(off_wrap, flags)
    disk.driver.memory_write(disk.queues[0].driver, area)


@clause("2.8.15-D-02")
def test_a_chain_whose_first_descriptor_is_not_available_waits(packed):
    disk = packed()
    driver = disk.driver
    disk.backing.write(5, sectors(1))
    request = RawRead.of(driver, sector=5)
    head = driver.queue_add(0, request.buffers)
    staged = ring(disk)

    driver.queue_kick(0)
    let_pass(disk=disk)
    waiting = ring(disk), request.data
    driver.queue_publish(0, [head])
    driver.queue_kick(0)
    driver.queue_poll(0, timeout=SOON)

    assert waiting == (staged, untouched(512))
    assert (request.status, request.data) == (Status.OK, sectors(1))


@pytest.mark.parametrize("rounds", [1, 2, 3])
@clause("2.8.15-D-02")
def test_descriptors_of_the_round_before_are_not_used_again(packed, rounds):
    disk = packed(driver_queue_size=2 * DESCRIPTORS)
    disk.backing.write(0, sectors(8))
    for n in range(2 * rounds):
        assert disk.read(n).status is Status.OK
    before = ring(disk)

    for _ in range(20):
        disk.driver.queue_kick(0)
    let_pass(disk=disk)

    assert ring(disk) == before
    assert needed(disk.read(7), "the read afterwards").data == sectors(8)[7 * 512 :]


@clause("2.8.15-D-03")
def test_a_used_descriptor_does_not_change_any_more(packed):
    disk = packed(iops=20)
    disk.needs_descriptors(36)
    driver = disk.driver
    tokens = driver.submit([Request(RequestType.IN, 8 * n, receive=512) for n in range(12)])

    first_seen = {}
    for _ in until_completed(disk, tokens):
        for at, descriptor in enumerate(PACKED_DESC.iter_unpack(ring(disk))):
            flags = descriptor[3]
            if flags & PACKED_DESC_F_AVAIL and flags & PACKED_DESC_F_USED:
                first_seen.setdefault(at, descriptor)
    let_pass(disk=disk)

    last = list(PACKED_DESC.iter_unpack(ring(disk)))
    if len(first_seen) < 2:
        pytest.skip("the device used all requests at once: no used descriptor was seen before")
    assert {at: last[at] for at in first_seen} == first_seen


@pytest.mark.parametrize("size", [3, 4, 7, 12, 13])
@described("2.8.1-P-01", "2.8.10.1-P-01")
def test_a_small_queue_wraps_around_many_times(packed, size):
    disk = packed(driver_queue_size=size)
    disk.backing.write(0, sectors(40))

    completions = [disk.read(n) for n in range(40)]

    assert {completion.status for completion in completions} == {Status.OK}
    assert b"".join(completion.data for completion in completions) == sectors(40)


@described("2.8.1-P-01")
def test_the_largest_queue_wraps_around_many_times(packed):
    disk = packed()
    disk.backing.write(9, sectors(1))
    count = 2 * limit_queue(disk) + 5

    outcome = disk.driver.repeat(Request(RequestType.IN, 9, receive=512), count)

    assert outcome.statuses == {Status.OK: count}
    assert needed(disk.read(9), "the read afterwards").data == sectors(1)


@described("2.8.10-P-03")
@reads_only
def test_each_completion_interrupts_while_events_are_enabled(packed):
    disk = packed()
    disk.needs_sectors(5)
    suppress(disk, RING_EVENT_FLAGS_ENABLE)

    for count in range(5):
        before = settled(disk).queue
        assert disk.read(count).status is Status.OK
        disk.driver.wait_interrupt("queue", above=before)


@described("2.8.10-P-03")
@reads_only
def test_no_completion_interrupts_while_events_are_disabled(packed):
    disk = packed()
    disk.needs_sectors(6)
    suppress(disk, RING_EVENT_FLAGS_DISABLE)
    let_pass(disk=disk)
    before = disk.driver.interrupts()  # a device may announce a queue that just started

    for n in range(5):
        assert disk.read(n).status is Status.OK
    let_pass(disk=disk)
    raised = disk.driver.interrupts().raised - before.raised
    suppress(disk, RING_EVENT_FLAGS_ENABLE)
    assert disk.read(5).status is Status.OK

    assert raised == 0, f"{raised} interrupts while events are disabled"
    disk.driver.wait_interrupt("queue", above=before.queue)


@described("2.8.10-P-02")
@reads_only
def test_with_event_idx_the_interrupt_comes_at_the_descriptor_asked_for(packed):
    disk = packed(extra=[Feature.EVENT_IDX])
    disk.needs_sectors(5)
    disk.needs_descriptors(5 * DESCRIPTORS)
    suppress(disk, RING_EVENT_FLAGS_ENABLE)
    assert disk.read(0).status is Status.OK
    disk.driver.wait_interrupt("queue", above=0)
    let_pass(disk=disk)
    before = disk.driver.interrupts()
    suppress(disk, RING_EVENT_FLAGS_DESC, 4 * DESCRIPTORS | WRAP)

    for n in range(1, 4):
        assert disk.read(n).status is Status.OK
    let_pass(disk=disk)
    early = disk.driver.interrupts().raised - before.raised
    assert disk.read(4).status is Status.OK

    assert early == 0
    disk.driver.wait_interrupt("queue", above=before.queue)


def plug_after_first_wrap(packed):
    """Return a disk that has used its ring half, and its interrupts so far.

    An interrupt is then asked for at the second half of the ring, in the next round.
    """
    disk = packed(extra=[Feature.EVENT_IDX], driver_queue_size=2 * DESCRIPTORS)
    disk.needs_sectors(4)
    suppress(disk, RING_EVENT_FLAGS_ENABLE)
    assert disk.read(0).status is Status.OK
    disk.driver.wait_interrupt("queue", above=0)
    let_pass(disk=disk)
    before = disk.driver.interrupts()
    suppress(disk, RING_EVENT_FLAGS_DESC, DESCRIPTORS)
    return disk, before


@described("2.8.10-P-02")
@reads_only
def test_with_event_idx_the_interrupt_comes_in_the_round_asked_for(packed):
    disk, _ = plug_after_first_wrap(packed)
    for n in range(1, 3):
        assert disk.read(n).status is Status.OK
    before = settled(disk)

    assert disk.read(3).status is Status.OK

    disk.driver.wait_interrupt("queue", above=before.queue)


@described("2.8.10-P-02")
@reads_only
def test_with_event_idx_no_interrupt_comes_at_the_end_of_the_round_before(packed):
    disk, before = plug_after_first_wrap(packed)

    for n in range(1, 3):
        assert disk.read(n).status is Status.OK
    let_pass(disk=disk)

    raised = disk.driver.interrupts().raised - before.raised
    assert raised == 0, f"{raised} interrupts before the descriptor asked for"
