"""Reading, writing and appending to zones (virtio 5.2.6)."""

import pytest

from conformance.data import sectors
from conformance.zones import check_refused, done, plug_zoned
from harness.driver.interface import Request
from harness.report import clause, described
from harness.virtio.blk import APPEND_SECTOR, SECTOR, RequestType, Status, ZoneState, ZoneType


def unchanged(zoned, before):
    """Return True when state and write pointer of a zone are as in `before`."""
    return zoned.zone(before) == before


def shows_through(old, new):
    """Return True when any aligned 16 bytes of `old` are at the same place in `new`."""
    return any(old[n : n + 16] == new[n : n + 16] for n in range(0, len(old) - 15, 16))


# --- writes at the write pointer


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ZoneState.EMPTY, ZoneState.IOPEN),
        (ZoneState.IOPEN, ZoneState.IOPEN),
        (ZoneState.EOPEN, ZoneState.EOPEN),
        (ZoneState.CLOSED, ZoneState.IOPEN),
    ],
    ids=["empty", "iopen", "eopen", "closed"],
)
@pytest.mark.parametrize("kind", ["write", "append"])
@described("5.2.6-P-30")
def test_a_write_moves_the_write_pointer(plug, kind, before, after):
    zoned = plug_zoned(plug)
    if kind == "append":
        zoned.need_append(2 * zoned.granule)
    (zone,) = zoned.empty()
    was = zoned.brought_to(before, zone)
    data = zoned.data(2, salt=60)

    if kind == "write":
        done(zoned.disk.write(was.wp, data))
    else:
        done(zoned.append(zone.start, data))
    now = zoned.zone(zone)

    assert now.state is after
    assert now.wp == was.wp + 2 * zoned.granule
    assert zoned.contents(was.wp, 2 * zoned.granule) == data


@pytest.mark.parametrize("kind", ["write", "append"])
@described("5.2.6-P-34")
def test_a_zone_written_to_its_capacity_is_full_and_holds_it_all(plug, kind):
    zoned = plug_zoned(plug, zone_sectors=256, zone_capacity=192)
    (zone,) = zoned.empty()
    if zone.capacity > 1 << 12:
        pytest.skip(f"a zone takes {zone.capacity} sectors: too many to write in a test")

    whole = zoned.fill(zone, append=kind == "append")

    assert zoned.zone(zone).state is ZoneState.FULL
    for at in range(0, zone.capacity, 64):
        count = min(64, zone.capacity - at)
        piece = whole[at * SECTOR : (at + count) * SECTOR]
        assert zoned.contents(zone.start + at, count) == piece


@pytest.mark.parametrize("kind", ["write", "append"])
@clause("5.2.6.2-D-26")
def test_a_full_zone_is_not_written(plug, kind):
    zoned = plug_zoned(plug)
    if kind == "append":
        zoned.need_append(zoned.granule)
    (zone,) = zoned.empty()
    zoned.brought_to(ZoneState.FULL, zone)

    if kind == "append":
        check_refused(zoned.append(zone.start, zoned.data(salt=80)), Status.ZONE_INVALID_CMD)
    else:
        completion = zoned.disk.write(zone.start, zoned.data(salt=80))
        # It is beyond the capacity, and not at a write pointer.
        check_refused(completion, Status.ZONE_INVALID_CMD, Status.ZONE_UNALIGNED_WP)
    assert zoned.zone(zone).state is ZoneState.FULL
    assert zoned.contents(zone.start, zoned.granule) == zoned.data(salt=11)


# --- writes elsewhere


@clause("5.2.6.2-D-31")
def test_a_write_before_or_behind_the_write_pointer_is_refused(plug):
    zoned = plug_zoned(plug)
    (zone,) = zoned.empty()
    check_refused(
        zoned.disk.write(zone.start + zoned.granule, zoned.data()), Status.ZONE_UNALIGNED_WP
    )
    assert unchanged(zoned, zone)
    done(zoned.disk.write(zone.start, zoned.data(3)))
    written = zoned.zone(zone)

    for steps in (-3, -1, 1, 2):
        completion = zoned.disk.write(written.wp + steps * zoned.granule, zoned.data(salt=80))
        check_refused(completion, Status.ZONE_UNALIGNED_WP, case=f"{steps} granules from it")

    assert unchanged(zoned, written)
    assert zoned.contents(zone.start, 3 * zoned.granule) == zoned.data(3)


