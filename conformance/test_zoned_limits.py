"""Limits of the numbers of open and active zones (virtio 5.2.4, 5.2.6)."""

import pytest

from conformance.zones import ACTIVE, MOST, OPEN, RESOURCES, check_refused, done, plug_zoned
from harness.report import clause, described
from harness.virtio.blk import Status, ZoneState

OPEN_FIRST = {"max_open_zones": 2, "max_active_zones": 5}
"""Limits of a disk that reaches max_open_zones first."""

BOTH_AT_ONCE = {"max_open_zones": 3, "max_active_zones": 3}
"""Limits of a disk that reaches both limits at the same time."""


def count(zoned, states):
    """Return the number of zones in one of these states."""
    return sum(zone.state in states for zone in zoned.zones())


def use_up_open(zoned):
    """Explicitly open as many zones as possible; return them, and an empty zone."""
    most = zoned.limit("max_open_zones")
    active = zoned.config.max_active_zones
    if active and active <= most:
        pytest.skip(f"max_active_zones is {active}: max_open_zones is not reached first")
    *zones, other = zoned.empty(most + 1)
    for zone in zones:
        done(zoned.open(zone))
    return zones, other


def use_up_active(zoned):
    """Make as many zones CLOSED as can be active; return them, and an empty zone."""
    most = zoned.limit("max_active_zones")
    *zones, other = zoned.empty(most + 1)
    for zone in zones:
        zoned.brought_to(ZoneState.CLOSED, zone)
    return zones, other


@pytest.mark.parametrize("use_up", [use_up_open, use_up_active])
@clause("5.2.6.2-D-20")
def test_a_zone_is_not_opened_beyond_a_limit_and_nothing_changes(plug, use_up):
    zoned = plug_zoned(plug, **OPEN_FIRST)
    _, other = use_up(zoned)
    before = zoned.zones()

    check_refused(zoned.open(other), *RESOURCES)
    assert zoned.zones() == before


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("open", marks=clause("5.2.6.2-D-20")),
        pytest.param("write", marks=clause("5.2.6.2-D-24")),
    ],
)
def test_a_closed_zone_is_not_opened_beyond_the_limit(plug, kind):
    zoned = plug_zoned(plug, **OPEN_FIRST)
    zones, other = use_up_open(zoned)
    done(zoned.close(zones[0]))
    zoned.brought_to(ZoneState.CLOSED, other)
    done(zoned.open(zones[0]))
    before = zoned.zones()

    if kind == "open":
        completion = zoned.open(other)
    else:
        completion = zoned.disk.write(other.start + zoned.granule, zoned.data(salt=80))
    check_refused(completion, *RESOURCES)
    assert zoned.zones() == before


@pytest.mark.parametrize("kind", ["write", "append"])
@pytest.mark.parametrize("use_up", [use_up_open, use_up_active])
@clause("5.2.6.2-D-24")
def test_a_write_that_cannot_open_its_zone_is_refused(plug, use_up, kind):
    zoned = plug_zoned(plug, **OPEN_FIRST)
    _, other = use_up(zoned)
    before = zoned.zones()

    if kind == "write":
        completion = zoned.disk.write(other.start, zoned.data())
    else:
        zoned.need_append(zoned.granule)
        completion = zoned.append(other.start, zoned.data())

    check_refused(completion, *RESOURCES)
    assert zoned.zones() == before


@described("5.2.6-P-14")
def test_the_status_names_the_open_zones_where_they_have_run_out(plug):
    zoned = plug_zoned(plug, **OPEN_FIRST)
    _, other = use_up_open(zoned)

    check_refused(zoned.open(other), Status.ZONE_OPEN_RESOURCE)
    check_refused(zoned.disk.write(other.start, zoned.data()), Status.ZONE_OPEN_RESOURCE)


@described("5.2.6-P-13")
def test_the_status_names_the_active_zones_where_they_have_run_out(plug):
    zoned = plug_zoned(plug, **OPEN_FIRST)
    _, other = use_up_active(zoned)

    check_refused(zoned.open(other), Status.ZONE_ACTIVE_RESOURCE)
    check_refused(zoned.disk.write(other.start, zoned.data()), Status.ZONE_ACTIVE_RESOURCE)


