"""Resets, queue resets, resizes and other changes while requests are in flight."""

import pytest

from conformance.data import untouched
from conformance.hardening.victim import WITNESS
from conformance.raw import RawRead
from conformance.waiting import let_finish, let_pass, need_one_done
from harness.driver.interface import Buffer, Request
from harness.report import hardening
from harness.virtio.blk import SECTOR, RequestType
from harness.virtio.features import Feature

SLOW = 100
"""Operations per second of the backing store. A batch lasts long enough to be interrupted."""

SLOWER = 20
"""The same, for an interruption of several steps."""

BATCH = 12
"""Number of requests, three descriptors each. They fit into any queue."""


def batch(disk, queue=1, type=RequestType.IN):
    """Submit BATCH requests on `queue`."""
    disk.needs_second_queue()
    receive = SECTOR if type == RequestType.IN else 0
    data = b"" if receive else bytes(SECTOR)
    return disk.driver.submit([Request(type, 8 * n, data, receive) for n in range(BATCH)], queue)


def observed_batch(disk):
    """Send BATCH reads on queue 1, and return them when one is done.

    They can be seen after a reset of the queue, too.
    """
    reads = [RawRead.of(disk.driver, 8 * n) for n in range(BATCH)]
    heads = [disk.driver.queue_add(1, read.buffers) for read in reads]
    disk.driver.queue_publish(1, heads)
    disk.driver.queue_kick(1)
    need_one_done(lambda: any(read.done for read in reads))
    return reads


@pytest.mark.parametrize("times", [1, 5], ids=["once", "again-and-again"])
@hardening("2.4", "a reset with requests under way")
def test_a_reset_with_requests_in_flight(victim, times):
    disk = victim(iops=SLOW)

    with disk.must_survive():
        for _ in range(times):
            batch(disk)
            disk.reset()


@hardening("2.4", "a reset with requests under way, and none that starts it until they are done")
def test_a_reset_that_outlasts_the_requests(victim):
    disk = victim(iops=SLOWER)

    with disk.must_survive():
        batch(disk)
        disk.driver.reset()
        let_pass(2 * BATCH / SLOWER)
        disk.reset()


@hardening("2.4", "a reset right behind a malformed chain")
def test_a_reset_behind_a_malformed_chain(victim):
    disk = victim()
    header, area, _ = disk.read()

    with disk.must_survive():
        disk.send(header, Buffer(area.address, 0, writable=True))
        disk.reset()


@hardening("2.4", "many resets at once, with nothing in between")
def test_many_resets(victim):
    disk = victim(iops=SLOW)

    with disk.must_survive():
        batch(disk)
        for _ in range(50):
            disk.driver.set_status(0)
        disk.reset()


@pytest.mark.parametrize("times", [1, 3], ids=["once", "again-and-again"])
@hardening("2.6.1", "the reset of a queue with requests under way")
def test_a_queue_reset_with_requests_in_flight(registers, times):
    disk = registers(iops=SLOWER, needs=[Feature.RING_RESET])
    disk.needs_second_queue()

    reads = observed_batch(disk)

    with disk.must_survive():
        disk.reset_queue(1)
        in_flight = untouched(SECTOR) in [read.data for read in reads]
        for _ in range(times - 1):
            batch(disk)
            disk.reset_queue(1)
        let_finish(disk.disk, times * BATCH / SLOWER)
    if not in_flight:
        pytest.skip("nothing was in flight when the queue was reset")


@hardening("2.6.1", "the reset of queues that were not set up, or do not exist")
def test_a_queue_reset_of_absent_queues(registers):
    disk = registers(queues=4, needs=[Feature.RING_RESET])
    names = ("queue_select", "queue_reset")
    if disk.driver.transport_kind() == "mmio":
        names = ("QueueSel", "QueueReset")

    with disk.must_survive():
        for queue in (2, 3, 4, 1023, 0xFFFF):
            for value in (1, 2, 0xFFFF, 0):
                disk.driver.register_write(names[0], queue)
                disk.driver.register_write(names[1], value)


@hardening("2.6.1", "the reset of a queue right behind a malformed chain")
def test_a_queue_reset_behind_a_malformed_chain(registers):
    disk = registers(needs=[Feature.RING_RESET])
    header, area, _ = disk.read()

    with disk.must_survive():
        disk.send(header, Buffer(area.address, 0, writable=True))
        disk.reset_queue(0)


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "as-it-is"])
@pytest.mark.parametrize("size", [4, 128], ids=["smaller", "larger"])
@hardening("2.6.1", "a queue in use set up again with another size, reset or not")
def test_a_queue_in_use_set_up_again(registers, size, reset):
    disk = registers(needs=[Feature.RING_RESET] if reset else [])
    if not disk.driver.offered() & Feature.VERSION_1.mask:
        pytest.skip("the driver cannot choose the size of a legacy queue")

    with disk.must_survive():
        for _ in range(4):
            disk.attempt(*disk.read())
        if reset:
            disk.driver.queue_reset(0)
        disk.set_up_queue(0, size)
        disk.send(*disk.read())


@pytest.mark.parametrize("capacity", [WITNESS + 8, 64 << 20], ids=["shrunk", "grown"])
@hardening("5.2.5", "a resize with requests under way beyond the new end")
def test_a_resize_with_requests_in_flight(victim, capacity):
    disk = victim(iops=SLOW)

    with disk.must_survive():
        end = disk.driver.config().capacity - 8 * BATCH
        disk.driver.submit(
            [Request(RequestType.IN, end + 8 * n, receive=SECTOR) for n in range(BATCH)], 1
        )
        disk.disk.resize(capacity)


@hardening("5.2.5", "many resizes and resets under way")
def test_alternating_resizes_and_resets(victim):
    disk = victim(iops=SLOW)

    with disk.must_survive():
        for turn in range(6):
            batch(disk)
            disk.disk.resize((WITNESS + 8) << (turn % 3))
            disk.reset()


@hardening("2.5.3", "the cache mode changed with every write")
def test_the_cache_mode_changed_during_writes(victim):
    disk = victim(needs=[Feature.BLK_CONFIG_WCE], write_cache=True)

    with disk.must_survive():
        batch(disk, type=RequestType.OUT)
        for turn in range(20):
            disk.driver.config_write(32, bytes([turn % 2]))


@hardening("2.6", "one buffer in two queues")
def test_one_buffer_in_two_queues(victim):
    disk = victim(iops=SLOW)
    disk.needs_second_queue()
    buffers = disk.read()

    with disk.must_survive():
        disk.lay(*buffers)
        head = disk.driver.queue_add(1, buffers)
        disk.driver.queue_publish(1, [head])
        disk.driver.queue_kick(1)
        disk.go()


@hardening("2.7.13", "memory of a request that is written over while it is under way")
def test_a_request_that_changes_in_flight(victim):
    disk = victim(iops=SLOW)
    header, area, status = disk.read()

    with disk.must_survive():
        disk.send(header, area, status)
        disk.canaries.write(header.address, b"\xff" * header.length)
        disk.ring.put(1, Buffer(2**63, 1 << 31, writable=True), 0xFFFF & ~2, 0xFFFF)


@hardening("2.9", "very many notifications, with nothing available")
def test_many_notifications(victim):
    disk = victim()

    with disk.must_survive():
        for _ in range(500):
            disk.kick()
