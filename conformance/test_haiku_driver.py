"""The device as a complete driver uses it: Haiku's virtio_block.

Each request goes through the I/O scheduler of that driver and has its framing: header, data
and status in one chain, in an indirect table where the device offers INDIRECT_DESC.
"""

import errno
import threading

import pytest

from conformance.data import mib, sectors
from conformance.waiting import eventually, let_pass
from harness.diskspec import Fault
from harness.haiku.constants import Ioctl, StatusT
from harness.haiku.geometry import GEOMETRY_SIZE, DeviceGeometry, compute_geometry_size
from harness.haiku.manager import DeviceManager
from harness.haiku.module import open_disk
from harness.haiku.request import IORequest, IOVec
from harness.report import clause, described
from harness.virtio.blk import SECTOR
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature

CHUNK = 64 * 1024
"""Size of an operation that uses the driver's bounce buffer, in bytes."""

NOT_BLOCKED = 10.0
"""Seconds within which a request ends unless the disk is throttled."""


def media_status(handle):
    buffer = bytearray(4)
    assert handle.ioctl(Ioctl.B_GET_MEDIA_STATUS, buffer) is StatusT.B_OK
    return StatusT(int.from_bytes(buffer, "little", signed=True))


def device_size(handle):
    buffer = bytearray(8)
    assert handle.ioctl(Ioctl.B_GET_DEVICE_SIZE, buffer) is StatusT.B_OK
    return int.from_bytes(buffer, "little")


def geometry(handle):
    buffer = bytearray(GEOMETRY_SIZE)
    assert handle.ioctl(Ioctl.B_GET_GEOMETRY, buffer, GEOMETRY_SIZE) is StatusT.B_OK
    return DeviceGeometry.unpack(buffer)


def need_operations_of(handle, length):
    """Skip if the device's limits leave this driver only operations of fewer bytes."""
    most = handle.info.dma_resource.max_transfer
    if most < length:
        pytest.skip(
            f"by size_max, seg_max and blk_size an operation of this driver has at most {most}"
            f" bytes; this test uses {length}"
        )


def changed(handle):
    """Return True when the driver has been told that its media changed."""
    return eventually(lambda: media_status(handle) is StatusT.B_DEV_MEDIA_CHANGED)


# --- size, geometry and media


@described("3.1.1-P-01")
def test_the_driver_comes_up_with_its_own_features(plug):
    disk = plug(start=False)
    offered = disk.driver.offered()

    with open_disk(disk.driver) as handle:
        assert handle.info.features & ~offered == 0
        assert disk.driver.accepted() == handle.info.features
        assert disk.driver.status() & DeviceStatus.DRIVER_OK
        assert not disk.driver.status() & (DeviceStatus.NEEDS_RESET | DeviceStatus.FAILED)
    assert disk.driver.status() == 0


@pytest.mark.parametrize(
    ("capacity", "logical", "physical"),
    [
        (1, 512, 512),
        (mib(8) + 1, 512, 4096),
        (mib(8), 4096, 4096),
        (mib(8), 1024, 8192),
        (2**32 - 1, 512, 512),
        (2**32 + 5, 512, 4096),
        (2**34 + 8, 4096, 4096),
        (2**35 + 24, 512, 512),
    ],
    ids=["1-sector", "odd", "4k", "1k-8k", "2T-1", "2T+5", "8T-of-4k", "16T"],
)
@described("5.2.4-P-04", "5.2.5-P-03")
def test_geometry(plug, capacity, logical, physical):
    disk = plug(
        start=False,
        needs=[Feature.BLK_BLK_SIZE, Feature.BLK_TOPOLOGY],
        capacity=capacity,
        backing="null",
        logical_block_size=logical,
        physical_block_size=physical,
    )
    blocks = capacity * SECTOR // logical
    track, cylinders, heads = compute_geometry_size(blocks)

    with open_disk(disk.driver) as handle:
        assert device_size(handle) == blocks * logical
        assert geometry(handle) == DeviceGeometry(
            bytes_per_sector=logical,
            sectors_per_track=track,
            cylinder_count=cylinders,
            head_count=heads,
            device_type=0,
            removable=False,
            read_only=False,
            write_once=False,
            bytes_per_physical_sector=physical,
        )
        # This driver refuses all requests where size_max times seg_max is less than a block.
        if handle.info.dma_resource.max_transfer:
            assert handle.read((blocks - 1) * logical, logical)[0] is StatusT.B_OK


