"""Requests and their status (virtio 5.2.6)."""

import errno

import pytest

from conformance.data import FAILED, mib, needed, sectors, shortest
from harness.diskspec import Fault
from harness.report import clause, described, reads_only
from harness.virtio.blk import RequestType, Status, segment
from harness.virtio.features import Feature, mask, names

UNMAP = 1
OF_SEGMENTS = pytest.mark.parametrize(
    ("kind", "feature"),
    [
        pytest.param(RequestType.DISCARD, Feature.BLK_DISCARD, id="DISCARD"),
        pytest.param(RequestType.WRITE_ZEROES, Feature.BLK_WRITE_ZEROES, id="WRITE_ZEROES"),
    ],
)
"""Runs a test with each type of request that has segments, and the feature that it needs."""


def longest(disk, kind):
    """Return the sectors that a segment of this type of request may have."""
    config = disk.driver.config()
    discard = kind is RequestType.DISCARD
    return config.max_discard_sectors if discard else config.max_write_zeroes_sectors


ZONE_REQUESTS = [kind for kind in RequestType if kind.name.startswith("ZONE_")]


@described("5.2.6-P-06")
def test_read_gives_the_contents(plug):
    disk = plug()
    disk.backing.write(40, sectors(64))

    for count in (1, 7, 64):
        completion = disk.read(40, count)
        assert completion.status is Status.OK
        assert completion.data == sectors(64)[: count * 512]
        assert completion.damage == ()


@described("5.2.6-P-07")
def test_write_changes_these_sectors_and_no_others(plug):
    disk = plug()

    for count in (1, 7, 16):
        disk.backing.write(39, sectors(count + 2, salt=3))
        completion = disk.write(40, sectors(count, salt=90))
        assert completion.status is Status.OK
        assert completion.damage == ()
        around = sectors(count + 2, salt=3)
        expected = around[:512] + sectors(count, salt=90) + around[-512:]
        assert disk.backing.read(39, count + 2) == expected


@described("5.2.6-P-02")
def test_flush_after_a_write_succeeds(plug):
    disk = plug(needs=[Feature.BLK_FLUSH])
    disk.needs_sectors(9)
    assert disk.write(8, sectors(1)).status is Status.OK

    completion = disk.flush()

    assert completion.status is Status.OK
    assert completion.damage == ()


@clause("5.2.6.2-D-03a", "5.2.6.2-D-03b")
def test_write_to_a_read_only_disk_is_refused_and_changes_nothing(plug):
    disk = plug(read_only=True, needs=[Feature.BLK_RO])
    before = disk.backing.read(0, disk.driver.config().capacity)

    for count in (1, 8):
        completion = disk.write(40, sectors(count))
        assert completion.status is Status.IOERR
        assert completion.damage == ()
    assert disk.backing.read(0, disk.driver.config().capacity) == before


@clause("5.2.6.2-D-03a")
def test_write_of_nothing_to_a_read_only_disk_is_refused(plug):
    disk = plug(read_only=True, needs=[Feature.BLK_RO])

    completion = disk.write(40, b"")

    assert completion.status is Status.IOERR
    assert completion.damage == ()


@described("5.2.6-P-08")
def test_a_read_that_the_device_cannot_do_ends_with_ioerr(plug):
    disk = plug(faults=(Fault("read", sector=42),))
    disk.backing.write(40, sectors(3))

    bad = disk.read(40, 3)
    good = disk.read(40, 2)

    assert bad.status is Status.IOERR
    assert bad.damage == ()
    assert good.status is Status.OK
    assert good.data == sectors(2)


@described("5.2.6-P-08")
def test_a_write_that_the_device_cannot_do_ends_with_ioerr(plug):
    disk = plug(faults=(Fault("write", sector=42, once=True),))

    bad = disk.write(42, sectors(1))
    again = disk.write(42, sectors(1))

    assert bad.status is Status.IOERR
    assert bad.damage == ()
    assert again.status is Status.OK
    assert disk.backing.read(42, 1) == sectors(1)


