"""Requests of any shape: they become legal operations, and the data arrives."""

import threading

import pytest
from device_model import DeviceModel
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.haiku.constants import StatusT
from harness.haiku.dma import DEFAULT_SEGMENT_COUNT
from harness.haiku.module import open_disk
from harness.haiku.request import IOOperation, IORequest, IOVec
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature

KIB = 1024


def pattern(length, salt=0):
    """Return non-zero bytes that differ from sector to sector (251 is prime)."""
    return (bytes(range(1, 252)) * (length // 251 + 2))[salt % 251 :][:length]


@st.composite
def disks(draw):
    """Draw a device with any limits whose operations can hold a block."""
    blk_size = draw(st.sampled_from([None, 512, 1024, 4096, 65536]))
    block = blk_size or 512
    seg_max = draw(st.one_of(st.none(), st.integers(1, 40)))
    queue_size = draw(st.sampled_from([4, 16, 64]))
    segments = min(seg_max or DEFAULT_SEGMENT_COUNT, queue_size - 2)
    least = -(-block // segments)
    size_max = draw(st.one_of(st.none(), st.integers(least, 4 * least), st.just(1 << 20)))
    indirect = draw(st.booleans())
    device = DeviceModel(
        capacity=draw(st.integers(4 * block // 512, 600)) if block < 65536 else 640,
        blk_size=blk_size,
        size_max=size_max,
        seg_max=seg_max,
        queue_size=queue_size,
    )
    if not indirect:
        device.offered_bits &= ~Feature.INDIRECT_DESC.mask
    return device


def ranges(draw, size):
    offset = draw(st.integers(0, size))
    return offset, draw(st.integers(0, size - offset))


@settings(max_examples=300, deadline=None)
@given(disks(), st.data())
def test_whatever_is_written_is_read_back_and_no_operation_breaks_a_limit(device, data):
    before = pattern(device.capacity * 512, salt=100)
    device.write_contents(0, before)
    with open_disk(device) as disk:
        size = disk.info.media.size
        offset, length = ranges(data.draw, size)
        written = pattern(length)
        expected = bytearray(before)
        expected[offset : offset + length] = written
        assert disk.write(offset, written) == (StatusT.B_OK, length)

        assert device.read_contents(0, len(before)) == bytes(expected)
        start, count = ranges(data.draw, size)
        assert disk.read(start, count) == (StatusT.B_OK, bytes(expected[start : start + count]))
        sectors = [sent.sector for sent in device.sent if sent.type == RequestType.OUT]
    assert sectors == sorted(set(sectors))
    assert device.violations == []


@settings(max_examples=300, deadline=None)
@given(disks(), st.data())
def test_any_scatter_list_is_filled_and_emptied_in_order(device, data):
    before = pattern(device.capacity * 512, salt=100)
    device.write_contents(0, before)
    with open_disk(device) as disk:
        offset, length = ranges(data.draw, disk.info.media.size)
        vecs, left = [], length
        while left:
            piece = data.draw(st.integers(1, left)) if len(vecs) < 60 else left
            vecs.append(IOVec(device.alloc(piece), piece))
            left -= piece
        written = pattern(length)
        rest = written
        for vec in vecs:
            device.memory_write(vec.base, rest[: vec.length])
            rest = rest[vec.length :]
        finished = []
        request = IORequest(offset, True, vecs, on_finished=finished.append)
        assert disk.io(request) is StatusT.B_OK
        assert finished == [request]
        assert (request.status, request.transferred) == (StatusT.B_OK, length)
        expected = bytearray(before)
        expected[offset : offset + length] = written
        assert device.read_contents(0, len(before)) == bytes(expected)

        for vec in vecs:
            device.memory_write(vec.base, bytes(vec.length))
        again = IORequest(offset, False, vecs)
        disk.io(again)
        got = b"".join(device.memory_read(vec.base, vec.length) for vec in vecs)
    assert (again.status, again.transferred) == (StatusT.B_OK, length)
    assert got == written
    assert device.violations == []


@settings(max_examples=200, deadline=None)
@given(disks(), st.booleans(), st.data())
def test_a_failing_block_ends_the_request_with_the_bytes_before_it(device, is_write, data):
    before = pattern(device.capacity * 512, salt=100)
    device.write_contents(0, before)
    with open_disk(device) as disk:
        offset, length = ranges(data.draw, disk.info.media.size)
        bad = data.draw(st.integers(0, disk.info.media.size // 512 - 1))

        def answer(sent):
            hit = sent.sector <= bad < sent.sector + sum(sent.segments) // 512
            return Status.IOERR if hit else None

        device.answer = answer
        block = disk.info.media.block_size
        touched = offset // block * block <= bad * 512 < -(-(offset + length) // block) * block
        if is_write:
            status, done = disk.write(offset, pattern(length))
            assert device.read_contents(offset, done) == pattern(length)[:done]
        else:
            status, got = disk.read(offset, length)
            done = len(got)
            assert got == before[offset : offset + done]
    if touched and length:
        assert status is StatusT.EIO
        assert done <= max(bad * 512 - offset, 0)
    else:
        assert (status, done) == (StatusT.B_OK, length)


def test_an_operation_is_one_chain_of_header_data_and_ack():
    device = DeviceModel()
    with open_disk(device) as disk:
        disk.write(512 * 5, pattern(1024))
        disk.read(512 * 7, 512)

    write, read = device.sent
    assert (write.type, write.ioprio, write.sector) == (RequestType.OUT, 1, 5)
    assert (read.type, read.ioprio, read.sector) == (RequestType.IN, 1, 7)
    assert (write.segments, read.segments) == ([1024], [512])
    assert write.ack_before == read.ack_before == 0xFF
    assert device.violations == []


def test_sectors_are_512_bytes_whatever_the_block_size():
    device = DeviceModel(blk_size=4096)
    with open_disk(device) as disk:
        disk.read(3 * 4096, 4096)
    assert device.sent[0].sector == 24


def test_seg_max_is_not_trusted_beyond_the_queue_size():
    """Limit a chain to the queue size; Haiku's driver would wait 10 s for a free slot."""
    device = DeviceModel(seg_max=254, size_max=512, queue_size=16)
    with open_disk(device) as disk:
        assert disk.write(0, pattern(64 * KIB)) == (StatusT.B_OK, 64 * KIB)
    assert max(len(sent.segments) for sent in device.sent) == 14
    assert device.violations == []


def test_limits_that_hold_no_block_are_a_bad_value():
    device = DeviceModel(blk_size=4096, size_max=512, seg_max=7)
    with open_disk(device) as disk:
        assert disk.read(0, 4096) == (StatusT.B_BAD_VALUE, b"")
        assert disk.write(0, bytes(4096)) == (StatusT.B_BAD_VALUE, 0)
    assert device.sent == []


def test_part_of_a_block_is_written_with_one_read_of_that_block():
    device = DeviceModel(blk_size=4096)
    with open_disk(device) as disk:
        disk.write(4096 + 100, b"x" * 50)
    assert [(sent.type, sent.sector) for sent in device.sent] == [
        (RequestType.IN, 8),
        (RequestType.OUT, 8),
    ]


def test_a_write_whose_first_block_cannot_be_read_changes_nothing():
    device = DeviceModel(blk_size=4096)
    device.answer = lambda sent: Status.IOERR if sent.type == RequestType.IN else None
    with open_disk(device) as disk:
        assert disk.write(100, b"x" * 8000) == (StatusT.EIO, 0)
    assert device.contents == {}


@pytest.mark.parametrize(
    ("ack", "status"),
    [
        (Status.OK, StatusT.B_OK),
        (Status.IOERR, StatusT.EIO),
        (Status.UNSUPP, StatusT.ENOTSUP),
        (Status.ZONE_INVALID_CMD, StatusT.EIO),
        (0x77, StatusT.EIO),
        (0xFF, StatusT.EIO),
    ],
)
def test_the_ack_is_mapped_as_in_the_seed(ack, status):
    device = DeviceModel(answer=lambda sent: ack)
    with open_disk(device) as disk:
        assert disk.read(0, 512)[0] is status
        assert disk.write(0, bytes(512)) == (status, 512 if status is StatusT.B_OK else 0)
        assert disk.info.statistics.errors == (0 if status is StatusT.B_OK else 2)


@pytest.mark.parametrize(
    ("position", "length"), [(-1, 1), (2048 * 512, 1), (2048 * 512 - 1, 2), (0, 2048 * 512 + 1)]
)
def test_a_range_that_is_not_on_the_disk_is_not_sent(position, length):
    device = DeviceModel()
    with open_disk(device) as disk:
        assert disk.read(position, length) == (StatusT.B_BAD_VALUE, b"")
        assert disk.write(position, bytes(length)) == (StatusT.B_BAD_VALUE, 0)
    assert device.sent == []


def test_do_io_sends_nothing_beyond_the_end():
    device = DeviceModel(capacity=8)
    with open_disk(device) as disk:
        request = IORequest(512 * 8, False, [IOVec(device.alloc(512), 512)])
        operation = IOOperation(request, 512 * 8, request.vecs, 512, 512, 512)
        assert disk.info.do_io(operation) is StatusT.EIO
    assert device.sent == []


def test_a_request_of_no_bytes_is_done_at_once():
    device = DeviceModel()
    with open_disk(device) as disk:
        assert disk.read(100, 0) == (StatusT.B_OK, b"")
        assert disk.read(100, -1) == (StatusT.B_BAD_VALUE, b"")
    assert device.sent == []


def test_a_request_is_finished_only_once():
    request = IORequest(0, False, buffer=bytearray(512))
    request.finish(StatusT.B_OK)
    with pytest.raises(RuntimeError, match="finished twice: B_OK, EIO"):
        request.finish(StatusT.EIO)


def test_an_operation_is_completed_only_once():
    request = IORequest(0, False, buffer=bytearray(512))
    operation = IOOperation(request, 0, [IOVec(0, 512)], 512, 512, 512)
    operation.complete(StatusT.EIO, 0)
    operation.complete(StatusT.B_OK, 512)
    assert (operation.status, operation.transferred) == (StatusT.EIO, 0)


def test_do_io_is_busy_while_another_thread_is_in_it():
    device = DeviceModel()
    answers = []
    with open_disk(device) as disk:
        request = IORequest(0, False, [IOVec(device.alloc(512), 512)])
        operation = IOOperation(request, 0, request.vecs, 512, 512, 512)

        def meanwhile():
            device.during_poll = lambda: None
            other = threading.Thread(target=lambda: answers.append(disk.info.do_io(operation)))
            other.start()
            other.join(timeout=60)

        device.during_poll = meanwhile
        assert disk.read(0, 512)[0] is StatusT.B_OK
        assert answers == [StatusT.B_BUSY]
        assert operation.status is None
        assert disk.info.do_io(operation) is StatusT.B_OK
    assert len(device.sent) == 2


def test_requests_of_several_threads_all_arrive():
    device = DeviceModel(seg_max=1, size_max=512)
    data = {n: pattern(8 * 512, salt=n) for n in range(8)}
    results = {}
    with open_disk(device) as disk:

        def write(n):
            results[n] = disk.write(n * 8 * 512, data[n])

        threads = [threading.Thread(target=write, args=(n,)) for n in data]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert results == dict.fromkeys(data, (StatusT.B_OK, 8 * 512))
    assert all(device.read_contents(n * 8 * 512, 8 * 512) == data[n] for n in data)


def test_statistics_count_what_was_done():
    device = DeviceModel()
    with open_disk(device) as disk:
        disk.write(0, bytes(1024))
        disk.read(0, 512)
        disk.info.synchronize_cache()
        seen = disk.info.statistics
        assert (seen.writes, seen.bytes_written) == (1, 1024)
        assert (seen.reads, seen.bytes_read) == (1, 512)
        assert (seen.flushes, seen.errors, seen.timeouts) == (1, 0, 0)
