"""The states of zones, and the requests that change them (virtio 5.2.6)."""

import pytest

from conformance.data import sectors
from conformance.zones import MODELS, check_refused, done, plug_zoned
from harness.report import clause, described
from harness.virtio.blk import APPEND_SECTOR, RequestType, Status, ZoneState, ZoneType, segment
from harness.virtio.features import Feature

OPENED = [ZoneState.IOPEN, ZoneState.EOPEN]
WRITTEN = [*OPENED, ZoneState.CLOSED]
ALL = [ZoneState.EMPTY, *WRITTEN, ZoneState.FULL]

MANAGEMENT = [
    RequestType.ZONE_OPEN,
    RequestType.ZONE_CLOSE,
    RequestType.ZONE_FINISH,
    RequestType.ZONE_RESET,
]


def by_name(value):
    return value.name.lower()


# --- open


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("state", [ZoneState.EMPTY, *WRITTEN], ids=by_name)
@described("5.2.6-P-19")
def test_open_leads_to_eopen_and_leaves_the_write_pointer(plug, state, model):
    zoned = plug_zoned(plug, model)
    (zone,) = zoned.empty()
    before = zoned.brought_to(state, zone)

    done(zoned.open(zone))
    after = zoned.zone(zone)

    assert after.state is ZoneState.EOPEN
    assert after.wp == before.wp


@clause("5.2.6.2-D-19")
def test_a_full_zone_is_not_opened(plug):
    zoned = plug_zoned(plug)
    (zone,) = zoned.empty()
    zoned.brought_to(ZoneState.FULL, zone)

    check_refused(zoned.open(zone), Status.ZONE_INVALID_CMD)
    assert zoned.zone(zone).state is ZoneState.FULL


# --- close


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("state", WRITTEN, ids=by_name)
@described("5.2.6-P-17")
def test_close_leads_to_closed_and_leaves_the_write_pointer(plug, state, model):
    zoned = plug_zoned(plug, model)
    (zone,) = zoned.empty()
    before = zoned.brought_to(state, zone)

    done(zoned.close(zone))
    after = zoned.zone(zone)

    assert after.state is ZoneState.CLOSED
    assert after.wp == before.wp
    assert zoned.contents(zone.start, zoned.granule) == zoned.data(salt=11)


@described("5.2.6-P-16")
def test_close_of_an_open_zone_without_data_leads_to_empty(plug):
    zoned = plug_zoned(plug)
    (zone,) = zoned.empty()
    done(zoned.open(zone))

    done(zoned.close(zone))

    assert zoned.zone(zone) == zone


@pytest.mark.parametrize("state", [ZoneState.EMPTY, ZoneState.FULL], ids=by_name)
@clause("5.2.6.2-D-21")
def test_an_empty_or_full_zone_is_not_closed(plug, state):
    zoned = plug_zoned(plug)
    (zone,) = zoned.empty()
    zoned.brought_to(state, zone)

    check_refused(zoned.close(zone), Status.ZONE_INVALID_CMD)
    assert zoned.zone(zone).state is state


# --- finish


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("state", [*OPENED, ZoneState.FULL], ids=by_name)
@described("5.2.6-P-18")
def test_finish_leads_to_full_and_leaves_the_data(plug, state, model):
    zoned = plug_zoned(plug, model)
    (zone,) = zoned.empty()
    zoned.brought_to(state, zone)

    done(zoned.finish(zone))

    assert zoned.zone(zone).state is ZoneState.FULL
    assert zoned.contents(zone.start, zoned.granule) == zoned.data(salt=11)


@pytest.mark.parametrize("state", [ZoneState.EMPTY, ZoneState.CLOSED], ids=by_name)
@clause("5.2.6.2-D-22")
def test_finish_of_a_zone_that_is_not_open_makes_it_full_or_changes_nothing(plug, state):
    zoned = plug_zoned(plug)
    (zone,) = zoned.empty()
    before = zoned.brought_to(state, zone)

    completion = zoned.finish(zone)
    after = zoned.zone(zone)

    # The state machine neither lists nor forbids this.
    check_refused(completion, Status.OK, Status.ZONE_INVALID_CMD)
    if completion.status is Status.OK:
        assert after.state is ZoneState.FULL
    else:
        assert after == before