@described("5.2.6-P-05")
def test_both_ends_of_a_disk_of_more_than_2_tib_can_be_written_and_read(plug):
    capacity = 2**32 + 16
    disk = plug(start=False, capacity=capacity)
    data = sectors(4)

    with open_disk(disk.driver) as handle:
        for sector in (0, 2**32 - 2, capacity - 4):
            assert handle.write(sector * SECTOR, data) == (StatusT.B_OK, len(data))
            assert disk.backing.read(sector, 4) == data
            assert handle.read(sector * SECTOR, len(data)) == (StatusT.B_OK, data)


@clause("5.2.6.2-D-03a", "5.2.6.2-D-03b")
def test_a_read_only_disk_is_seen_as_one_and_refuses_writes(plug):
    disk = plug(start=False, read_only=True, needs=[Feature.BLK_RO])
    before = disk.backing.read(40, 8)

    with open_disk(disk.driver) as handle:
        assert geometry(handle).read_only is True
        assert handle.write(40 * SECTOR, sectors(8)) == (StatusT.EIO, 0)
        assert handle.read(40 * SECTOR, 8 * SECTOR) == (StatusT.B_OK, before)
    assert disk.backing.read(40, 8) == before


@described("5.2.6-P-11")
def test_several_disks_at_once(plug):
    manager = DeviceManager()
    disks = [plug(start=False), plug(start=False)]

    with (
        open_disk(disks[0].driver, manager=manager) as first,
        open_disk(disks[1].driver, manager=manager) as second,
    ):
        assert list(manager.devices) == [
            "disk/virtual/virtio_block/0/raw",
            "disk/virtual/virtio_block/1/raw",
        ]
        assert first.write(0, b"\x11" * SECTOR) == (StatusT.B_OK, SECTOR)
        assert second.write(0, b"\x22" * SECTOR) == (StatusT.B_OK, SECTOR)
        assert first.read(0, SECTOR) == (StatusT.B_OK, b"\x11" * SECTOR)
    assert [disk.backing.read(0, 1)[:1] for disk in disks] == [b"\x11", b"\x22"]


# --- requests of any shape


@described("5.2.6-P-06", "5.2.6-P-07")
def test_unaligned_ranges_of_a_disk_of_4k_blocks(plug):
    disk = plug(start=False, logical_block_size=4096, physical_block_size=4096)
    around = sectors(64, salt=9)
    disk.backing.write(0, around)
    expected = bytearray(around)

    with open_disk(disk.driver) as handle:
        need_operations_of(handle, 4096)
        for position, length in ((100, 50), (4000, 200), (8192, 4096), (12000, 9000), (0, 1)):
            data = sectors(18, salt=position % 180)[:length]
            expected[position : position + length] = data
            assert handle.write(position, data) == (StatusT.B_OK, length)
            assert handle.read(position, length) == (StatusT.B_OK, data)
    assert disk.backing.read(0, 64) == bytes(expected)