@described("5.2.6-P-31")
def test_a_write_that_ends_inside_a_granule_is_refused(plug):
    zoned = plug_zoned(plug, write_granularity=4096)
    if zoned.granule == 1:
        pytest.skip("write_granularity is 512: no write ends inside a granule")
    (zone,) = zoned.empty()

    for count in (1, zoned.granule + 1, 2 * zoned.granule - 1):
        completion = zoned.disk.write(zone.start, sectors(count))
        check_refused(completion, Status.ZONE_UNALIGNED_WP, case=f"{count} sectors")

    assert unchanged(zoned, zone)


@pytest.mark.parametrize("kind", ["write", "append"])
@clause("5.2.6.2-D-26")
def test_more_than_a_zone_has_room_for_is_refused(plug, kind):
    zoned = plug_zoned(plug, zone_sectors=256, zone_capacity=192, max_append_sectors=256)
    (zone,) = zoned.empty()
    if zone.capacity == zoned.config.zone_sectors:
        pytest.skip("z_cap is zone_sectors: a write beyond the capacity also leaves the zone")
    left = 3 * zoned.granule
    if zone.capacity > 1 << 12:
        pytest.skip(f"a zone takes {zone.capacity} sectors: too many to write in a test")
    end = zone.start + zone.capacity
    share = 16 * zoned.granule
    for at in range(zone.start, end - left, share):
        done(zoned.disk.write(at, sectors(min(share, end - left - at), salt=9)))
    written = zoned.zone(zone)
    assert written.wp == end - left

    data = sectors(left + zoned.granule, salt=80)
    if kind == "write":
        completion = zoned.disk.write(written.wp, data)
    else:
        zoned.need_append(left + zoned.granule)
        completion = zoned.append(zone.start, data)
    check_refused(completion, Status.ZONE_INVALID_CMD)
    assert unchanged(zoned, written)

    # A write that fits still succeeds.
    done(zoned.disk.write(written.wp, data[: left * SECTOR]))
    assert zoned.zone(zone).state is ZoneState.FULL


@pytest.mark.parametrize("kind", ["read", "write", "append"])
@clause("5.2.6.2-D-30")
def test_a_range_across_two_zones_is_refused(plug, kind):
    zoned = plug_zoned(plug, zone_sectors=256, max_append_sectors=512)
    zone, behind = zoned.empty(2)
    size = zoned.config.zone_sectors
    assert behind.start == zone.start + size
    if size > 1 << 12:
        pytest.skip(f"a zone has {size} sectors: too many for a test's memory")
    more = size + zoned.granule

    if kind == "read":
        completion = zoned.disk.read(behind.start - zoned.granule, 2 * zoned.granule)
    elif kind == "write":
        completion = zoned.disk.write(zone.start, sectors(more))
    else:
        zoned.need_append(more)
        completion = zoned.append(zone.start, sectors(more))

    check_refused(completion, Status.ZONE_INVALID_CMD)
    assert [zoned.zone(zone), zoned.zone(behind)] == [zone, behind]


# --- append


@clause("5.2.6.2-D-27")
def test_append_returns_the_sector_of_the_data(plug):
    zoned = plug_zoned(plug)
    zoned.need_append(3 * zoned.granule)
    (zone,) = zoned.empty()

    first = zoned.appended(zone, zoned.data(2, salt=20))
    done(zoned.disk.write(zone.start + 2 * zoned.granule, zoned.data(salt=40)))
    second = zoned.appended(zone, zoned.data(3, salt=60))

    assert first == zone.start
    assert second == zone.start + 3 * zoned.granule
    assert zoned.zone(zone).wp == zone.start + 6 * zoned.granule
    expected = zoned.data(2, salt=20) + zoned.data(salt=40) + zoned.data(3, salt=60)
    assert zoned.contents(zone.start, 6 * zoned.granule) == expected