# --- reset


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("state", ALL, ids=by_name)
@described("5.2.6-P-20")
def test_reset_leads_to_empty_with_the_write_pointer_at_the_start(plug, state, model):
    zoned = plug_zoned(plug, model)
    (zone,) = zoned.empty()
    zoned.brought_to(state, zone)

    done(zoned.reset(zone))

    assert zoned.zone(zone) == zone


@described("5.2.6-P-35")
def test_a_zone_that_was_reset_takes_other_data(plug):
    zoned = plug_zoned(plug)
    (zone,) = zoned.empty()
    zoned.brought_to(ZoneState.FULL, zone)

    done(zoned.reset(zone))
    done(zoned.disk.write(zone.start, zoned.data(2, salt=90)))

    assert zoned.zone(zone).wp == zone.start + 2 * zoned.granule
    assert zoned.contents(zone.start, 2 * zoned.granule) == zoned.data(2, salt=90)


@described("5.2.6-P-29")
def test_management_of_a_zone_leaves_its_neighbours_alone(plug):
    zoned = plug_zoned(plug)
    before, zone, behind = zoned.empty(3)
    neighbours = [
        zoned.brought_to(ZoneState.CLOSED, before),
        zoned.brought_to(ZoneState.IOPEN, behind),
    ]

    for act in (zoned.open, zoned.finish, zoned.reset):
        done(act(zone))
        assert [zoned.zone(before), zoned.zone(behind)] == neighbours, act.__name__


@described("5.2.6-P-22")
def test_reset_all_empties_every_sequential_zone(plug):
    zoned = plug_zoned(plug, conventional_zones=1)
    conventional = zoned.of_type(ZoneType.CONV)[0]
    done(zoned.disk.write(conventional.start, sectors(4, salt=33)))
    zones = zoned.empty(len(ALL))
    for name, wanted in (("max_open_zones", 2), ("max_active_zones", 3)):
        if 0 < getattr(zoned.config, name) < wanted:
            pytest.skip(f"{name} is less than {wanted}: no zones in every state")
    # The full zone first: it is no longer active when the others are.
    for state, zone in reversed([*zip(ALL, zones, strict=True)]):
        zoned.brought_to(state, zone)

    done(zoned.disk.request(RequestType.ZONE_RESET_ALL))

    assert [zoned.zone(zone) for zone in zones] == zones
    assert zoned.zone(conventional).state is ZoneState.NOT_WP
    assert zoned.contents(conventional.start, 4) == sectors(4, salt=33)


@clause("5.2.6.2-D-39")
def test_secure_erase_of_zones_resets_them(plug):
    zoned = plug_zoned(plug, secure_erase=True, extra=[Feature.BLK_SECURE_ERASE])
    first, second, third = zoned.empty(3)
    size = zoned.config.zone_sectors
    assert second.start == first.start + size and third.start == second.start + size
    for zone in (first, second):
        zoned.brought_to(ZoneState.CLOSED, zone)
    beyond = zoned.brought_to(ZoneState.IOPEN, third)

    for zone in (first, second):
        erase = segment(zone.start, size)
        done(zoned.disk.request(RequestType.SECURE_ERASE, data=erase))

    assert [zoned.zone(first), zoned.zone(second)] == [first, second]
    assert zoned.zone(third) == beyond


# --- conventional, read-only and offline zones


@pytest.mark.parametrize("kind", MANAGEMENT, ids=by_name)
@clause("5.2.6.2-D-17")
def test_a_conventional_zone_is_not_managed(plug, kind):
    zoned = plug_zoned(plug, conventional_zones=2)
    for zone in zoned.of_type(ZoneType.CONV)[:2]:
        done(zoned.disk.write(zone.start, sectors(4, salt=33)))

        check_refused(zoned.disk.request(kind, zone.start), Status.ZONE_INVALID_CMD)

        assert zoned.zone(zone).state is ZoneState.NOT_WP
        assert zoned.contents(zone.start, 4) == sectors(4, salt=33)


