"""DISCARD and WRITE_ZEROES: their limits, and the sectors they must not change (virtio 5.2.6)."""

import pytest

from conformance.data import mib, needed, sectors, shortest
from conformance.waiting import trouble
from harness.driver.interface import Request
from harness.report import clause, described
from harness.virtio.blk import SEGMENT_UNMAP, RequestType, Status, segment
from harness.virtio.features import Feature

BOTH = [RequestType.DISCARD, RequestType.WRITE_ZEROES]
NEEDS = {
    RequestType.DISCARD: [Feature.BLK_DISCARD],
    RequestType.WRITE_ZEROES: [Feature.BLK_WRITE_ZEROES],
}


LIMITS = {
    RequestType.DISCARD: {"max_discard_sectors": 384},
    RequestType.WRITE_ZEROES: {"max_write_zeroes_sectors": 384},
}


def by_name(value):
    return value.name.lower()


def check_failed(completion, case=""):
    """Assert that a request failed and changed nothing else."""
    assert completion.status in (Status.IOERR, Status.UNSUPP), case
    assert completion.damage == (), case


@pytest.mark.parametrize("kind", BOTH, ids=by_name)
@described("5.2.5-P-07")
def test_a_segment_can_be_as_long_as_the_device_says_and_no_longer(plug, kind):
    disk = plug(needs=NEEDS[kind], **LIMITS[kind])
    disk.backing.write(0, sectors(1024))
    config = disk.driver.config()
    discard = kind is RequestType.DISCARD
    most = config.max_discard_sectors if discard else config.max_write_zeroes_sectors
    assert most == 384

    check_failed(disk.request(kind, data=segment(0, most + 1)))
    check_failed(disk.request(kind, data=segment(8, 2 * most)))
    assert disk.backing.read(0, 1024) == sectors(1024)
    completion = disk.request(kind, data=segment(8, most))

    assert completion.status is Status.OK
    assert completion.damage == ()
    assert disk.backing.read(0, 8) == sectors(1024)[: 8 * 512]
    assert disk.backing.read(392, 632) == sectors(1024)[392 * 512 :]


@pytest.mark.parametrize("kind", BOTH, ids=by_name)
@described("5.2.4-P-06")
def test_a_segment_beyond_the_end_fails_and_changes_nothing(plug, kind):
    disk = plug(needs=NEEDS[kind])
    end = disk.driver.config().capacity
    size = disk.backing.size
    disk.backing.write(0, sectors(8))
    disk.backing.write(end - 8, sectors(8, salt=9))
    # At the end, across the end, and where 64-bit byte counts and sector numbers overflow.
    places = [(end, 8), (end - 4, 8), (2**55, 8), (2**63, 8), (2**64 - 4, 8)]

    for sector, count in places:
        check_failed(disk.request(kind, data=segment(sector, count)), case=f"{sector:#x}, {count}")

    assert disk.backing.size == size
    assert disk.backing.read(0, 8) == sectors(8)
    assert disk.backing.read(end - 8, 8) == sectors(8, salt=9)


LARGE = mib(4104)
"""Sectors of a disk of more than 4 GiB, of which a test uses little."""


@pytest.mark.parametrize("kind", BOTH, ids=by_name)
@described("5.2.5-P-07")
def test_a_segment_can_be_as_long_as_the_limit_that_the_device_has_by_itself(plug, kind):
    """Often that is 2 GiB or more, whose bytes do not fit into 31 bits."""
    disk = plug(needs=NEEDS[kind], capacity=LARGE)
    config = disk.driver.config()
    discard = kind is RequestType.DISCARD
    if not discard and not config.write_zeroes_may_unmap:
        pytest.skip("the device cannot zero a large segment without writing it")
    most = config.max_discard_sectors if discard else config.max_write_zeroes_sectors
    count = min(most or LARGE, config.capacity - 16)
    disk.backing.write(0, sectors(9))
    disk.backing.write(7 + count, sectors(9, salt=9))

    flags = 0 if discard else SEGMENT_UNMAP
    tokens = disk.driver.submit([Request(kind, data=segment(8, count, flags))])
    done = []
    if late := trouble(lambda: done.extend(disk.driver.complete(tokens, timeout=30))):
        pytest.skip(f"a device may take long for {count} sectors: {late}")
    (completion,) = done

    assert completion.status == Status.OK, f"a segment of {count} sectors"
    assert completion.damage == ()
    assert disk.backing.read(0, 8) == sectors(8)
    assert disk.backing.read(8 + count, 8) == sectors(9, salt=9)[512:]
    if not discard:
        assert disk.backing.read(8, 1) == disk.backing.read(7 + count, 1) == bytes(512)