@described("5.2.6-P-08")
def test_a_full_host_disk_ends_a_write_with_ioerr(plug):
    disk = plug(faults=(Fault("write", errno=errno.ENOSPC),))

    completion = disk.write(0, sectors(1))

    assert completion.status is Status.IOERR
    assert disk.read(0).status is Status.OK


@described("5.2.6-P-08")
def test_a_flush_that_the_device_cannot_do_ends_with_ioerr(plug):
    disk = plug(faults=(Fault("flush", once=True),), needs=[Feature.BLK_FLUSH])
    # A device without a cache commits it, which may need the flush that fails.
    needed(disk.write(0, sectors(1)), "the write before the flush")

    bad, again = disk.flush(), disk.flush()

    assert bad.status is Status.IOERR
    assert bad.damage == ()
    assert again.status is Status.OK


@pytest.mark.parametrize(
    ("kind", "operation", "feature"),
    [
        (RequestType.DISCARD, "discard", Feature.BLK_DISCARD),
        (RequestType.WRITE_ZEROES, "write-zeroes", Feature.BLK_WRITE_ZEROES),
    ],
    ids=["discard", "write-zeroes"],
)
@described("5.2.6-P-08")
def test_a_discard_that_the_device_cannot_do_ends_with_ioerr(plug, kind, operation, feature):
    disk = plug(faults=(Fault(operation, once=True),), needs=[feature])
    data = segment(8, shortest(longest(disk, kind), 8))

    bad, again = disk.request(kind, data=data), disk.request(kind, data=data)

    assert bad.status is Status.IOERR
    assert bad.damage == ()
    assert again.status is Status.OK


@described("5.2.4-P-06")
def test_a_request_beyond_the_end_fails_and_changes_nothing(plug):
    disk = plug()
    end = disk.driver.config().capacity
    disk.backing.write(end - 1, sectors(1))
    size, shown = disk.backing.size, min(end, mib(2))
    before = disk.backing.read(0, shown), disk.backing.read(end - shown, shown)
    # At the end, across the end, and where 32 bits, 64-bit bytes and 64-bit sectors overflow.
    places = [(end, 1), (end - 1, 2), (2**32, 1), (2**55, 1), (2**63, 2), (2**64 - 1, 2)]

    for sector, count in places:
        if sector + count <= end:
            continue  # the disk is large enough
        reading = disk.read(sector, count)
        writing = disk.write(sector, sectors(count, salt=50))
        assert reading.status in FAILED, hex(sector)
        assert writing.status in FAILED, hex(sector)
        assert (reading.damage, writing.damage) == ((), ())
    assert disk.backing.size == size
    assert (disk.backing.read(0, shown), disk.backing.read(end - shown, shown)) == before


OF_OLD_TYPES = {2: [Feature.BLK_SCSI], 0x80000000: [Feature.BLK_BARRIER]}
"""Features of the legacy interface with which a device knows types of requests."""


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param([6, 7, 12, 17, 19, 99, 0x100, 0x7FFFFFFF, 0xFFFFFFFF], id="never-defined"),
        pytest.param([2, 3], id="legacy-scsi"),
        pytest.param([9], id="get-id-as-a-write"),
        pytest.param([0x80000000, 0x80000001], id="legacy-barrier"),
    ],
)
@described("5.2.6-P-10")
def test_a_request_of_unknown_type_ends_with_unsupp_and_changes_nothing(plug, kinds):
    disk = plug()
    offered = disk.driver.offered() & mask(*OF_OLD_TYPES.get(kinds[0], ()))
    if offered:
        pytest.skip(f"the device knows these types: it offers {', '.join(names(offered))}")
    disk.backing.write(0, sectors(8))

    for kind in kinds:
        completion = disk.request(kind, 0, sectors(1, salt=60), receive=512)
        assert completion.status is Status.UNSUPP, f"type {kind:#x}"
        assert completion.damage == ()
    assert disk.backing.read(0, 8) == sectors(8)


