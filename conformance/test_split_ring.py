"""The split virtqueue: framing, indirect tables, used length, notifications (virtio 2.7)."""

import pytest

from conformance.data import sectors, shortest
from conformance.raw import RawRead
from conformance.rings import RingWrapper
from conformance.waiting import SOON, let_pass, settled, trouble, until_completed
from harness.driver.interface import Buffer, Request
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import RequestType, Status, segment
from harness.virtio.features import Feature
from harness.virtio.ring import (
    AVAIL_F_NO_INTERRUPT,
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
)

IN_ITS_TIME = pytest.mark.parametrize("iops", [None, 20], ids=["as-it-comes", "slow"])


def set_avail_flags(disk, flags):
    disk.driver.memory_write(disk.queues[0].driver, flags.to_bytes(2, "little"))


def set_used_event(disk, index):
    queue = disk.queues[0]
    disk.driver.memory_write(queue.driver + 4 + 2 * queue.size, index.to_bytes(2, "little"))


def used_flags(disk):
    return disk.driver.queue_state(0).used_flags


@clause("2.7.4.1-D-01")
def test_the_segment_of_a_request_may_be_cut_anywhere(plug):
    disk = plug(needs=[Feature.BLK_WRITE_ZEROES])
    disk.needs_descriptors(33)
    count = shortest(disk.driver.config().max_write_zeroes_sectors, 8)
    whole = sectors(8 + count + 8)
    expected = whole[: 8 * 512] + bytes(count * 512) + whole[(8 + count) * 512 :]

    for cut in ((32,), (1, 31), (17, 15), (1,) * 32):
        disk.backing.write(0, whole)
        completion = disk.request(RequestType.WRITE_ZEROES, data=segment(8, count), readable=cut)
        assert completion.status is Status.OK, cut
        assert completion.damage == (), cut
        assert disk.backing.read(0, 8 + count + 8) == expected, cut


@clause("2.7.5.3.2-D-01")
def test_the_write_flag_of_an_indirect_descriptor_is_ignored(plug):
    disk = plug(needs=[Feature.INDIRECT_DESC])
    driver = disk.driver
    disk.backing.write(5, sectors(1))
    request = RawRead.of(driver, sector=5)
    head = driver.queue_add(0, request.buffers, indirect=True)
    flags_at = disk.queues[0].desc + DESC_SIZE * head + 12
    driver.memory_write(flags_at, (DESC_F_INDIRECT | DESC_F_WRITE).to_bytes(2, "little"))

    driver.queue_publish(0, [head])
    driver.queue_kick(0)
    driver.queue_poll(0, timeout=SOON)

    assert request.status == Status.OK
    assert request.data == sectors(1)


def add_direct_then_indirect(disk, buffers, direct):
    """Add a chain of `direct` direct descriptors and an indirect one; return its head.

    The last descriptor refers to a table of the other buffers, which are device-writable.
    """
    driver, queue = disk.driver, disk.queues[0]
    rest = buffers[direct:]
    table = driver.alloc(DESC_SIZE * len(rest))
    for slot, buffer in enumerate(rest):
        flags = DESC_F_WRITE | (DESC_F_NEXT if slot + 1 < len(rest) else 0)
        entry = DESC.pack(buffer.address, buffer.length, flags, slot + 1)
        driver.memory_write(table + DESC_SIZE * slot, entry)
    head = driver.queue_add(0, [*buffers[:direct], Buffer(table, DESC_SIZE * len(rest))])
    # The driver adds direct descriptors only: make the last one of the chain indirect.
    last = head
    for _ in range(direct):
        last = int.from_bytes(driver.memory_read(queue.desc + DESC_SIZE * last + 14, 2), "little")
    driver.memory_write(queue.desc + DESC_SIZE * last + 12, DESC_F_INDIRECT.to_bytes(2, "little"))
    return head


@pytest.mark.parametrize("direct", [1, 2], ids=["header", "header-and-data"])
@clause("2.7.5.3.2-D-02")
def test_direct_descriptors_may_come_before_an_indirect_one(plug, direct):
    disk = plug(needs=[Feature.INDIRECT_DESC])
    driver = disk.driver
    disk.backing.write(5, sectors(1))
    request = RawRead.of(driver, sector=5)
    head = add_direct_then_indirect(disk, request.buffers, direct)

    driver.queue_publish(0, [head])
    driver.queue_kick(0)
    assert trouble(lambda: driver.queue_poll(0, timeout=SOON)) is None

    assert request.status == Status.OK
    assert request.data == sectors(1)