@pytest.mark.parametrize(
    ("count", "queue"),
    [(300, {}), (40, {"queue_size": 16}), (40, {"queue_size": 16, "seg_max_adjust": False})],
    ids=["as-it-comes", "queue-of-16", "seg_max-beyond-the-queue"],
)
@described("5.2.3-P-04")
def test_a_scatter_list_longer_than_seg_max_is_split(plug, count, queue):
    disk = plug(start=False, needs=[Feature.BLK_SEG_MAX], **queue)
    data = sectors(count)

    disk.needs_sectors(7 + count)

    with open_disk(disk.driver) as handle:
        seg_max = disk.driver.config().seg_max
        block = geometry(handle).bytes_per_sector
        if block != SECTOR:
            pytest.skip(f"the driver sees blocks of {block} bytes; this test counts in {SECTOR}")
        size = disk.driver.queue_state(0).size
        segments = min(seg_max, size - 2)
        if segments >= count:
            pytest.skip(f"the device takes {segments} segments in one request: no list is too long")
        memory = disk.driver.alloc(count * SECTOR, 4096)
        disk.driver.memory_write(memory, data)
        # The last piece comes first, so that the driver cannot merge two pieces.
        vecs = [IOVec(memory + n * SECTOR, SECTOR) for n in reversed(range(count))]
        written = IORequest(7 * SECTOR, True, vecs)
        assert handle.io(written) is StatusT.B_OK
        disk.driver.memory_write(memory, bytes(len(data)))
        read = IORequest(7 * SECTOR, False, vecs)
        assert handle.io(read) is StatusT.B_OK
        got = disk.driver.memory_read(memory, len(data))
        operations = handle.info.statistics.writes

    assert (written.status, written.transferred) == (StatusT.B_OK, len(data))
    assert (read.status, read.transferred) == (StatusT.B_OK, len(data))
    assert got == data
    backwards = b"".join(data[n * SECTOR : (n + 1) * SECTOR] for n in reversed(range(count)))
    assert disk.backing.read(7, count) == backwards
    assert operations == -(-count // segments) > 1


# --- status


@described("5.2.6-P-08")
def test_a_failing_sector_ends_a_read_with_the_bytes_before_it(plug):
    bad = 2 * CHUNK // SECTOR + 5
    disk = plug(start=False, faults=(Fault("read", sector=bad, errno=errno.EIO),))
    data = sectors(4 * CHUNK // SECTOR)
    disk.backing.write(0, data)

    with open_disk(disk.driver) as handle:
        need_operations_of(handle, CHUNK)
        status, got = handle.read(0, len(data))
        assert handle.read(3 * CHUNK, CHUNK) == (StatusT.B_OK, data[3 * CHUNK :])
        assert handle.info.statistics.errors == 1
    assert status is StatusT.EIO
    assert got == data[: 2 * CHUNK]


@described("5.2.6-P-08")
def test_a_failing_write_is_an_io_error(plug):
    disk = plug(start=False, faults=(Fault("write", sector=8, errno=errno.EIO),))

    with open_disk(disk.driver) as handle:
        assert handle.write(8 * SECTOR, sectors(1)) == (StatusT.EIO, 0)
        # Far from sector 8, so that the driver does not read or write it, however large a block is.
        assert handle.write(256 * SECTOR, sectors(1)) == (StatusT.B_OK, SECTOR)


@described("5.2.6-P-02")
def test_the_drive_cache_is_flushed(plug):
    disk = plug(start=False, needs=[Feature.BLK_FLUSH])

    with open_disk(disk.driver) as handle:
        assert handle.write(0, sectors(8))[0] is StatusT.B_OK
        assert handle.ioctl(Ioctl.B_FLUSH_DRIVE_CACHE) is StatusT.B_OK
        assert handle.info.statistics.flushes == 1


@described("5.2.6-P-08")
def test_a_flush_that_fails_is_an_io_error(plug):
    fault = Fault("flush", errno=errno.EIO)
    disk = plug(start=False, needs=[Feature.BLK_FLUSH], write_cache=True, faults=(fault,))

    with open_disk(disk.driver) as handle:
        if handle.write(0, sectors(8))[0] is not StatusT.B_OK:
            pytest.skip("the write failed: the device commits it, which needs the flush that fails")
        assert handle.ioctl(Ioctl.B_FLUSH_DRIVE_CACHE) is StatusT.EIO


# --- resize


@pytest.mark.parametrize("factor", [2, 0.5], ids=["grown", "shrunk"])
@clause("5.2.6.2-D-02")
def test_a_resize_of_an_idle_disk_changes_its_media_once(plug, factor):
    disk = plug(start=False)
    disk.needs_sectors(2)
    disk.needs_announcements()
    capacity = int(disk.spec.capacity * factor)

    with open_disk(disk.driver) as handle:
        assert media_status(handle) is StatusT.B_OK
        disk.resize(capacity)

        assert changed(handle)
        assert media_status(handle) is StatusT.B_OK
        assert device_size(handle) == capacity * SECTOR
        end = capacity * SECTOR
        assert handle.write(end - SECTOR, sectors(1)) == (StatusT.B_OK, SECTOR)
        assert handle.read(end - SECTOR, SECTOR) == (StatusT.B_OK, sectors(1))
        assert handle.read(end - SECTOR, SECTOR + 1) == (StatusT.B_BAD_VALUE, b"")


@clause("5.2.6.2-D-02")
def test_each_of_many_resizes_is_reported(plug):
    disk = plug(start=False, capacity=mib(8))
    disk.needs_known_storage()
    disk.needs_announcements()

    capacities = [mib(9), 8, large := 3 * 2**32, mib(2) + 1, mib(8)]
    if disk.spec.image == "qcow2":
        # QEMU shrinks such an image in minutes: it writes a table for each 512 MiB beyond the end.
        capacities.remove(large)
        capacities.append(large)

    with open_disk(disk.driver) as handle:
        for capacity in capacities:
            disk.resize(capacity)
            assert changed(handle), f"the change to {capacity} sectors was not reported"
            # The driver uses whole blocks only.
            size = capacity * SECTOR
            assert device_size(handle) == size - size % geometry(handle).bytes_per_sector


LOADED = {"capacity": mib(8), "queue_size": 16, "iops": 20}
"""A slow disk; its requests are split into operations of `SHARE` sectors."""

SHARE = 14


def under_load(disk, handle, resize):
    """Call `resize` while another thread writes 16 shares. Return that request and a size.

    The size (bytes) is the size that the driver knew when the request was finished.
    """
    data = sectors(SHARE)
    memory = disk.driver.alloc(len(data), 4096)
    disk.driver.memory_write(memory, data)
    vecs = [IOVec(memory + n * SECTOR, SECTOR) for n in range(SHARE)] * 16
    sizes = []
    request = IORequest(0, True, vecs, on_finished=lambda _: sizes.append(handle.info.media.size))
    writer = threading.Thread(target=handle.io, args=(request,))
    writer.start()
    started = eventually(lambda: handle.info.statistics.writes >= 2, timeout=NOT_BLOCKED)
    if started:
        resize()
    writer.join(timeout=NOT_BLOCKED * 3)
    assert started and not writer.is_alive()
    shares, rest = divmod(request.transferred, len(data))
    assert rest == 0
    # The disk may have shrunk after the last write.
    left = min(shares * SHARE, disk.backing.size // SECTOR)
    assert disk.backing.read(0, left) == (data * shares)[: left * SECTOR]
    (size,) = sizes
    return request, size


def need_announced(size, capacity):
    """Skip unless the driver knew the new size in time; the tests of 5.2.6.2-D-02 check that."""
    if size != capacity * SECTOR:
        pytest.skip("the driver did not know the new size while its request ran")


@described("5.2.4-P-06")
def test_a_disk_that_grows_under_load_is_written_on(plug):
    disk = plug(start=False, **LOADED)

    with open_disk(disk.driver) as handle:
        request, size = under_load(disk, handle, lambda: disk.resize(mib(16)))
        need_announced(size, mib(16))

        assert (request.status, request.transferred) == (StatusT.B_OK, 16 * SHARE * SECTOR)
        assert media_status(handle) is StatusT.B_DEV_MEDIA_CHANGED


@described("5.2.4-P-06")
def test_a_disk_that_shrinks_under_load_is_written_up_to_its_new_end(plug):
    disk = plug(start=False, **LOADED)
    shares = 12
    end = shares * SHARE
    written = []

    with open_disk(disk.driver) as handle:

        def shrink():
            disk.resize(end)
            written.append(handle.info.statistics.writes)

        request, size = under_load(disk, handle, shrink)
        need_announced(size, end)
        if written[0] >= shares:
            pytest.skip("the disk was written up to its new end before it had shrunk")

        assert (request.status, request.transferred) == (StatusT.EIO, end * SECTOR)
        assert media_status(handle) is StatusT.B_DEV_MEDIA_CHANGED
        assert device_size(handle) == end * SECTOR


# --- requests that take too long


def read_in_vain(handle, position, length):
    """Read from a disk of two operations a second until one times out; return that operation."""
    for _ in range(20):
        handle.info.timeout = 0.1
        status, _ = handle.read(position, length)
        handle.info.timeout = NOT_BLOCKED
        if status is StatusT.EIO:
            (operation,) = handle.info.in_device()
            return operation
    pytest.skip("no read timed out: the device is quicker than two operations a second")


@described("2.7.8-P-01")
def test_a_late_completion_is_not_taken_for_another_request(plug):
    disk = plug(start=False, iops=2)
    old, new = sectors(1, salt=3), sectors(1, salt=120)
    disk.backing.write(8, old)
    disk.backing.write(9, new)

    with open_disk(disk.driver) as handle:
        read_in_vain(handle, 8 * SECTOR, SECTOR)
        assert handle.read(9 * SECTOR, SECTOR) == (StatusT.B_OK, new)
        assert handle.info.in_device() == []
        seen = handle.info.statistics
        assert (seen.timeouts, seen.late_completions) == (1, 1)


MOST_BLOCKS = 32


@clause("2.4.1-D-02")
def test_nothing_in_flight_is_touched_after_the_disk_was_closed(plug):
    disk = plug(start=False, iops=2)
    disk.backing.write(0, sectors(2 * CHUNK // SECTOR))

    with open_disk(disk.driver) as handle:
        operation = read_in_vain(handle, CHUNK, CHUNK)
        first, last = operation.vecs[0], operation.vecs[-1]

    assert disk.driver.status() == 0
    # The driver has freed its memory, so its buffers are allocated again here, after its queues.
    blocks = [disk.driver.alloc(CHUNK, 4096)]
    while blocks[-1] + CHUNK < last.base + last.length:
        blocks.append(disk.driver.alloc(CHUNK, 4096))
        if len(blocks) == MOST_BLOCKS:
            pytest.skip(f"the buffers are not within the first {MOST_BLOCKS} blocks of free memory")
    assert blocks[0] <= first.base, "the harness allocates memory in another order"
    let_pass(0.8)
    for block in blocks:
        assert disk.driver.memory_read(block, CHUNK) == bytes(CHUNK)