@clause("5.2.6.2-D-16")
def test_every_zone_request_without_zoned_ends_with_unsupp(plug):
    disk = plug(without=[Feature.BLK_ZONED])
    disk.backing.write(0, sectors(8))

    for kind in ZONE_REQUESTS:
        completion = disk.request(kind, 0, receive=512)
        assert completion.status is Status.UNSUPP, kind
        assert completion.damage == ()
    assert disk.backing.read(0, 8) == sectors(8)


@OF_SEGMENTS
@clause("5.2.6.2-D-04")
def test_every_reserved_flag_of_a_segment_ends_with_unsupp(plug, kind, feature):
    disk = plug(needs=[feature])
    disk.backing.write(0, sectors(16))
    count = shortest(longest(disk, kind), 8)

    for bit in range(1, 32):
        completion = disk.request(kind, data=segment(0, count, 1 << bit))
        assert completion.status is Status.UNSUPP, f"flag bit {bit}"
        assert completion.damage == ()
    assert disk.backing.read(0, 16) == sectors(16)


@clause("5.2.6.2-D-04")
def test_a_reserved_flag_beside_unmap_ends_with_unsupp(plug):
    disk = plug(needs=[Feature.BLK_WRITE_ZEROES])
    disk.backing.write(0, sectors(16))
    count = shortest(longest(disk, RequestType.WRITE_ZEROES), 8)

    completion = disk.write_zeroes(segment(0, count, UNMAP | 1 << 31))

    assert completion.status is Status.UNSUPP
    assert disk.backing.read(0, 16) == sectors(16)


@clause("5.2.6.2-D-05")
def test_unmap_on_a_discard_ends_with_unsupp_and_changes_nothing(plug):
    disk = plug(needs=[Feature.BLK_DISCARD])
    disk.backing.write(0, sectors(16))
    count = shortest(longest(disk, RequestType.DISCARD), 8)

    completion = disk.discard(segment(0, count, UNMAP))

    assert completion.status is Status.UNSUPP
    assert completion.damage == ()
    assert disk.backing.read(0, 16) == sectors(16)


@described("5.2.6-P-01")
def test_discard_leaves_the_sectors_around_it_alone(plug):
    disk = plug(needs=[Feature.BLK_DISCARD])
    disk.backing.write(0, sectors(64))
    count = shortest(longest(disk, RequestType.DISCARD), 48)

    completion = disk.discard(segment(8, count))

    assert completion.status is Status.OK
    assert completion.damage == ()
    assert disk.backing.read(0, 8) == sectors(64)[: 8 * 512]
    rest = 8 + count
    assert disk.backing.read(rest, 64 - rest) == sectors(64)[rest * 512 :]


@pytest.mark.parametrize("flags", [0, UNMAP], ids=["write", "unmap"])
@clause("5.2.6.2-D-08")
def test_sectors_read_as_zeroes_after_write_zeroes(plug, flags):
    disk = plug(needs=[Feature.BLK_WRITE_ZEROES])
    most = longest(disk, RequestType.WRITE_ZEROES)

    for sector, wanted in ((8, 48), (9, 1), (3, 21)):
        count = shortest(most, wanted)
        disk.backing.write(0, sectors(64))
        needed(disk.write_zeroes(segment(sector, count, flags)), "the request to write zeroes")
        after = needed(disk.read(sector, count), "the read of the zeroes")
        assert after.data == bytes(count * 512)


