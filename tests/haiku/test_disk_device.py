"""Start and end of the device, features, and changes of its configuration."""

import threading

import pytest
from device_model import OFFERED, DeviceModel

from harness.driver.errors import DeviceTimeoutError, DriverError
from harness.haiku.constants import Ioctl, StatusT
from harness.haiku.device import DriverInfo
from harness.haiku.features import feature_names, get_feature_name, wanted_features
from harness.haiku.geometry import Media
from harness.haiku.module import open_disk
from harness.virtio.blk import RequestType
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask

DRIVER_OK = (
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.DRIVER_OK
)


# --- features


def test_the_seeds_block_features_are_taken_and_no_others():
    everything = (1 << 24) - 1
    assert wanted_features(everything, everything) == mask(
        Feature.BLK_BARRIER,
        Feature.BLK_SIZE_MAX,
        Feature.BLK_SEG_MAX,
        Feature.BLK_GEOMETRY,
        Feature.BLK_RO,
        Feature.BLK_BLK_SIZE,
        Feature.BLK_FLUSH,
        Feature.BLK_TOPOLOGY,
    )


def test_ring_features_are_those_the_driver_beneath_serves():
    ring = mask(Feature.INDIRECT_DESC, Feature.VERSION_1)
    assert wanted_features((1 << 44) - 1, ring | Feature.BLK_MQ.mask) & ~((1 << 24) - 1) == ring


def test_nothing_is_taken_that_is_not_offered():
    assert wanted_features(Feature.BLK_FLUSH.mask, Feature.BLK_FLUSH.mask) == Feature.BLK_FLUSH.mask


def test_a_modern_device_is_not_asked_for_barriers():
    offered = mask(Feature.BLK_BARRIER, Feature.VERSION_1)
    assert wanted_features(offered, offered) == Feature.VERSION_1.mask


def test_features_are_called_what_haiku_calls_them():
    assert get_feature_name(Feature.BLK_SEG_MAX.mask) == "maximum segment count"
    assert get_feature_name(Feature.BLK_CONFIG_WCE.mask) == "config wce"
    assert get_feature_name(Feature.BLK_MQ.mask) is None
    bits = mask(Feature.BLK_RO, Feature.BLK_MQ, Feature.INDIRECT_DESC) | 1 << 50
    assert feature_names(bits) == ["read only", "BLK_MQ", "ring indirect", "bit 50"]


def test_negotiated_features_end_up_in_the_device():
    device = DeviceModel(size_max=4096, seg_max=8)
    with open_disk(device) as disk:
        assert disk.info.features == device.accepted_bits
        assert device.accepted_bits & Feature.BLK_SEG_MAX.mask
        assert not device.accepted_bits & mask(Feature.BLK_CONFIG_WCE, Feature.BLK_DISCARD)
    assert device.violations == []


@pytest.mark.parametrize("indirect", [True, False])
def test_chains_are_indirect_if_that_was_negotiated(indirect):
    device = DeviceModel()
    if not indirect:
        device.offered_bits &= ~Feature.INDIRECT_DESC.mask
    with open_disk(device) as disk:
        disk.read(0, 512)
    assert [sent.indirect for sent in device.sent] == [indirect]
    assert device.violations == []


# --- start and end


def test_a_device_is_up_while_it_is_open_and_reset_after_that():
    device = DeviceModel()
    with open_disk(device):
        assert device.status_field == DRIVER_OK
    assert device.status_field == 0


def test_a_disk_can_be_opened_again():
    """Open a disk twice; Haiku's driver uses its I/O scheduler after it deleted it."""
    device = DeviceModel()
    info = DriverInfo(device)
    for _ in range(3):
        assert info.init_device() is StatusT.B_OK
        assert info.init_device() is StatusT.B_BUSY
        assert info.media == Media(2048, 512, 512)
        assert info.synchronize_cache() is StatusT.B_OK
        info.uninit_device()
        info.uninit_device()
        assert info.synchronize_cache() in (StatusT.B_NO_INIT, StatusT.ENOTSUP)


def refuse(device):
    device.refuse_features = True