@described("5.2.6-P-15")
def test_the_status_names_the_active_zones_where_both_have_run_out(plug):
    zoned = plug_zoned(plug, **BOTH_AT_ONCE)
    most = zoned.limit("max_open_zones")
    if zoned.config.max_active_zones != most:
        pytest.skip("max_open_zones and max_active_zones are not the same")
    *zones, other = zoned.empty(most + 1)
    for zone in zones:
        done(zoned.open(zone))

    check_refused(zoned.open(other), Status.ZONE_ACTIVE_RESOURCE)


def check_one_granule(zoned, zone, salt):
    """Assert that a zone holds one granule of data, and that its write pointer is after it."""
    assert zoned.zone(zone).wp == zone.start + zoned.granule
    assert zoned.contents(zone.start, zoned.granule) == zoned.data(salt=salt)


def check_implicitly_opened(zoned, zone, active):
    """Assert that a write has opened the zone, and that `active` zones are active now."""
    assert zoned.zone(zone).state is ZoneState.IOPEN
    assert zoned.contents(zone.start, zoned.granule) == zoned.data(salt=99)
    assert count(zoned, ACTIVE) == active


@described("5.2.6-P-33")
def test_a_write_beyond_the_open_limit_closes_another_zone_or_fails(plug):
    zoned = plug_zoned(plug, **OPEN_FIRST)
    most = zoned.limit("max_open_zones")
    active = zoned.config.max_active_zones
    if active and active <= most:
        pytest.skip(f"max_active_zones is {active}: max_open_zones is not reached first")
    *zones, other = zoned.empty(most + 1)
    for number, zone in enumerate(zones):
        done(zoned.disk.write(zone.start, zoned.data(salt=number)))
    before = zoned.zones()

    completion = zoned.disk.write(other.start, zoned.data(salt=99))

    check_refused(completion, Status.OK, Status.ZONE_OPEN_RESOURCE)
    if completion.status is Status.OK:
        check_implicitly_opened(zoned, other, active=most + 1)
    else:
        assert zoned.zones() == before
    assert count(zoned, OPEN) == most
    for number, zone in enumerate(zones):
        check_one_granule(zoned, zone, salt=number)


@pytest.mark.parametrize("how", ["close", "finish", "reset", "fill"])
@described("5.2.4-P-02")
def test_a_zone_that_is_no_longer_open_does_not_count_as_open(plug, how):
    zoned = plug_zoned(plug, zone_sectors=256, **OPEN_FIRST)
    zones, other = use_up_open(zoned)
    if how == "fill":
        if zones[0].capacity > 1 << 12:
            pytest.skip(f"a zone takes {zones[0].capacity} sectors: too many to write in a test")
        zoned.fill(zones[0])
    else:
        done(getattr(zoned, how)(zones[0]))

    done(zoned.open(other))

    assert count(zoned, OPEN) == len(zones)
    assert zoned.zone(other).state is ZoneState.EOPEN


@pytest.mark.parametrize("how", ["finish", "reset"])
@described("5.2.4-P-01")
def test_a_zone_that_is_no_longer_active_does_not_count_as_active(plug, how):
    zoned = plug_zoned(plug, **OPEN_FIRST)
    zones, other = use_up_active(zoned)
    if how == "finish":
        done(zoned.open(zones[0]))
    done(getattr(zoned, how)(zones[0]))

    done(zoned.disk.write(other.start, zoned.data()))

    assert count(zoned, ACTIVE) == len(zones)


@described("5.2.4-P-03")
def test_after_a_reset_of_all_zones_as_many_can_be_opened_as_before(plug):
    zoned = plug_zoned(plug, **OPEN_FIRST)
    zones, _ = use_up_open(zoned)

    zoned.reset_all()
    for zone in zones:
        done(zoned.open(zone))

    assert count(zoned, OPEN) == len(zones)


@described("5.2.5-P-02")
def test_without_limits_every_zone_can_be_open(plug):
    zoned = plug_zoned(plug, max_open_zones=0, max_active_zones=0)
    if zoned.config.max_open_zones or zoned.config.max_active_zones:
        pytest.skip("the device has limits")
    zones = zoned.empty()
    zones = [zone for zone in zoned.zones() if zone.state is ZoneState.EMPTY][:MOST]

    for zone in zones:
        done(zoned.open(zone))

    assert count(zoned, OPEN) == len(zones)