@pytest.mark.parametrize("flags", [0, UNMAP], ids=["write", "unmap"])
@described("5.2.6-P-40")
def test_write_zeroes_zeroes_its_segment_and_leaves_the_rest_alone(plug, flags):
    disk = plug(needs=[Feature.BLK_WRITE_ZEROES])
    most = longest(disk, RequestType.WRITE_ZEROES)

    for sector, wanted in ((8, 48), (9, 1), (3, 21)):
        count = shortest(most, wanted)
        disk.backing.write(0, sectors(64))
        completion = disk.write_zeroes(segment(sector, count, flags))
        assert completion.status is Status.OK
        assert completion.damage == ()
        end = sector + count
        assert disk.backing.read(0, sector) == sectors(64)[: sector * 512]
        assert disk.backing.read(end, 64 - end) == sectors(64)[end * 512 :]


@clause("5.2.6.2-D-08")
def test_discarded_sectors_read_as_zeroes_after_write_zeroes(plug):
    disk = plug(needs=[Feature.BLK_DISCARD, Feature.BLK_WRITE_ZEROES])
    disk.backing.write(0, sectors(32))
    discarded = shortest(longest(disk, RequestType.DISCARD), 16)
    count = shortest(longest(disk, RequestType.WRITE_ZEROES), 16)
    needed(disk.discard(segment(4, discarded)), "the discard")

    needed(disk.write_zeroes(segment(8, count, UNMAP)), "the request to write zeroes")

    assert needed(disk.read(8, count), "the read of the zeroes").data == bytes(count * 512)


@OF_SEGMENTS
@described("5.2.5-P-07")
def test_more_segments_than_the_device_takes_do_not_succeed(plug, kind, feature):
    disk = plug(needs=[feature])
    config = disk.driver.config()
    discard = kind is RequestType.DISCARD
    most = config.max_discard_seg if discard else config.max_write_zeroes_seg
    if most > 64:
        pytest.skip(f"the device takes {most} segments, and a test cannot send more than that")
    behind = most + 1
    disk.backing.write(behind, sectors(8))

    completion = disk.request(kind, data=b"".join(segment(n, 1) for n in range(behind)))

    assert completion.status in (Status.UNSUPP, Status.IOERR)
    assert completion.damage == ()
    assert disk.backing.read(behind, 8) == sectors(8)


@clause("5.2.6.2-D-04")
def test_a_reserved_flag_in_the_last_of_several_segments_ends_with_unsupp(plug):
    disk = plug(needs=[Feature.BLK_WRITE_ZEROES])
    most = disk.driver.config().max_write_zeroes_seg
    if most < 2:
        pytest.skip("max_write_zeroes_seg is 1: there is no request of several segments")

    disk.needs_sectors(16)
    count = shortest(longest(disk, RequestType.WRITE_ZEROES), 8)

    completion = disk.write_zeroes(segment(0, count), segment(8, count, 1 << 5))

    assert completion.status is Status.UNSUPP


@pytest.mark.parametrize(
    "serial", ["vblk-0123456789abcde", "short", ""], ids=["full", "short", "none"]
)
@described("5.2.6-P-03")
@reads_only
def test_get_id_gives_the_id_padded_with_nul(plug, serial):
    disk = plug(serial=serial)

    completion = disk.get_id()

    assert completion.status is Status.OK
    assert completion.data == serial.encode().ljust(20, b"\0")
    assert completion.damage == ()


@pytest.mark.parametrize("word", [1, 0x8000_0000, 0xFFFF_FFFF], ids=hex)
@described("5.2.6-P-41")
def test_the_second_word_of_a_header_changes_nothing(plug, word):
    disk = plug()
    disk.backing.write(0, sectors(16))

    reading = disk.read(8, reserved=word)
    writing = disk.write(4, sectors(1, salt=60), reserved=word)

    assert (reading.status, writing.status) == (Status.OK, Status.OK)
    assert reading.data == sectors(16)[8 * 512 : 9 * 512]
    assert disk.backing.read(4, 1) == sectors(1, salt=60)
    assert (reading.damage, writing.damage) == ((), ())