def no_memory(device):
    device.memory_limit = 1024


def odd_blocks(device):
    device.blk_size = 1000


def gone(device):
    def negotiate(features=None):
        raise DeviceTimeoutError("waited 5 s for device status to read 0")

    device.negotiate = negotiate


def no_config(device):
    def config():
        raise DriverError("the config generation changed during each of 100 reads")

    device.config = config


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        (refuse, StatusT.B_BAD_VALUE),
        (no_memory, StatusT.B_NO_MEMORY),
        (odd_blocks, StatusT.B_BAD_VALUE),
        (gone, StatusT.B_TIMED_OUT),
        (no_config, StatusT.B_ERROR),
    ],
)
def test_a_failed_start_leaves_a_reset_device_marked_failed(trouble, status):
    device = DeviceModel()
    trouble(device)
    info = DriverInfo(device)

    assert info.init_device() is status
    assert not info.initialized
    assert device.status_field == DeviceStatus.FAILED
    assert (device.published, device.ready) == ([], False)
    assert info.lock.acquire(timeout=0)
    info.lock.release()


def test_requests_that_wait_while_the_disk_is_taken_down_are_cancelled():
    device = DeviceModel(seg_max=1, size_max=512)
    results = []
    with open_disk(device) as disk:
        taking_down = threading.Thread(target=disk.info.uninit_device)

        def meanwhile():
            device.during_poll = lambda: None
            taking_down.start()
            # The device cannot be stopped before this operation is done; ask for the stop now.
            while not disk.info.io_scheduler._terminating:
                pass
            assert disk.info.initialized

        device.during_poll = meanwhile
        results.append(disk.write(0, bytes(2048)))
        taking_down.join(timeout=60)
        results.append(disk.write(0, bytes(2048)))
    assert results == [(StatusT.B_CANCELED, 512), (StatusT.B_FILE_ERROR, 0)]
    assert device.status_field == 0


# --- configuration changes


def media_status(disk):
    buffer = bytearray(4)
    assert disk.ioctl(Ioctl.B_GET_MEDIA_STATUS, buffer) is StatusT.B_OK
    return StatusT(int.from_bytes(buffer, "little", signed=True))


@pytest.mark.parametrize("capacity", [4096, 1024, 0, 2**40])
def test_a_resize_of_an_idle_disk_changes_the_media_once(capacity):
    device = DeviceModel()
    with open_disk(device) as disk:
        assert media_status(disk) is StatusT.B_OK
        device.resize(capacity)
        assert media_status(disk) is StatusT.B_DEV_MEDIA_CHANGED
        assert media_status(disk) is StatusT.B_OK
        assert disk.info.media.capacity == capacity
        assert disk.info.statistics.config_changes == 1


def test_a_change_that_changes_nothing_is_not_reported():
    device = DeviceModel()
    with open_disk(device) as disk:
        device.resize(2048)
        assert media_status(disk) is StatusT.B_OK
        assert disk.info.statistics.config_changes == 1


def test_a_config_interrupt_from_before_the_disk_was_opened_is_not_a_change():
    device = DeviceModel()
    device.resize(4096)
    with open_disk(device) as disk:
        assert media_status(disk) is StatusT.B_OK
        assert disk.info.media.capacity == 4096
        assert disk.info.statistics.config_changes == 0


def test_physical_block_size_alone_is_a_change_too():
    """Report a changed physical block size; Haiku's driver keeps the old one."""
    device = DeviceModel(physical_block_exp=0)
    with open_disk(device) as disk:
        device.resize(2048, physical_block_exp=3)
        assert media_status(disk) is StatusT.B_DEV_MEDIA_CHANGED
        assert disk.info.media.physical_block_size == 4096


def test_new_limits_hold_for_the_next_operation_and_are_no_change_of_the_media():
    device = DeviceModel(size_max=65536, seg_max=4)
    with open_disk(device) as disk:
        device.resize(2048, size_max=512, seg_max=2)
        assert media_status(disk) is StatusT.B_OK
        assert disk.read(0, 4096)[0] is StatusT.B_OK
    assert [sent.segments for sent in device.sent] == [[512, 512]] * 4
    assert device.violations == []


