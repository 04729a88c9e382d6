"""IN_ORDER: buffers are used in the order in which they became available (virtio 2.7.9, 2.8.9)."""

import struct

import pytest

from conformance.data import FAILED, needed, sectors
from conformance.rings import limit_queue
from conformance.waiting import SOON, trouble, until_completed
from harness.diskspec import Fault
from harness.driver.interface import Request
from harness.report import clause, described, reads_only
from harness.virtio.blk import ID_LENGTH, RequestType, Status
from harness.virtio.features import Feature
from harness.virtio.ring import DESC_SIZE, PACKED_DESC, PACKED_DESC_F_AVAIL, PACKED_DESC_F_USED

NOTHING = 0xFFFF_FFFF
"""The id of a used element that the device has not written; no chain has this id."""

IDENTITY = Request(RequestType.GET_ID, receive=ID_LENGTH)


@pytest.fixture(params=["split", "packed"])
def ordered(plug, request):
    """Factory of disks that use buffers in order, with a split or a packed virtqueue."""

    def make(**arguments):
        if request.param == "split":
            return plug(in_order=True, extra=[Feature.IN_ORDER], **arguments)
        extra = [Feature.IN_ORDER, Feature.RING_PACKED]
        return plug(in_order=True, packed=True, extra=extra, **arguments)

    make.packed = request.param == "packed"
    return make


def read(sector, count=1, **framing):
    return Request(RequestType.IN, sector, receive=512 * count, **framing)


def descriptors(request):
    """Return the number of ring descriptors of a request: one for each piece that is not empty."""
    readable = request.readable or (16, len(request.data))
    writable = request.writable or (request.receive, 1)
    return sum(length > 0 for length in (*readable, *writable))


def used_in_split_ring(disk, requests, start=0):
    """Return for each used ring slot from `start` on the request its element names, or None."""
    queue, driver = disk.queues[0], disk.driver
    available = struct.unpack(
        f"<{queue.size}H", driver.memory_read(queue.driver + 4, 2 * queue.size)
    )
    used = list(struct.iter_unpack("<II", driver.memory_read(queue.device + 4, 8 * queue.size)))
    slots = [(start + n) % queue.size for n in range(len(requests))]
    heads = [available[slot] for slot in slots]
    ids = [used[slot][0] for slot in slots]
    return [None if ident == NOTHING else heads.index(ident) for ident in ids]


def used_in_packed_ring(disk, requests):
    """Return for each request's first slot the request its used descriptor names, or None."""
    queue = disk.queues[0]
    ring = list(
        PACKED_DESC.iter_unpack(disk.driver.memory_read(queue.desc, DESC_SIZE * queue.size))
    )
    starts, ids, at = [], [], 0
    for request in requests:
        starts.append(at)
        at += descriptors(request)
        ids.append(ring[at - 1][2])  # of a chain a device writes the first descriptor or none
    used = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED
    written = {at for at, descriptor in enumerate(ring) if descriptor[3] & used == used}
    assert written <= set(starts), "a used descriptor is at a slot where no chain begins"
    return [ids.index(ring[at][2]) if at in written else None for at in starts]


def check_order(used):
    """Assert that each used element is at the first buffer of its batch and names the last."""
    at = 0
    while at < len(used):
        last = used[at]
        assert last is not None, f"no used element at the place of buffer {at}: {used}"
        assert last >= at, f"buffer {last} was used after buffer {at}: {used}"
        assert used[at + 1 : last + 1] == [None] * (last - at), f"out of order: {used}"
        at = last + 1


def submit(ordered, disk, requests):
    """Make requests available on an idle queue, and return their tokens."""
    queue = disk.queues[0]
    count = sum(map(descriptors, requests))
    if count > queue.size:
        pytest.skip(f"the queue has {queue.size} descriptors, and this test uses {count}")
    if not ordered.packed:
        elements = struct.pack("<II", NOTHING, 0) * queue.size
        disk.driver.memory_write(queue.device + 4, elements)
    return disk.driver.submit(requests)


def check_used_in_order(ordered, disk, requests):
    used_in_ring = used_in_packed_ring if ordered.packed else used_in_split_ring
    check_order(used_in_ring(disk, requests))