@clause("5.2.6.2-D-27")
def test_appends_in_flight_together_each_get_a_place(plug):
    zoned = plug_zoned(plug)
    zoned.need_append(zoned.granule)
    (zone,) = zoned.empty()
    zoned.disk.needs_descriptors(8 * 4)
    pieces = [zoned.data(salt=10 + 7 * n) for n in range(8)]

    tokens = zoned.disk.driver.submit(
        [
            Request(RequestType.ZONE_APPEND, zone.start, piece, receive=APPEND_SECTOR.size)
            for piece in pieces
        ]
    )
    completions = zoned.disk.driver.complete(tokens)

    assert [completion.status for completion in completions] == [Status.OK] * 8
    assert all(completion.damage == () for completion in completions)
    places = [APPEND_SECTOR.unpack(completion.data)[0] for completion in completions]
    assert sorted(places) == [zone.start + n * zoned.granule for n in range(8)]
    for place, piece in zip(places, pieces, strict=True):
        assert zoned.contents(place, zoned.granule) == piece
    assert zoned.zone(zone).wp == zone.start + 8 * zoned.granule


@clause("5.2.6.2-D-27")
def test_append_sector_and_status_may_share_a_descriptor(plug):
    zoned = plug_zoned(plug)
    zoned.need_append(zoned.granule)
    (zone,) = zoned.empty()

    for number, writable in enumerate([(9,), (8, 1), (3, 6), (1, 8)]):
        completion = done(
            zoned.disk.request(
                RequestType.ZONE_APPEND,
                zone.start,
                zoned.data(salt=number),
                APPEND_SECTOR.size,
                writable=writable,
            )
        )
        place = zone.start + number * zoned.granule
        assert APPEND_SECTOR.unpack(completion.data)[0] == place, f"cut into {writable}"
        assert zoned.contents(place, zoned.granule) == zoned.data(salt=number)


@clause("5.2.6.2-D-25")
def test_an_append_elsewhere_than_at_the_start_of_a_zone_is_refused(plug):
    zoned = plug_zoned(plug)
    zoned.need_append(zoned.granule)
    (zone,) = zoned.empty()
    done(zoned.disk.write(zone.start, zoned.data(2)))
    written = zoned.zone(zone)

    last = zone.start + zoned.config.zone_sectors - zoned.granule
    for sector in (zone.start + zoned.granule, written.wp, last):
        completion = zoned.append(sector, zoned.data(salt=80))
        check_refused(completion, Status.ZONE_INVALID_CMD, case=f"at sector {sector}")

    assert unchanged(zoned, written)


@pytest.mark.parametrize(
    ("model", "kind"),
    [("host-managed", ZoneType.CONV), ("host-aware", ZoneType.SWP)],
    ids=["conventional", "write-preferred"],
)
@clause("5.2.6.2-D-18")
def test_an_append_to_a_zone_that_is_not_write_required_is_refused(plug, model, kind):
    zoned = plug_zoned(plug, model, conventional_zones=1)
    zoned.need_append(zoned.granule)
    zone = zoned.of_type(kind)[0]
    before = zoned.contents(zone.start, zoned.granule)

    check_refused(zoned.append(zone.start, zoned.data(salt=80)), Status.ZONE_INVALID_CMD)

    assert unchanged(zoned, zone)
    assert zoned.contents(zone.start, zoned.granule) == before


@clause("5.2.6.2-D-28")
def test_without_append_every_append_is_unsupported(plug):
    zoned = plug_zoned(plug, max_append_sectors=0)
    if zoned.config.max_append_sectors:
        pytest.skip("max_append_sectors is not 0: the device can append")
    (zone,) = zoned.empty()

    check_refused(zoned.append(zone.start, zoned.data()), Status.UNSUPP)
    assert unchanged(zoned, zone)