def test_a_new_block_size_holds_for_the_next_request():
    """Use a new block size for the next request; Haiku's driver panics."""
    device = DeviceModel(blk_size=512)
    with open_disk(device) as disk:
        disk.read(512, 512)
        device.resize(2048, blk_size=131072)
        assert media_status(disk) is StatusT.B_DEV_MEDIA_CHANGED
        assert disk.info.media == Media(8, 131072, 131072)
        assert disk.write(100, b"x" * 1000) == (StatusT.B_OK, 1000)
        device.resize(2048, blk_size=512)
        assert disk.read(100, 1000) == (StatusT.B_OK, b"x" * 1000)
    assert device.violations == []


def test_an_impossible_block_size_is_ignored():
    device = DeviceModel(blk_size=512)
    with open_disk(device) as disk:
        device.resize(4096, blk_size=0)
        assert media_status(disk) is StatusT.B_OK
        assert disk.info.media == Media(2048, 512, 512)


def test_growing_under_load_keeps_the_request_going():
    device = DeviceModel(seg_max=1, size_max=512)
    data = bytes(range(256)) * 16

    def grow(sent):
        if sent.sector == 4:
            device.resize(4096)

    device.before_request = grow
    with open_disk(device) as disk:
        assert disk.write(0, data) == (StatusT.B_OK, len(data))
        assert disk.info.media.capacity == 4096
        assert media_status(disk) is StatusT.B_DEV_MEDIA_CHANGED
        assert disk.read(4095 * 512, 512)[0] is StatusT.B_OK
    assert device.read_contents(0, len(data)) == data


def test_shrinking_under_load_ends_the_request_at_the_new_end():
    device = DeviceModel(seg_max=1, size_max=512)

    def shrink(sent):
        if sent.sector == 2044:
            device.resize(2046)

    device.before_request = shrink
    with open_disk(device) as disk:
        assert disk.write(2040 * 512, b"x" * 8 * 512) == (StatusT.EIO, 6 * 512)
        assert media_status(disk) is StatusT.B_DEV_MEDIA_CHANGED
    assert device.violations == []
    assert max(sent.sector for sent in device.sent) == 2045


def test_the_block_size_may_change_in_the_middle_of_a_request():
    device = DeviceModel(blk_size=512, size_max=512, seg_max=8)

    def change(sent):
        if sent.sector == 8:
            device.before_request = lambda sent: None
            device.resize(2048, blk_size=4096)

    device.before_request = change
    device.write_contents(0, b"\x55" * 40 * 512)
    with open_disk(device) as disk:
        assert disk.write(0, b"x" * 37 * 512) == (StatusT.B_OK, 37 * 512)
    assert device.read_contents(0, 40 * 512) == b"x" * 37 * 512 + b"\x55" * 3 * 512
    assert [v for v in device.violations if "sector=8" not in v] == []


def test_a_change_that_cannot_be_read_is_taken_up_later():
    device = DeviceModel()
    readable = device.config
    with open_disk(device) as disk:
        device.resize(4096)
        no_config(device)
        assert disk.read(0, 512) == (StatusT.B_OK, bytes(512))
        assert disk.info.media.capacity == 2048
        device.config = readable
        assert media_status(disk) is StatusT.B_DEV_MEDIA_CHANGED
        assert disk.info.media.capacity == 4096


def test_flush_reaches_the_device():
    device = DeviceModel()
    with open_disk(device) as disk:
        disk.write(0, bytes(512))
        assert disk.ioctl(Ioctl.B_FLUSH_DRIVE_CACHE) is StatusT.B_OK
    assert [sent.type for sent in device.sent] == [RequestType.OUT, RequestType.FLUSH]
    assert (device.flushes, device.violations) == (1, [])


def test_flush_says_so_when_the_device_cannot():
    device = DeviceModel(offered_bits=OFFERED & ~Feature.BLK_FLUSH.mask)
    with open_disk(device) as disk:
        assert disk.ioctl(Ioctl.B_FLUSH_DRIVE_CACHE) is StatusT.ENOTSUP
    assert device.sent == []