@pytest.mark.parametrize("kind", BOTH, ids=by_name)
@described("5.2.5-P-07")
def test_a_segment_may_be_the_whole_disk(plug, kind):
    disk = plug(needs=NEEDS[kind], prefer={"capacity": 64})
    config = disk.driver.config()
    discard = kind is RequestType.DISCARD
    most = config.max_discard_sectors if discard else config.max_write_zeroes_sectors
    if not config.capacity <= min(most or 2**32, 2**16):
        pytest.skip(f"the disk has {config.capacity} sectors, more than one segment may have")
    disk.backing.write(0, sectors(config.capacity))

    completion = disk.request(kind, data=segment(0, config.capacity))

    assert completion.status is Status.OK
    assert completion.damage == ()
    assert discard or disk.backing.read(0, config.capacity) == bytes(512 * config.capacity)
    assert disk.driver.config().capacity == config.capacity
    assert disk.read(config.capacity - 1).status is Status.OK


@pytest.mark.parametrize("kind", BOTH, ids=by_name)
@described("5.2.5-P-06")
def test_a_segment_need_not_be_aligned(plug, kind):
    disk = plug(physical_block_size=4096, needs=NEEDS[kind])
    disk.backing.write(0, sectors(64))

    config = disk.driver.config()
    discard = kind is RequestType.DISCARD
    most = config.max_discard_sectors if discard else config.max_write_zeroes_sectors

    for sector, wanted in ((3, 5), (9, 1), (17, 30)):
        count = shortest(most, wanted)
        completion = disk.request(kind, data=segment(sector, count))
        assert completion.status is Status.OK, f"{count} sectors from {sector}"
        assert completion.damage == ()

    assert disk.backing.read(0, 3) == sectors(64)[: 3 * 512]
    assert disk.backing.read(47, 17) == sectors(64)[47 * 512 :]


@pytest.mark.parametrize("kind", BOTH, ids=by_name)
@described("5.2.5-P-09")
def test_a_read_only_disk_is_neither_discarded_nor_zeroed(plug, kind):
    """A discard may end with OK: it writes nothing, and a device may ignore it (5.2.6.2-D-06)."""
    disk = plug(read_only=True, needs=[Feature.BLK_RO])
    allocated, before = disk.backing.allocated, disk.backing.read(0, 64)

    for segments in (segment(0, 64), segment(0, 64) * 2):
        completion = disk.request(kind, data=segments)
        if kind is RequestType.DISCARD and completion.status is Status.OK:
            assert completion.damage == ()
        else:
            check_failed(completion)
    assert disk.backing.read(0, 64) == before
    assert disk.backing.allocated == allocated


@pytest.mark.parametrize("unmap", [True, False], ids=["store-unmaps", "store-does-not"])
@clause("5.2.6.2-D-09")
def test_write_zeroes_may_unmap_says_whether_it_can_deallocate(plug, unmap):
    disk = plug(unmap=unmap, needs=[Feature.BLK_WRITE_ZEROES])
    disk.backing.write(0, sectors(2048))
    before = disk.backing.allocated
    if before < 2048 * 512:
        pytest.skip("the host's file system does not show what is allocated")
    config = disk.driver.config()
    may_unmap, count = config.write_zeroes_may_unmap, config.max_write_zeroes_sectors

    for at in range(0, 2048, shortest(count, 2048)):
        segments = segment(at, min(shortest(count, 2048), 2048 - at), SEGMENT_UNMAP)
        needed(disk.write_zeroes(segments), "the request to write zeroes")
    deallocated = disk.backing.allocated < before

    if unmap and not deallocated:
        pytest.skip("nothing was deallocated; the device may still be able to")
    assert may_unmap == int(deallocated), (
        f"write_zeroes_may_unmap is {may_unmap}; storage was deallocated: {deallocated}"
    )