@clause("5.2.6.2-D-29")
def test_an_append_of_more_than_max_append_sectors_is_refused(plug):
    zoned = plug_zoned(plug, max_append_sectors=16)
    zoned.need_append(zoned.granule)
    (zone,) = zoned.empty()
    more = zoned.config.max_append_sectors + zoned.granule
    if more > zone.capacity or more > 1 << 12:
        pytest.skip(f"max_append_sectors is {more - zoned.granule}: a test cannot exceed it")

    check_refused(zoned.append(zone.start, sectors(more)), Status.ZONE_INVALID_CMD)
    assert unchanged(zoned, zone)


# --- reads


@clause("5.2.6.2-D-35", "5.2.6.2-D-36")
def test_what_was_in_a_zone_before_its_reset_is_not_read_again(plug):
    zoned = plug_zoned(plug)
    (zone,) = zoned.empty()
    count = 4 * zoned.granule
    done(zoned.disk.write(zone.start, zoned.data(4)))
    done(zoned.reset(zone))

    completion = zoned.disk.read(zone.start, count)

    assert completion.damage == ()
    assert not shows_through(zoned.data(4), completion.data)
    if completion.status is Status.OK:
        # The device may return a pattern of its own, the same for both reads.
        assert completion.data == zoned.contents(zone.start, count)


@clause("5.2.6.2-D-35", "5.2.6.2-D-36")
def test_behind_the_write_pointer_nothing_written_before_is_read(plug):
    zoned = plug_zoned(plug)
    (zone,) = zoned.empty()
    old, new = zoned.data(4, salt=20), zoned.data(2, salt=130)
    done(zoned.disk.write(zone.start, old))
    done(zoned.reset(zone))
    done(zoned.disk.write(zone.start, new))

    written = zoned.contents(zone.start, 2 * zoned.granule)
    across = zoned.disk.read(zone.start, 4 * zoned.granule)

    assert written == new
    assert across.damage == ()
    assert not shows_through(old, across.data)
    if across.status is Status.OK:
        assert across.data[: len(new)] == new


@clause("5.2.6.2-D-36")
def test_what_was_not_written_before_a_finish_is_unwritten(plug):
    zoned = plug_zoned(plug)
    (zone,) = zoned.empty()
    old = zoned.data(4, salt=20)
    done(zoned.disk.write(zone.start, old))
    done(zoned.reset(zone))
    zoned.brought_to(ZoneState.FULL, zone)

    written = zoned.contents(zone.start, zoned.granule)
    behind = zoned.disk.read(zone.start + zoned.granule, 3 * zoned.granule)

    assert written == zoned.data(salt=11)
    assert behind.damage == ()
    assert not shows_through(old[zoned.granule * SECTOR :], behind.data)


@described("5.2.6-P-38")
def test_a_zone_is_read_in_any_order(plug):
    zoned = plug_zoned(plug)
    (zone,) = zoned.empty()
    whole = zoned.data(6)
    done(zoned.disk.write(zone.start, whole))

    for first, count in ((5, 1), (0, 2), (3, 3), (1, 1)):
        start, end = first * zoned.granule, (first + count) * zoned.granule
        completion = done(zoned.disk.read(zone.start + start, end - start))
        assert completion.data == whole[start * SECTOR : end * SECTOR]


# --- zones of other types


@described("5.2.6-P-23")
def test_a_conventional_zone_is_written_in_any_order(plug):
    zoned = plug_zoned(plug, conventional_zones=2)
    zone = zoned.of_type(ZoneType.CONV)[0]

    for sector in (40, 8, 9, 40):
        done(zoned.disk.write(zone.start + sector, sectors(8, salt=sector)))
        assert zoned.contents(zone.start + sector, 8) == sectors(8, salt=sector)
    assert zoned.zone(zone).state is ZoneState.NOT_WP


@described("5.2.6-P-32")
def test_a_write_preferred_zone_is_written_in_any_order(plug):
    zoned = plug_zoned(plug, "host-aware")
    zone = zoned.of_type(ZoneType.SWP)[0]

    for at in (5, 1, 2, 5):
        sector = zone.start + at * zoned.granule
        done(zoned.disk.write(sector, zoned.data(salt=at)))
        assert zoned.contents(sector, zoned.granule) == zoned.data(salt=at)
    assert zoned.zone(zone).type is ZoneType.SWP
