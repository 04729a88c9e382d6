"""Requests that complete after their timeout: none is taken for another, no buffer is reused."""

from types import SimpleNamespace

import pytest
from device_model import DeviceModel

from harness.haiku.command import SLOT_SIZE
from harness.haiku.constants import B_PAGE_SIZE, StatusT
from harness.haiku.dma import BOUNCE_BUFFER_COUNT
from harness.haiku.module import open_disk
from harness.haiku.request import IORequest, IOVec
from harness.virtio.blk import Status
from harness.virtio.features import Feature

OLD, NEW = b"\x11" * 512, b"\x22" * 512


@pytest.fixture
def device():
    device = DeviceModel()
    device.write_contents(512, OLD)
    device.write_contents(1024, NEW)
    return device


def time_out(device, act):
    """Call `act` on a device that holds its requests, and expect a timeout."""
    device.held = True
    result = act()
    device.held = False
    return result


@pytest.fixture
def still(monkeypatch):
    """A clock that stands still: the time that a machine takes between two looks does not count."""
    clock = SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr("harness.haiku.device.time", clock)


@pytest.mark.usefixtures("still")
def test_a_request_that_takes_too_long_is_an_io_error(device):
    with open_disk(device) as disk:
        assert time_out(device, lambda: disk.read(512, 512)) == (StatusT.EIO, b"")
        assert disk.info.statistics.timeouts == 1
    assert device.patience == [10.0]


@pytest.mark.usefixtures("still")
def test_the_timeout_can_be_set_for_a_disk_that_is_open(device):
    with open_disk(device, timeout=3.0) as disk:
        disk.read(0, 512)
        disk.info.timeout = 0.5
        disk.read(0, 512)
    assert device.patience == [3.0, 0.5]


@pytest.mark.parametrize("late", [Status.IOERR, Status.UNSUPP, Status.OK])
@pytest.mark.parametrize("new", [Status.IOERR, Status.OK])
def test_a_late_completion_does_not_touch_the_ack_of_the_next_request(device, late, new):
    with open_disk(device) as disk:
        time_out(device, lambda: disk.read(512, 512))
        device.answer = lambda sent: late if sent.sector == 1 else new
        expected = StatusT.B_OK if new is Status.OK else StatusT.EIO
        assert disk.read(1024, 512)[0] is expected
        assert [sent.sector for sent in device.sent] == [1, 2]
        assert disk.info.statistics.late_completions == 1


def test_a_late_completion_is_not_taken_for_the_next_request(device):
    """Complete only the old request; the new one has to time out."""
    with open_disk(device) as disk:
        time_out(device, lambda: disk.read(512, 512))
        device.during_poll = lambda: device.release(1) if len(device.published) == 2 else None
        assert time_out(device, lambda: disk.read(1024, 512)) == (StatusT.EIO, b"")
        assert [sent.sector for sent in device.sent] == [1]
        assert (disk.info.statistics.timeouts, disk.info.statistics.late_completions) == (2, 1)


def test_a_late_completion_does_not_end_the_wait_for_the_next_request(device):
    with open_disk(device) as disk:
        time_out(device, lambda: disk.read(512, 512))
        device.held = True
        device.during_poll = lambda: device.release(1)
        assert disk.read(1024, 512) == (StatusT.B_OK, NEW)
        assert [sent.sector for sent in device.sent] == [1, 2]
        assert disk.info.statistics.timeouts == 1


