"""Large requests, under few features and many, and seg_max in an indirect table (virtio 5.2.3)."""

import pytest

from conformance.data import mib, sectors
from conformance.negotiation import insisted_on
from conformance.rings import both_rings, plug_ring
from conformance.waiting import PATIENCE
from harness.driver.errors import BadArgumentError
from harness.driver.interface import Request
from harness.report import described, reads_only
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature

LARGEST = mib(2) + 8
"""Sectors of the largest request: more than devices that copy data keep room for."""

SIZES = (1, 8, 127, 256, mib(1) - 1, mib(1), mib(1) + 1, LARGEST)
"""Sectors of a request: powers of 2 up to 1 MiB and their neighbours, and more than 1 MiB."""


def cut_by(config, length):
    """Return the lengths of buffers for `length` bytes, by size_max, and the most buffers."""
    size_max = config.size_max or length
    whole, rest = divmod(length, min(size_max, length))
    return (*[min(size_max, length)] * whole, *([rest] if rest else []))


@pytest.mark.parametrize("few", [False, True], ids=["many-features", "few-features"])
@both_rings
@described("5.2.4-P-06")
def test_requests_of_every_size_are_done(plug, packed, few):
    """Without SIZE_MAX and SEG_MAX accepted, the driver keeps to what they say all the same."""
    disk = plug_ring(plug, packed, prefer={"capacity": mib(8)})
    config = disk.driver.config()
    if few:
        extra = Feature.RING_PACKED.mask if packed else 0
        disk.start(insisted_on(disk.driver) | extra)
    segments = min(config.seg_max or disk.queues[0].size - 2, disk.queues[0].size - 2)
    room = disk.driver.config().capacity

    done = 0
    for count in SIZES:
        lengths = cut_by(config, count * 512)
        if count + 9 > room or not 0 < len(lengths) <= segments:
            continue
        data = sectors(count, salt=count)
        try:
            written = disk.driver.request(
                Request(RequestType.OUT, 9, data, readable=(16, *lengths)), timeout=PATIENCE
            )
        except BadArgumentError:  # a driver in a guest has 2 MiB of memory
            if not done:
                raise
            break
        done += 1
        assert written.status == Status.OK, f"a write of {count} sectors"
        assert written.damage == ()
        found = disk.driver.request(
            Request(RequestType.IN, 9, receive=len(data), writable=(*lengths, 1)),
            timeout=PATIENCE,
        )
        assert found.status == Status.OK, f"a read of {count} sectors"
        assert found.damage == ()
        assert found.data == data, f"a read of {count} sectors returned other data"
        assert disk.backing.read(9, count) == data, f"a write of {count} sectors wrote other data"
    if not done:
        pytest.skip(f"the disk has {room} sectors, and a request {segments} segments")


@both_rings
@described("5.2.3-P-04")
@reads_only
def test_a_request_in_an_indirect_table_can_have_seg_max_segments(plug, packed):
    disk = plug_ring(plug, packed, needs=[Feature.BLK_SEG_MAX, Feature.INDIRECT_DESC])
    seg_max = min(disk.driver.config().seg_max, 1024)
    room = disk.queues[0].size - 2
    if seg_max > room:
        pytest.skip(f"seg_max is {seg_max}, and a chain may have {room} segments (2.7.5.3.1)")
    disk.needs_sectors(seg_max)

    completion = disk.read(0, seg_max, writable=(*[512] * seg_max, 1), indirect=True)

    assert completion.status is Status.OK
    assert completion.damage == ()
    other = disk.read(0, seg_max).data
    assert completion.data == other, "the segments hold other data than one segment for all"