def some_of_each(disk):
    """Return long, short and failing requests, each of a kind that the device offers."""
    config = disk.driver.config()
    long = min(2048, config.capacity, (config.size_max or 0) // 512 or 2048)
    requests = [
        read(0, long),
        IDENTITY,
        read(1),
        read(2, 4, writable=(512, 1, 511, 1024, 1)),
        read(0, max(long // 2, 1)),
        read(2**40),
        IDENTITY,
        read(8),
    ]
    if disk.driver.accepted() & Feature.BLK_FLUSH.mask:
        requests.insert(4, Request(RequestType.FLUSH))
    return requests


@clause("6.2-D-05")
@reads_only
def test_long_and_short_requests_are_used_in_order(ordered):
    disk = ordered()
    disk.needs_sectors(9)
    requests = some_of_each(disk)

    tokens = submit(ordered, disk, requests)
    disk.driver.complete(tokens)

    check_used_in_order(ordered, disk, requests)


@pytest.mark.parametrize(
    "fields", [{"iops": 25}, {"faults": (Fault("read", 8),)}], ids=["slow", "failing"]
)
@clause("6.2-D-05")
def test_slow_and_failing_requests_are_used_in_order(ordered, fields):
    disk = ordered(**fields)
    disk.needs_sectors(9)
    requests = [Request(99, receive=512), *some_of_each(disk)]

    tokens = submit(ordered, disk, requests)
    seen = []
    for done in until_completed(disk, tokens):
        if done != seen:
            assert done == tokens[: len(done)], f"{tokens} were used as {done}"
        seen = done
    disk.driver.complete(tokens)

    check_used_in_order(ordered, disk, requests)


@described("5.2.6-P-12")
def test_requests_that_are_used_in_order_end_as_each_of_them_says(ordered):
    disk = ordered(needs=[Feature.BLK_FLUSH])
    disk.backing.write(0, sectors(16))
    requests = {
        "read": read(1),
        "id": IDENTITY,
        "write": Request(RequestType.OUT, 8, sectors(1, salt=50)),
        "unknown": Request(99, receive=512),
        "beyond": read(2**40),
        "read back": read(8, 2, writable=(1, 1023, 1)),
        "flush": Request(RequestType.FLUSH),
        "read again": read(1),
    }

    # Each is made available once the one before it is used: so the write is read back.
    answers = {name: disk.send(request) for name, request in requests.items()}
    together = disk.driver.complete(submit(ordered, disk, list(requests.values())))

    for ends in (answers, dict(zip(requests, together, strict=True))):
        statuses = {name: answer.status for name, answer in ends.items()}
        assert statuses.pop("unknown") == Status.UNSUPP
        assert statuses.pop("beyond") in FAILED
        assert set(statuses.values()) == {Status.OK}, statuses
    assert {answer.damage for answer in (*answers.values(), *together)} == {()}
    assert answers["read"].data == answers["read again"].data == sectors(16)[512:1024]
    assert answers["read back"].data == sectors(1, salt=50) + sectors(16)[9 * 512 : 10 * 512]


@clause("6.2-D-05")
@reads_only
def test_the_order_lasts_over_many_rounds_of_a_small_queue(ordered):
    disk = ordered(driver_queue_size=16)
    disk.needs_sectors(48)
    whole = needed(disk.read(0, 40), "the read of the first 40 sectors")

    done = 1
    for n in range(40):
        requests = [read(n), IDENTITY, read(n, 8), read(39 - n)][: 1 + n % 4]
        completions = disk.driver.complete(submit(ordered, disk, requests))
        if not ordered.packed:  # in a packed ring the driver itself finds no other order
            check_order(used_in_split_ring(disk, requests, done))
        done += len(requests)
        assert completions[0].data == whole.data[512 * n : 512 * (n + 1)], n


@clause("6.2-D-05")
@reads_only
def test_the_order_lasts_around_the_end_of_the_largest_queue(ordered):
    disk = ordered()
    disk.needs_descriptors(42)
    size = limit_queue(disk)
    # A device has an id at once, but has to use it after the slow read before it.
    requests = ([read(0, 64)] + [IDENTITY] * 6) * (size // 42)

    disk.needs_sectors(64)

    def batch():
        disk.driver.complete(disk.driver.submit(requests), timeout=SOON)

    for _ in range(3 * size // len(requests) + 1):
        assert trouble(batch) is None