@clause("2.7.8.2-D-01")
@reads_only
def test_the_used_length_is_there_when_the_used_index_moves(plug):
    disk = plug()
    driver, queue = disk.driver, disk.queues[0]
    count = min(queue.size // 3, disk.spec.capacity, 1000)
    requests = [Request(RequestType.IN, n, receive=512) for n in range(count)]
    unwritten = 0xFFFF_FFFF

    # The driver polls the index, and reads an element as soon as the index has moved.
    for _ in range(8):
        driver.memory_write(queue.device + 4, b"\xff" * 8 * queue.size)
        completions = driver.complete(driver.submit(requests))
        lengths = [completion.used_len for completion in completions]
        assert unwritten not in lengths, "the used index moved, and len was not there"


@described("2.7-P-01")
@on("modern")
def test_a_small_queue_wraps_around(plug):
    disk = plug(driver_queue_size=4)
    disk.backing.write(0, sectors(11))

    completions = [disk.read(n) for n in range(11)]

    assert [completion.data for completion in completions] == [
        sectors(11)[512 * n : 512 * (n + 1)] for n in range(11)
    ]
    assert disk.driver.queue_state(0).used_idx == 11


@pytest.mark.parametrize(
    "extra", [[], [Feature.EVENT_IDX], [Feature.NOTIFICATION_DATA]], ids=["plain", "event", "data"]
)
@clause("2.7.10.2-D-05")
def test_notifications_that_announce_nothing_do_no_harm(plug, extra):
    disk = plug(extra=extra)
    disk.backing.write(0, sectors(1))

    for _ in range(50):
        disk.driver.queue_kick(0)
    let_pass(disk=disk)  # the device sees these notifications before a request is available
    idle = disk.driver.queue_state(0).used_idx
    completion = disk.read(0)

    assert idle == 0
    assert completion.status is Status.OK
    assert completion.data == sectors(1)
    assert disk.driver.queue_state(0).used_idx == 1


@IN_ITS_TIME
@clause("2.7.10.2-D-01")
def test_without_event_idx_the_used_flags_are_0_or_1(plug, iops):
    disk = plug(iops=iops)
    disk.needs_sectors(8)
    disk.needs_descriptors(8 * 3)
    tokens = disk.driver.submit([Request(RequestType.IN, n, receive=512) for n in range(8)])

    seen = {used_flags(disk)}
    for _ in until_completed(disk, tokens):
        seen.add(used_flags(disk))
    seen.add(used_flags(disk))

    assert seen <= {0, 1}


@IN_ITS_TIME
@clause("2.7.10.2-D-03")
def test_with_event_idx_the_used_flags_are_0(plug, iops):
    disk = plug(iops=iops, extra=[Feature.EVENT_IDX])
    disk.needs_sectors(8)
    disk.needs_descriptors(8 * 3)
    tokens = disk.driver.submit([Request(RequestType.IN, n, receive=512) for n in range(8)])

    seen = {used_flags(disk)}
    for _ in until_completed(disk, tokens):
        seen.add(used_flags(disk))
    seen.add(used_flags(disk))

    assert seen == {0}


@clause("2.7.7.2-D-03")
@reads_only
def test_each_completion_interrupts_while_the_flags_are_0(plug):
    disk = plug()
    disk.needs_sectors(5)

    for count in range(5):
        before = settled(disk).queue
        assert disk.read(count).status is Status.OK
        disk.driver.wait_interrupt("queue", above=before)


@clause("2.7.7.2-D-02")
@reads_only
def test_no_completion_interrupts_while_the_flags_are_1(plug):
    disk = plug()
    disk.needs_sectors(5)
    set_avail_flags(disk, AVAIL_F_NO_INTERRUPT)
    let_pass(disk=disk)
    before = disk.driver.interrupts().raised  # a device may announce a queue that just started

    for n in range(5):
        assert disk.read(n).status is Status.OK
    let_pass(disk=disk)

    assert disk.driver.interrupts().raised == before


@clause("2.7.7.2-D-03")
@reads_only
def test_interrupts_come_again_when_the_flags_are_0_again(plug):
    disk = plug()
    set_avail_flags(disk, AVAIL_F_NO_INTERRUPT)
    assert disk.read(0).status is Status.OK
    settled(disk)  # the device may look at the flags after it has used the buffer

    set_avail_flags(disk, 0)
    before = settled(disk).queue
    assert disk.read(0).status is Status.OK

    disk.driver.wait_interrupt("queue", above=before)


@clause("2.7.7.2-D-01")
@reads_only
def test_without_event_idx_a_stale_used_event_is_ignored(plug):
    disk = plug()
    disk.needs_sectors(4)

    for count, used_event in enumerate((0xFFFF, 0x8000, 0, 100)):
        set_used_event(disk, used_event)
        before = settled(disk).queue
        assert disk.read(count).status is Status.OK
        disk.driver.wait_interrupt("queue", above=before)


@clause("2.7.7.2-D-04")
@reads_only
def test_with_event_idx_the_flags_are_ignored(plug):
    disk = plug(extra=[Feature.EVENT_IDX])
    disk.needs_sectors(3)
    set_avail_flags(disk, AVAIL_F_NO_INTERRUPT)

    for count in range(3):
        set_used_event(disk, count)
        before = settled(disk).queue
        assert disk.read(count).status is Status.OK
        disk.driver.wait_interrupt("queue", above=before)


@clause("2.7.7.2-D-05")
@reads_only
def test_with_event_idx_the_interrupt_comes_at_used_event(plug):
    disk = plug(extra=[Feature.EVENT_IDX])
    disk.needs_sectors(5)
    set_used_event(disk, 4)
    for n in range(4):
        assert disk.read(n).status is Status.OK
    before = settled(disk).queue

    assert disk.read(4).status is Status.OK

    disk.driver.wait_interrupt("queue", above=before)


@clause("2.7.7.2-D-05")
def test_with_event_idx_used_event_may_be_in_the_middle_of_a_batch(plug):
    disk = plug(extra=[Feature.EVENT_IDX])
    disk.needs_sectors(10)
    disk.needs_descriptors(10 * 3)
    set_used_event(disk, 5)
    assert disk.read(0).status is Status.OK
    before = settled(disk).queue

    tokens = disk.driver.submit([Request(RequestType.IN, n, receive=512) for n in range(10)])
    disk.driver.complete(tokens)

    disk.driver.wait_interrupt("queue", above=before)


@clause("2.7.7.2-D-05")
@reads_only
def test_with_event_idx_the_interrupt_comes_where_the_index_wraps_around(plug):
    disk = plug(extra=[Feature.EVENT_IDX], without=[Feature.NOTIFICATION_DATA])
    disk.needs_descriptors(64)
    driver = disk.driver
    requests = RingWrapper(disk)
    set_used_event(disk, 0xFFFF)
    requests.turn(0xFFFF)

    for used_event in (0xFFFF, 0):
        set_used_event(disk, used_event)
        before = settled(disk).queue
        requests.turn(1)
        driver.wait_interrupt("queue", above=before, timeout=SOON)


@clause("2.7.7.2-D-06")
@reads_only
def test_with_event_idx_no_interrupt_comes_elsewhere(plug):
    disk = plug(extra=[Feature.EVENT_IDX])
    disk.needs_sectors(5)
    set_used_event(disk, 0)
    assert disk.read(0).status is Status.OK
    set_used_event(disk, 100)
    let_pass(disk=disk)
    before = disk.driver.interrupts().raised

    for n in range(5):
        assert disk.read(n).status is Status.OK
    let_pass(disk=disk)

    assert disk.driver.interrupts().raised == before


@clause("2.7.7.2-D-06")
@reads_only
def test_with_event_idx_no_interrupt_comes_before_the_first_used_event(plug):
    disk = plug(extra=[Feature.EVENT_IDX])
    disk.needs_sectors(5)
    set_used_event(disk, 100)
    let_pass(disk=disk)
    before = disk.driver.interrupts().raised  # a device may announce a queue that just started

    for n in range(5):
        assert disk.read(n).status is Status.OK
    let_pass(disk=disk)

    raised = disk.driver.interrupts().raised - before
    assert raised == 0, f"{raised} interrupts before used_event"
