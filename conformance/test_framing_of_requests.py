"""Lengths and limits of requests: unusual lengths and the largest (virtio 5.2.4, 5.2.5, 5.2.6)."""

import pytest

from conformance.data import FAILED, needed, sectors
from harness.driver.interface import CANARY
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import CONFIG_FIELD, ID_LENGTH, LIFETIME, RequestType, Status, segment
from harness.virtio.features import Feature

MOST = 1 << 20
"""The most bytes of data that a test puts into one request."""


# --- data that is not a whole number of sectors, and id buffers that are not 20 bytes


@pytest.mark.parametrize("length", [1, 100, 511, 513, 1000])
@described("5.2.6-P-08")
def test_a_read_of_no_whole_sectors_fails(plug, length):
    disk = plug()
    disk.backing.write(40, sectors(2))

    completion = disk.request(RequestType.IN, 40, receive=length)

    assert completion.status in FAILED
    assert completion.damage == ()


@pytest.mark.parametrize("length", [1, 100, 511, 513, 1000])
@described("5.2.6-P-08")
def test_a_write_of_no_whole_sectors_fails_and_changes_nothing(plug, length):
    disk = plug()
    disk.backing.write(40, sectors(2))

    completion = disk.request(RequestType.OUT, 40, sectors(2, salt=99)[:length])

    assert completion.status in FAILED
    assert completion.damage == ()
    assert disk.backing.read(40, 2) == sectors(2)


@pytest.mark.parametrize("length", [1, 10, 19, 21, 64])
@described("5.2.6-P-03")
def test_get_id_into_another_length_than_20_stays_within_it(plug, length):
    serial = "vblk-0123456789abcde"
    disk = plug(serial=serial)

    completion = disk.request(RequestType.GET_ID, receive=length)

    assert completion.damage == ()
    if completion.status is Status.OK:
        known = min(length, ID_LENGTH)
        written = completion.data[:known].rstrip(bytes([CANARY]))
        assert serial.encode().startswith(written.rstrip(b"\0"))


# --- the largest requests


@described("5.2.3-P-04")
@reads_only
def test_a_request_can_have_seg_max_segments(plug):
    disk = plug(needs=[Feature.BLK_SEG_MAX])
    seg_max = disk.driver.config().seg_max
    room = disk.queues[0].size - 2
    if seg_max > room:
        pytest.skip(f"seg_max is {seg_max}, and the queue has room for {room} segments")

    disk.needs_sectors(seg_max)

    completion = disk.read(0, seg_max, writable=(*[512] * seg_max, 1))

    assert completion.status is Status.OK
    assert completion.data == needed(disk.read(0, seg_max), "the same read in one segment").data
    assert completion.damage == ()


@described("5.2.3-P-05")
@reads_only
def test_a_segment_can_have_size_max_bytes(plug):
    disk = plug(needs=[Feature.BLK_SIZE_MAX])
    size_max = disk.driver.config().size_max
    assert size_max, "size_max is 0"
    config = disk.driver.config()
    room = min(config.capacity, config.zone_sectors or config.capacity) * 512
    length = min(size_max, MOST, room) // 512 * 512
    if not length:
        pytest.skip(f"size_max is {size_max}: less than a sector")

    completion = disk.request(RequestType.IN, 0, receive=length, writable=(length, 1))

    assert completion.status is Status.OK
    assert completion.damage == ()
    for sector in range(0, length // 512, 64):
        count = min(64, length // 512 - sector)
        at = sector * 512
        expected = needed(disk.read(sector, count), "a read of fewer sectors").data
        assert completion.data[at : at + count * 512] == expected


# --- block size and geometry


@described("5.2.5-P-04")
def test_a_disk_of_larger_blocks_is_read_and_written_by_the_sector(plug):
    disk = plug(logical_block_size=4096, needs=[Feature.BLK_BLK_SIZE])
    disk.backing.write(0, sectors(16))
    assert disk.driver.config().blk_size == 4096

    reading = disk.read(3, 1)
    writing = disk.write(9, sectors(1, salt=99))

    assert reading.status is Status.OK, "a sector was not read"
    assert reading.data == sectors(16)[3 * 512 : 4 * 512]
    assert writing.status is Status.OK, "a sector was not written"
    expected = sectors(16)[: 9 * 512] + sectors(1, salt=99) + sectors(16)[10 * 512 :]
    assert disk.backing.read(0, 16) == expected
    assert (reading.damage, writing.damage) == ((), ())


@described("5.2.3-P-03")
@reads_only
def test_geometry_is_that_of_the_disk(plug):
    disk = plug(geometry=(130, 12, 10), needs=[Feature.BLK_GEOMETRY])

    config = disk.driver.config()

    assert (config.cylinders, config.heads, config.sectors) == (130, 12, 10)


# --- requests whose feature is not offered


@pytest.mark.parametrize(
    ("feature", "kind", "data", "receive"),
    [
        pytest.param(
            Feature.BLK_LIFETIME,
            RequestType.GET_LIFETIME,
            b"",
            LIFETIME.size,
            id="lifetime",
        ),
        pytest.param(
            Feature.BLK_SECURE_ERASE,
            RequestType.SECURE_ERASE,
            segment(0, 8),
            0,
            id="secure-erase",
        ),
    ],
)
@described("5.2.6-P-10")
def test_a_request_that_the_device_does_not_offer_ends_with_unsupp(
    plug, feature, kind, data, receive
):
    disk = plug()
    if disk.driver.offered() & feature.mask:
        pytest.skip(f"the device offers {feature.name}")
    disk.backing.write(0, sectors(8))

    completion = disk.request(kind, 0, data, receive)

    assert completion.status is Status.UNSUPP
    assert completion.damage == ()
    assert disk.backing.read(0, 8) == sectors(8)


# --- the legacy interface


GUEST = "little"
"""The byte order of the guests. The legacy interface is only tested on x86 guests."""


@on("legacy")
@clause("5.2.4.1-L-01")
def test_a_legacy_configuration_is_in_the_byte_order_of_the_guest(plug):
    disk = plug(start=False, capacity=0x123450, logical_block_size=4096)
    capacity, blk_size = CONFIG_FIELD["capacity"], CONFIG_FIELD["blk_size"]
    driver = disk.driver

    assert int.from_bytes(driver.config_read(capacity.offset, 8), GUEST) == 0x123450
    assert int.from_bytes(driver.config_read(blk_size.offset, 4), GUEST) == 4096


@on("legacy")
@clause("5.2.6.3-L-01")
def test_a_legacy_request_is_in_the_byte_order_of_the_guest(plug):
    disk = plug()
    disk.backing.write(0x123, sectors(1))

    completion = disk.read(0x123, 1)
    written = disk.write(0x1234, sectors(1, salt=70))

    assert completion.data == sectors(1)
    assert written.status is Status.OK
    assert disk.backing.read(0x1234, 1) == sectors(1, salt=70)
