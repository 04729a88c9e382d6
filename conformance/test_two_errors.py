"""Requests with two errors, where a statement names the status of one (virtio 5.2.6.2)."""

import itertools

import pytest

from conformance.contents import Contents
from conformance.kinds import KINDS, UNIT
from harness.report import clause
from harness.virtio.blk import RequestType, Status, segment
from harness.virtio.features import Feature

FLAGS = {"bit-1": 1 << 1, "bit-31": 1 << 31, "all": 0xFFFF_FFFE, "with-unmap": 1 | 1 << 7}
"""Flags of which at least one is reserved, by name."""

FEATURES = {kind.type: kind for kind in KINDS}

OF_SEGMENTS = pytest.mark.parametrize(
    "type",
    [RequestType.DISCARD, RequestType.WRITE_ZEROES, RequestType.SECURE_ERASE],
    ids=lambda type: type.name,
)


def ranges(end, longest):
    """Return ranges (sector, count) that break another rule, by name."""
    return {
        "at-the-end": (end, UNIT),
        "across-the-end": (end - 1, 2),
        "far-beyond": (2**55, UNIT),
        "overflow": (2**64 - 4, UNIT),
        "nothing": (UNIT, 0),
        "whole-of-32-bits": (0, 2**32 - 1),
        "longer-than-the-limit": (0, min(longest + 1, 2**32 - 1)),
    }


def plug_segments(plug, type):
    """Return a disk, its contents, and the limits of this type of request: sectors, segments."""
    kind = FEATURES[type]
    disk = plug(needs=kind.features, prefer={"capacity": 64, **kind.fields})
    config = disk.driver.config()
    limits = {
        RequestType.DISCARD: (config.max_discard_sectors, config.max_discard_seg),
        RequestType.WRITE_ZEROES: (config.max_write_zeroes_sectors, config.max_write_zeroes_seg),
        RequestType.SECURE_ERASE: (config.max_secure_erase_sectors, config.max_secure_erase_seg),
    }
    return disk, Contents(disk), limits[type]


def check_unsupported(disk, type, requests):
    """Send these requests (name -> segments), and assert that each ends with UNSUPP.

    The message names all that do not, so that a known deviation hides no worse one.
    """
    others = {}
    for name, data in requests.items():
        completion = disk.request(type, data=data)
        assert completion.damage == (), f"{name}: {completion.damage}"
        if completion.status is not Status.UNSUPP:
            others[name] = getattr(completion.status, "name", str(completion.status))
    assert not others, (
        f"{len(others)} of {len(requests)} requests ended with"
        f" {', '.join(sorted(set(others.values())))}: {'; '.join(others)}"
    )


@OF_SEGMENTS
@clause("5.2.6.2-D-04")
def test_a_reserved_flag_ends_with_unsupp_whatever_the_range(plug, type):
    disk, contents, (longest, _) = plug_segments(plug, type)
    bad = ranges(disk.driver.config().capacity, longest)

    requests = {
        f"{flags}, {place}": segment(*bad[place], FLAGS[flags])
        for flags, place in itertools.product(FLAGS, bad)
    }
    check_unsupported(disk, type, requests)
    contents.check("requests with reserved flags")


@OF_SEGMENTS
@clause("5.2.6.2-D-04")
def test_a_reserved_flag_ends_with_unsupp_in_any_segment(plug, type):
    """The other segments are good, or out of range."""
    disk, contents, (longest, most) = plug_segments(plug, type)
    end, count = disk.driver.config().capacity, min(longest, UNIT)
    if most < 2:
        pytest.skip("the device takes 1 segment: there is no request of several")
    total = min(most, 4)
    requests = {}
    for name, other in (("good", segment(UNIT, count)), ("beyond the end", segment(end, count))):
        for place in sorted({0, total // 2, total - 1}):
            segments = [other] * total
            segments[place] = segment(UNIT, count, 1 << 9)
            requests[f"segment {place} of {total}, the others {name}"] = b"".join(segments)
    check_unsupported(disk, type, requests)
    contents.check("requests with reserved flags in one segment")


@OF_SEGMENTS
@clause("5.2.6.2-D-04")
def test_a_reserved_flag_ends_with_unsupp_in_too_many_segments(plug, type):
    disk, contents, (longest, most) = plug_segments(plug, type)
    if most > 64:
        pytest.skip(f"the device takes {most} segments, and a test cannot send more than that")

    requests = {}
    for place in (0, most):
        segments = [segment(UNIT, min(longest, UNIT))] * (most + 1)
        segments[place] = segment(UNIT, min(longest, UNIT), 1 << 9)
        requests[f"segment {place} of {most + 1}"] = b"".join(segments)
    check_unsupported(disk, type, requests)
    contents.check("requests of too many segments")


@clause("5.2.6.2-D-05")
def test_unmap_on_a_discard_ends_with_unsupp_whatever_the_range(plug):
    disk, contents, (longest, most) = plug_segments(plug, RequestType.DISCARD)
    bad = ranges(disk.driver.config().capacity, longest)

    requests = {place: segment(*bad[place], 1) for place in bad}
    if most > 1:
        pair = segment(UNIT, min(longest, UNIT)) + segment(*bad["at-the-end"], 1)
        requests["unmap in the second segment"] = pair
    check_unsupported(disk, RequestType.DISCARD, requests)
    contents.check("discards with unmap")


@OF_SEGMENTS
@clause("5.2.6.2-D-04")
def test_a_reserved_flag_ends_with_unsupp_on_a_read_only_disk(plug, type):
    kind = FEATURES[type]
    disk = plug(read_only=True, needs=[Feature.BLK_RO, *kind.features], prefer=kind.fields)
    contents = Contents(disk, fill=False)

    check_unsupported(disk, type, {name: segment(UNIT, 1, flags) for name, flags in FLAGS.items()})
    contents.check("requests with reserved flags")


@clause("5.2.6.2-D-03a", "5.2.6.2-D-03b")
def test_a_write_to_a_read_only_disk_is_refused_with_ioerr_whatever_else_is_wrong(plug):
    disk = plug(read_only=True, needs=[Feature.BLK_RO])
    contents = Contents(disk, fill=False)
    end = disk.driver.config().capacity
    cases = {
        "at the end": (end, 512),
        "across the end": (end - 1, 1024),
        "far beyond": (2**55, 512),
        "at the last sector number": (2**64 - 1, 512),
        "of no whole sectors": (8, 100),
        "of a sector and a byte": (8, 513),
    }

    for what, (sector, length) in cases.items():
        completion = disk.request(RequestType.OUT, sector, bytes([0x5A]) * length)
        assert completion.status is Status.IOERR, f"a write {what}: {completion.status!r}"
        assert completion.damage == ()
    contents.check("refused writes")
