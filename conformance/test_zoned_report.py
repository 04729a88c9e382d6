"""Zone reports (virtio 5.2.6)."""

import pytest

from conformance.zones import AT_ONCE, MODELS, check_refused, done, plug_zoned
from harness.report import described, reads_only
from harness.virtio.blk import (
    ZONE_DESCRIPTOR,
    ZONE_REPORT_HEADER,
    RequestType,
    Status,
    ZoneState,
    ZoneType,
    zones_of,
)

SEQUENTIAL = (ZoneType.SWR, ZoneType.SWP)


def room(zones, more=0):
    """Return the length of a report of `zones` zones plus `more` bytes."""
    return ZONE_REPORT_HEADER.size + zones * ZONE_DESCRIPTOR.size + more


@pytest.mark.parametrize("model", MODELS)
@described("5.2.6-P-25")
@reads_only
def test_every_zone_is_reported_with_a_capacity_within_its_size(plug, model):
    zoned = plug_zoned(plug, model, zone_sectors=512, zone_capacity=448, conventional_zones=2)
    size, end = zoned.config.zone_sectors, zoned.config.capacity

    zones = zoned.zones()

    assert [zone.start for zone in zones] == list(range(0, end, size))
    assert all(0 < zone.capacity <= min(size, end - zone.start) for zone in zones)


@described("5.2.6-P-37")
@reads_only
def test_conventional_zones_and_no_others_are_without_a_write_pointer(plug):
    zoned = plug_zoned(plug, conventional_zones=2)

    for zone in zoned.of_type(ZoneType.CONV):
        assert zone.state is ZoneState.NOT_WP
    for zone in zoned.of_type(*SEQUENTIAL):
        assert zone.state is not ZoneState.NOT_WP


@described("5.2.6-P-39")
@reads_only
def test_an_empty_zone_has_its_write_pointer_at_its_start(plug):
    zoned = plug_zoned(plug)
    zoned.in_state(ZoneState.EMPTY)

    for zone in zoned.zones():
        assert zone.state is not ZoneState.EMPTY or zone.wp == zone.start


@described("5.2.6-P-27")
@reads_only
def test_a_report_from_the_middle_of_a_zone_starts_with_that_zone(plug):
    zoned = plug_zoned(plug, zone_sectors=512)
    size = zoned.config.zone_sectors
    zones = zoned.zones()
    last = zones[-1].start

    for sector in (0, 1, size - 1, size, size + size // 2, last, zoned.config.capacity - 1):
        expected = zones[sector // size : sector // size + 3]
        assert zoned.report(sector, 3) == expected, f"from sector {sector}"


@pytest.mark.parametrize("more", [0, 1, 63], ids=["exact", "one-byte-more", "a-byte-short-of-one"])
@described("5.2.6-P-28")
@reads_only
def test_nr_zones_counts_only_whole_descriptors(plug, more):
    zoned = plug_zoned(plug)
    zones = zoned.zones()

    for count in (1, 2, 5):
        receive = room(count, more)
        completion = done(zoned.disk.request(RequestType.ZONE_REPORT, 0, receive=receive))
        counted, found = zones_of(completion.data)
        assert counted == count
        assert found == zones[:count]


@described("5.2.6-P-24")
@reads_only
def test_a_report_with_more_room_than_zones_ends_with_the_last(plug):
    zoned = plug_zoned(plug)
    zones = zoned.zones()

    for start, most in ((zones[-1].start, 4), (zones[-2].start, AT_ONCE)):
        expected = [zone for zone in zones if zone.start >= start]
        assert zoned.report(start, most) == expected


@described("5.2.6-P-26")
@reads_only
def test_a_report_without_room_for_a_zone_claims_none(plug):
    zoned = plug_zoned(plug)

    for receive in (room(0), room(1) - 1):
        completion = zoned.disk.request(RequestType.ZONE_REPORT, 0, receive=receive)
        assert completion.damage == ()
        # The specification does not say whether this is an error.
        if completion.status is Status.OK:
            assert zones_of(completion.data)[0] == 0


@described("2.7.4-P-01")
@reads_only
def test_a_report_can_be_cut_into_any_descriptors(plug):
    zoned = plug_zoned(plug)
    zoned.disk.needs_descriptors(6)
    uncut = done(zoned.disk.request(RequestType.ZONE_REPORT, 0, receive=room(3)))

    for pieces in ((257,), (1, 62, 66, 128), (64, 64, 64, 64, 1), (100, 157)):
        cut = done(zoned.disk.request(RequestType.ZONE_REPORT, 0, receive=room(3), writable=pieces))
        assert zones_of(cut.data) == zones_of(uncut.data), f"cut into {pieces}"


@described("5.2.6-P-36")
@reads_only
def test_a_report_from_beyond_the_last_zone_is_an_error(plug):
    zoned = plug_zoned(plug)
    end = zoned.config.capacity

    for sector in (end, 2 * end, 2**63, 2**64 - 1):
        completion = zoned.disk.request(RequestType.ZONE_REPORT, sector, receive=room(1))
        check_refused(completion, Status.ZONE_INVALID_CMD, Status.IOERR, case=f"from {sector:#x}")
