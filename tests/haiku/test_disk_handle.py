"""Handles, and the answers to ioctls."""

import pytest
from device_model import DeviceModel

from harness.haiku.constants import Ioctl, StatusT
from harness.haiku.geometry import GEOMETRY_SIZE, DeviceGeometry
from harness.haiku.icon import DEVICE_ICON_SIZE, DRIVE_ICON, DeviceIcon
from harness.haiku.manager import DeviceManager
from harness.haiku.module import open_disk
from harness.haiku.request import IORequest

MEDIA_CHANGED = (StatusT.B_DEV_MEDIA_CHANGED).to_bytes(4, "little", signed=True)


def test_status_values_are_haikus():
    assert StatusT.EIO == -2147483647
    assert StatusT.B_BUSY == -2147483634
    assert StatusT.B_BAD_ADDRESS == -2147478783
    assert StatusT.B_FILE_ERROR == -2147459072
    assert StatusT.ENOTSUP == -2147454920
    assert StatusT.B_DEV_INVALID_IOCTL == -2147442688
    assert StatusT.B_DEV_MEDIA_CHANGED == -2147442675


def test_media_status_is_read_and_cleared():
    device = DeviceModel()
    with open_disk(device) as disk:
        buffer = bytearray(b"\xee" * 6)
        assert disk.ioctl(Ioctl.B_GET_MEDIA_STATUS, buffer) is StatusT.B_OK
        assert buffer == bytes(4) + b"\xee\xee"
        device.resize(4096)
        assert disk.ioctl(Ioctl.B_GET_MEDIA_STATUS, buffer) is StatusT.B_OK
        assert buffer == MEDIA_CHANGED + b"\xee\xee"
        assert disk.ioctl(Ioctl.B_GET_MEDIA_STATUS, buffer) is StatusT.B_OK
        assert buffer == bytes(4) + b"\xee\xee"


@pytest.mark.parametrize("buffer", [None, bytearray(3)])
def test_a_media_change_that_could_not_be_copied_is_kept(buffer):
    """Keep the status when the copy to the caller fails; Haiku's driver clears it."""
    device = DeviceModel()
    with open_disk(device) as disk:
        device.resize(4096)
        assert disk.ioctl(Ioctl.B_GET_MEDIA_STATUS, buffer) is StatusT.B_BAD_ADDRESS
        good = bytearray(4)
        disk.ioctl(Ioctl.B_GET_MEDIA_STATUS, good)
    assert good == MEDIA_CHANGED


@pytest.mark.parametrize(
    ("capacity", "blk_size", "size"),
    [(2048, None, 2**20), (17, 4096, 8192), (2**32 + 5, 512, (2**32 + 5) * 512)],
)
def test_device_size_is_in_bytes_and_whole_blocks(capacity, blk_size, size):
    with open_disk(DeviceModel(capacity=capacity, blk_size=blk_size)) as disk:
        buffer = bytearray(8)
        assert disk.ioctl(Ioctl.B_GET_DEVICE_SIZE, buffer) is StatusT.B_OK
        assert int.from_bytes(buffer, "little") == size
        assert disk.ioctl(Ioctl.B_GET_DEVICE_SIZE, bytearray(7)) is StatusT.B_BAD_ADDRESS
        assert disk.ioctl(Ioctl.B_GET_DEVICE_SIZE) is StatusT.B_BAD_ADDRESS


@pytest.mark.parametrize("read_only", [False, True])
def test_geometry(read_only):
    device = DeviceModel(2**33 + 8, 4096, physical_block_exp=2, read_only=read_only)
    with open_disk(device) as disk:
        buffer = bytearray(GEOMETRY_SIZE)
        assert disk.ioctl(Ioctl.B_GET_GEOMETRY, buffer, GEOMETRY_SIZE) is StatusT.B_OK
    assert DeviceGeometry.unpack(buffer) == DeviceGeometry(
        bytes_per_sector=4096,
        sectors_per_track=2**30 + 1,
        cylinder_count=1,
        head_count=1,
        device_type=0,
        removable=False,
        read_only=read_only,
        write_once=False,
        bytes_per_physical_sector=16384,
    )


def test_geometry_may_be_asked_for_in_part_but_not_for_more():
    with open_disk(DeviceModel()) as disk:
        whole, part = bytearray(GEOMETRY_SIZE), bytearray(b"\xee" * GEOMETRY_SIZE)
        disk.ioctl(Ioctl.B_GET_GEOMETRY, whole, GEOMETRY_SIZE)
        assert disk.ioctl(Ioctl.B_GET_GEOMETRY, part, 8) is StatusT.B_OK
        assert part == whole[:8] + b"\xee" * (GEOMETRY_SIZE - 8)
        for buffer, length, status in (
            (whole, GEOMETRY_SIZE + 1, StatusT.B_BAD_VALUE),
            (whole, -1, StatusT.B_BAD_VALUE),
            (None, GEOMETRY_SIZE, StatusT.B_BAD_VALUE),
            (bytearray(8), GEOMETRY_SIZE, StatusT.B_BAD_ADDRESS),
        ):
            assert disk.ioctl(Ioctl.B_GET_GEOMETRY, buffer, length) is status