@pytest.mark.parametrize("state", [ZoneState.RDONLY, ZoneState.OFFLINE], ids=by_name)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(RequestType.ZONE_OPEN, marks=clause("5.2.6.2-D-19"), id="open"),
        pytest.param(RequestType.ZONE_CLOSE, marks=clause("5.2.6.2-D-21"), id="close"),
        pytest.param(RequestType.ZONE_FINISH, marks=clause("5.2.6.2-D-22"), id="finish"),
        pytest.param(RequestType.ZONE_RESET, marks=clause("5.2.6.2-D-23"), id="reset"),
    ],
)
def test_a_read_only_or_offline_zone_keeps_its_state(plug, kind, state):
    zoned = plug_zoned(plug, zones_read_only=(2,), zones_offline=(3,))
    zone = zoned.in_state(state)

    check_refused(zoned.disk.request(kind, zone.start), Status.ZONE_INVALID_CMD)
    assert zoned.zone(zone).state is state


@described("5.2.6-P-21")
def test_reset_all_leaves_read_only_and_offline_zones_as_they_are(plug):
    zoned = plug_zoned(plug, zones_read_only=(2,), zones_offline=(3,))
    read_only, offline = zoned.in_state(ZoneState.RDONLY), zoned.in_state(ZoneState.OFFLINE)

    zoned.reset_all()

    assert zoned.zone(read_only).state is ZoneState.RDONLY
    assert zoned.zone(offline).state is ZoneState.OFFLINE


@clause("5.2.6.2-D-33")
def test_a_read_only_zone_is_not_written(plug):
    zoned = plug_zoned(plug, zones_read_only=(2,))
    zoned.need_append(zoned.granule)
    zone = zoned.in_state(ZoneState.RDONLY)
    before = zoned.disk.read(zone.start, zoned.granule)

    check_refused(zoned.disk.write(zone.start, zoned.data()), Status.ZONE_INVALID_CMD)
    check_refused(zoned.append(zone.start, zoned.data()), Status.ZONE_INVALID_CMD)

    assert zoned.zone(zone).state is ZoneState.RDONLY
    after = zoned.disk.read(zone.start, zoned.granule)
    assert (after.status, after.data) == (before.status, before.data)


@pytest.mark.parametrize(
    "kind", [RequestType.IN, RequestType.OUT, RequestType.ZONE_APPEND, *MANAGEMENT], ids=by_name
)
@clause("5.2.6.2-D-34")
def test_an_offline_zone_takes_no_request(plug, kind):
    zoned = plug_zoned(plug, zones_offline=(3,))
    zone = zoned.in_state(ZoneState.OFFLINE)
    data, receive = b"", 0
    if kind in (RequestType.OUT, RequestType.ZONE_APPEND):
        data = zoned.data()
    if kind is RequestType.IN:
        receive = zoned.granule * 512
    if kind is RequestType.ZONE_APPEND:
        zoned.need_append(zoned.granule)
        receive = APPEND_SECTOR.size

    completion = zoned.disk.request(kind, zone.start, data, receive)

    check_refused(completion, Status.ZONE_INVALID_CMD)
    assert zoned.zone(zone).state is ZoneState.OFFLINE


@described("5.2.6-P-36")
def test_management_of_a_zone_beyond_the_last_is_an_error(plug):
    zoned = plug_zoned(plug)
    zoned.reset_all()
    before = zoned.zones()
    size = zoned.config.zone_sectors
    end = before[-1].start + size

    for kind in MANAGEMENT:
        for sector in (end, end + size, 2**63, 2**64 - size):
            completion = zoned.disk.request(kind, sector)
            check_refused(
                completion, Status.ZONE_INVALID_CMD, Status.IOERR, case=f"{kind} {sector}"
            )
    assert zoned.zones() == before
