"""Zone reports, as bytes and as zones (virtio 5.2.6)."""

import struct

import pytest

from harness.virtio.blk import (
    ZONE_DESCRIPTOR,
    ZONE_REPORT_HEADER,
    Zone,
    ZoneState,
    ZoneType,
    zones_of,
)

FIRST = bytes.fromhex("0010000000000000 0000000000000000 0300000000000000 02 02") + bytes(38)
SECOND = bytes.fromhex("0010000000000000 0010000000000000 ffffffffffffffff 01 00") + bytes(38)


def report(count: int, *descriptors: bytes) -> bytes:
    return struct.pack("<Q", count) + bytes(56) + b"".join(descriptors)


def test_header_and_descriptor_have_64_bytes_each() -> None:
    assert ZONE_REPORT_HEADER.size == ZONE_DESCRIPTOR.size == 64


def test_a_report_has_the_zones_that_it_counts() -> None:
    assert zones_of(report(2, FIRST, SECOND)) == (
        2,
        [
            Zone(4096, 0, 3, ZoneType.SWR, ZoneState.IOPEN),
            Zone(4096, 4096, 2**64 - 1, ZoneType.CONV, ZoneState.NOT_WP),
        ],
    )
    # Bytes after the counted zones, such as canaries, are not a zone.
    assert zones_of(report(1, FIRST, b"\xc5" * 64))[1] == zones_of(report(1, FIRST))[1]


def test_a_count_beyond_the_descriptors_is_reported() -> None:
    count, zones = zones_of(report(9, FIRST, SECOND[:-1]))

    assert count == 9
    assert [zone.start for zone in zones] == [0]


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (bytes(63), "63 bytes"),
        (report(1, FIRST[:24] + b"\x09" + FIRST[25:]), "9 is not a valid ZoneType"),
        (report(1, FIRST[:25] + b"\x05" + FIRST[26:]), "5 is not a valid ZoneState"),
    ],
    ids=["short", "type", "state"],
)
def test_what_is_no_report_is_an_error(raw: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        zones_of(raw)