def test_icon_name():
    with open_disk(DeviceModel()) as disk:
        buffer = bytearray(b"\xee" * 256)
        assert disk.ioctl(Ioctl.B_GET_ICON_NAME, buffer) is StatusT.B_OK
        assert buffer[:24] == b"devices/drive-harddisk\0\xee"
        assert disk.ioctl(Ioctl.B_GET_ICON_NAME, bytearray(22)) is StatusT.B_BAD_ADDRESS


def test_the_icon_is_a_haiku_vector_icon_of_the_seeds_length():
    assert len(DRIVE_ICON) == 270
    assert DRIVE_ICON[:4] == b"ncif"


@pytest.mark.parametrize("room", [270, 271, 4096])
def test_vector_icon_is_copied_where_there_is_room(room):
    with open_disk(DeviceModel()) as disk:
        icon = DeviceIcon(room, bytearray(b"\xee" * room))
        assert disk.ioctl(Ioctl.B_GET_VECTOR_ICON, icon, DEVICE_ICON_SIZE) is StatusT.B_OK
    assert icon.icon_size == 270
    assert icon.icon_data == DRIVE_ICON + b"\xee" * (room - 270)


@pytest.mark.parametrize("room", [-1, 0, 269])
def test_vector_icon_returns_its_size_where_there_is_no_room(room):
    with open_disk(DeviceModel()) as disk:
        icon = DeviceIcon(room, bytearray(b"\xee" * 269))
        assert disk.ioctl(Ioctl.B_GET_VECTOR_ICON, icon, DEVICE_ICON_SIZE) is StatusT.B_OK
    assert (icon.icon_size, icon.icon_data) == (270, b"\xee" * 269)


def test_vector_icon_rules_for_bad_calls():
    with open_disk(DeviceModel()) as disk:
        for buffer, length, status in (
            (DeviceIcon(270, bytearray(270)), DEVICE_ICON_SIZE - 1, StatusT.B_BAD_VALUE),
            (DeviceIcon(270, bytearray(270)), DEVICE_ICON_SIZE + 1, StatusT.B_BAD_VALUE),
            (None, DEVICE_ICON_SIZE, StatusT.B_BAD_ADDRESS),
            (DeviceIcon(270, None), DEVICE_ICON_SIZE, StatusT.B_BAD_ADDRESS),
            (DeviceIcon(270, bytearray(269)), DEVICE_ICON_SIZE, StatusT.B_BAD_ADDRESS),
        ):
            assert disk.ioctl(Ioctl.B_GET_VECTOR_ICON, buffer, length) is status


@pytest.mark.parametrize("op", [0, 2, 8, 14, 21, 24, 25, 9999, -1, 2**32])
def test_any_other_ioctl_is_invalid(op):
    device = DeviceModel()
    with open_disk(device) as disk:
        buffer = bytearray(b"\xee" * 64)
        assert disk.ioctl(op, buffer, 64) is StatusT.B_DEV_INVALID_IOCTL
    assert buffer == b"\xee" * 64
    assert device.sent == []


def test_writes_to_a_read_only_disk_are_the_devices_to_refuse():
    device = DeviceModel(read_only=True)
    with open_disk(device) as disk:
        assert disk.write(0, bytes(512)) == (StatusT.EIO, 0)
        assert disk.read(0, 512)[0] is StatusT.B_OK


def test_two_handles_share_a_disk_that_goes_down_with_the_last():
    device = DeviceModel()
    with open_disk(device) as first:
        manager = DeviceManager()
        manager.publish_device("disk", first.info, "module")
        second = manager.open("disk")
        assert second is StatusT.B_BUSY, "another manager's disk is up already"

    info = first.info
    manager = DeviceManager()
    manager.publish_device("disk", info, "module")
    handle_1, handle_2 = manager.open("disk"), manager.open("disk")
    assert handle_1.write(0, b"x" * 512) == (StatusT.B_OK, 512)
    assert handle_1.close() is StatusT.B_OK
    assert handle_1.free() is StatusT.B_OK
    assert handle_2.read(0, 512) == (StatusT.B_OK, b"x" * 512)
    assert device.status_field
    assert handle_2.free() is StatusT.B_OK
    assert device.status_field == 0


@pytest.mark.parametrize("end", ["close", "free"])
def test_nothing_works_on_a_handle_that_was_given_back(end):
    device = DeviceModel()
    manager = DeviceManager()
    with open_disk(device, manager=manager) as keeper:
        handle = manager.open("disk/virtual/virtio_block/0/raw")
        assert handle.info is keeper.info
        assert getattr(handle, end)() is StatusT.B_OK

        request = IORequest(0, False, buffer=bytearray(512))
        assert handle.io(request) is StatusT.B_FILE_ERROR
        assert request.status is StatusT.B_FILE_ERROR
        assert handle.read(0, 512) == (StatusT.B_FILE_ERROR, b"")
        assert handle.write(0, bytes(512)) == (StatusT.B_FILE_ERROR, 0)
        assert handle.ioctl(Ioctl.B_GET_DEVICE_SIZE, bytearray(8)) is StatusT.B_FILE_ERROR
        assert handle.close() is StatusT.B_FILE_ERROR
        assert handle.free() is (StatusT.B_OK if end == "close" else StatusT.B_FILE_ERROR)
        assert keeper.read(0, 512)[0] is StatusT.B_OK
    assert [sent.sector for sent in device.sent] == [0]