def test_late_completions_can_go_on_for_ever(device):
    with open_disk(device) as disk:
        for _ in range(2 * B_PAGE_SIZE // SLOT_SIZE):
            assert time_out(device, lambda: disk.read(512, 512))[0] is StatusT.EIO
            device.release()
        assert disk.read(1024, 512) == (StatusT.B_OK, NEW)


def test_a_late_read_does_not_put_its_data_into_the_next_one(device):
    with open_disk(device) as disk:
        time_out(device, lambda: disk.read(512, 512))
        device.held = True
        # The new request completes first, then the old one, before the driver looks.
        device.during_poll = lambda: (device.published.reverse(), device.release())
        assert disk.read(1024, 512) == (StatusT.B_OK, NEW)
        assert [sent.sector for sent in device.sent] == [2, 1]


def test_a_late_write_writes_what_it_was_given(device):
    with open_disk(device) as disk:
        time_out(device, lambda: disk.write(512, OLD[::-1]))
        assert disk.write(1024, b"\x33" * 512) == (StatusT.B_OK, 512)
    assert device.read_contents(512, 1024) == OLD + b"\x33" * 512


def addresses(chain):
    return {buffer.address for buffer in chain.buffers}


def test_header_ack_and_buffer_are_used_again_only_after_the_device_is_done(device):
    with open_disk(device) as disk:
        time_out(device, lambda: disk.read(512, 512))
        (stuck,) = device.published
        theirs = set()

        def only_the_new_one():
            device.published.reverse()
            theirs.update(addresses(device.published[0]))
            device.release(1)

        device.held = True
        device.during_poll = only_the_new_one
        for _ in range(200):
            assert disk.read(1024, 512) == (StatusT.B_OK, NEW)
        assert not addresses(stuck) & theirs
        assert device.memory_read(stuck.buffers[-1].address, 1) == b"\xff"

        device.release()
        disk.info.service()
        assert disk.info.in_device() == []
        assert disk.info.statistics.late_completions == 1


def test_the_memory_of_a_scatter_list_is_named_while_the_device_may_use_it(device):
    with open_disk(device) as disk:
        vec = IOVec(device.alloc(512), 512)
        request = IORequest(512, False, [vec])
        time_out(device, lambda: disk.io(request))
        assert (request.status, request.transferred) == (StatusT.EIO, 0)
        (operation,) = disk.info.in_device()
        assert operation.request is request
        device.release()
        disk.info.service()
        assert disk.info.in_device() == []


def test_a_flush_may_be_late_too(device):
    with open_disk(device) as disk:
        assert time_out(device, disk.info.synchronize_cache) is StatusT.EIO
        assert disk.read(512, 512) == (StatusT.B_OK, OLD)
        assert disk.info.statistics.late_completions == 1


def test_when_the_device_keeps_everything_requests_fail_and_it_recovers(device):
    with open_disk(device, timeout=0.01) as disk:
        for _ in range(BOUNCE_BUFFER_COUNT):
            assert time_out(device, lambda: disk.read(512, 512))[0] is StatusT.EIO
        assert time_out(device, lambda: disk.read(512, 512))[0] is StatusT.B_BUSY
        device.release()
        assert disk.read(1024, 512) == (StatusT.B_OK, NEW)
        assert disk.info.statistics.late_completions == BOUNCE_BUFFER_COUNT


def test_a_buffer_that_comes_back_after_the_blocks_grew_is_not_used_for_them():
    device = DeviceModel(blk_size=512)
    with open_disk(device) as disk:
        time_out(device, lambda: disk.read(512, 512))
        device.resize(2048, blk_size=131072)
        disk.info.service()
        device.release()
        disk.info.service()
        assert disk.info.in_device() == []
        for position in (0, 131072):
            assert disk.write(position, b"x" * 131072) == (StatusT.B_OK, 131072)


def test_a_request_waits_for_descriptors_that_the_device_keeps(device):
    device.offered_bits &= ~Feature.INDIRECT_DESC.mask
    device.queue_size = 4
    with open_disk(device) as disk:
        time_out(device, lambda: disk.read(512, 512))
        device.during_poll = device.release
        assert disk.read(1024, 512) == (StatusT.B_OK, NEW)
        assert disk.info.statistics.late_completions == 1


def test_taking_the_disk_down_resets_the_device_before_anything_is_given_back(device):
    with open_disk(device) as disk:
        time_out(device, lambda: disk.write(512, NEW))
        resets = device.resets
        assert len(device.published) == 1
    assert device.resets == resets + 1
    assert (device.status_field, device.published) == (0, [])
    assert disk.read(0, 512) == (StatusT.B_FILE_ERROR, b"")
    assert device.read_contents(512, 512) == OLD
