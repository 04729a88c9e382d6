"""Features and configuration space of a zoned device (virtio 5.2.5)."""

import pytest

from conformance.data import needed, sectors
from conformance.waiting import trouble
from conformance.zones import ACTIVE, MODELS, ZonedDisk, done, plug_zoned
from harness.driver.errors import FeaturesRefusedError
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import (
    CONFIG_FIELD,
    SECTOR,
    Status,
    ZonedModel,
    ZoneState,
    ZoneType,
)
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, names

MODEL = {
    "host-managed": (ZonedModel.HOST_MANAGED, ZoneType.SWP),
    "host-aware": (ZonedModel.HOST_AWARE, ZoneType.SWR),
}
"""The value of `model`, and the zone type that such a disk must not have."""

ZONED_FIELDS = CONFIG_FIELD["zone_sectors"].offset, 24
"""Offset and length (bytes) of struct virtio_blk_zoned_characteristics."""


@clause("5.2.5.2-D-05")
@on("legacy")
@reads_only
def test_zoned_is_not_offered_through_a_legacy_interface(plug):
    disk = plug(start=False)

    assert "BLK_ZONED" not in names(disk.driver.offered())


@clause("5.2.5.2-D-06")
@reads_only
def test_a_host_aware_disk_is_usable_without_zoned_and_shows_no_zones(plug):
    disk = plug(zoned="host-aware", needs=[Feature.BLK_ZONED], without=[Feature.BLK_ZONED])

    assert disk.driver.status() & DeviceStatus.FEATURES_OK
    assert disk.driver.config_read(*ZONED_FIELDS) == bytes(24)


@described("5.2.5-P-01")
def test_a_host_aware_disk_without_zoned_is_written_anywhere(plug):
    disk = plug(zoned="host-aware", needs=[Feature.BLK_ZONED], without=[Feature.BLK_ZONED])

    for sector in (64, 8, 72):
        completion = disk.write(sector, sectors(8, salt=sector))
        assert completion.status is Status.OK
        assert completion.damage == ()
        read = needed(disk.read(sector, 8), "the read of what was written")
        assert read.data == sectors(8, salt=sector)


@clause("5.2.5.2-D-07")
@reads_only
def test_a_host_managed_disk_is_not_usable_without_zoned(plug):
    driver = plug(zoned="host-managed", start=False, needs=[Feature.BLK_ZONED]).driver
    rest = driver.offered() & ~(Feature.BLK_ZONED.mask | Feature.BLK_DISCARD.mask)

    try:
        status = driver.negotiate(rest).status
    except FeaturesRefusedError:
        status = driver.status()

    assert not status & DeviceStatus.FEATURES_OK
    # With ZONED the same write is refused.
    assert driver.negotiate().status & DeviceStatus.FEATURES_OK


@pytest.mark.parametrize("model", MODELS)
@clause("5.2.5.2-D-08")
@reads_only
def test_model_is_that_of_the_zones(plug, model):
    zoned = plug_zoned(plug, model, conventional_zones=1)
    expected, foreign = MODEL[model]

    assert zoned.config.model == expected
    assert foreign not in {zone.type for zone in zoned.zones()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("capacity", [16384, 16384 - 24], ids=["whole-zones", "shorter-last-zone"])
@clause("5.2.5.2-D-09")
@reads_only
def test_zone_sectors_is_the_size_of_every_zone_but_the_last(plug, model, capacity):
    zoned = plug_zoned(plug, model, capacity=capacity, zone_sectors=512)
    size = zoned.config.zone_sectors

    starts = [zone.start for zone in zoned.zones()]

    assert starts == list(range(0, zoned.config.capacity, size))


@clause("5.2.5.2-D-11")
def test_as_many_zones_can_be_open_as_max_open_zones_says_and_no_more(plug):
    zoned = plug_zoned(plug, max_open_zones=4, max_active_zones=6)
    most = zoned.limit("max_open_zones")
    zones = zoned.empty(most + 1)

    statuses = [zoned.open(zone).status for zone in zones]

    assert statuses[:-1] == [Status.OK] * most
    assert statuses[-1] is not Status.OK
    assert zoned.states()[ZoneState.EOPEN] == most


@clause("5.2.5.2-D-12")
def test_as_many_zones_can_be_active_as_max_active_zones_says_and_no_more(plug):
    zoned = plug_zoned(plug, max_open_zones=3, max_active_zones=5)
    most = zoned.limit("max_active_zones")
    zones = zoned.empty(most + 1)
    for zone in zones[:most]:
        zoned.brought_to(ZoneState.CLOSED, zone)

    status = zoned.open(zones[most]).status

    assert status is not Status.OK
    assert zoned.states()[ZoneState.CLOSED] == most


@pytest.mark.parametrize("state", [ZoneState.IOPEN, ZoneState.EOPEN, ZoneState.CLOSED])
@clause("5.2.5.2-D-12")
def test_zones_count_as_active_whatever_made_them_so(plug, state):
    zoned = plug_zoned(plug, max_open_zones=0, max_active_zones=5)
    most = zoned.limit("max_active_zones")
    open_at_once = zoned.config.max_open_zones or most
    *zones, other = zoned.empty(most + 1)
    for number, zone in enumerate(zones):
        # Zones that cannot all be open at once are closed ones, made first.
        closed = most - number > open_at_once
        zoned.brought_to(ZoneState.CLOSED if closed else state, zone)

    opened = zoned.open(other).status
    written = zoned.disk.write(other.start, zoned.data()).status

    assert (opened is Status.OK, written is Status.OK) == (False, False)
    assert sum(zone.state in ACTIVE for zone in zoned.zones()) == most


@clause("5.2.5.2-D-13")
def test_max_append_sectors_can_be_appended_at_once(plug):
    zoned = plug_zoned(plug, max_append_sectors=64)
    zoned.need_append(zoned.granule)
    (zone,) = zoned.empty()
    most = zoned.config.max_append_sectors
    if most > zone.capacity:
        pytest.skip(
            f"max_append_sectors is {most}, more than the capacity of a zone ({zone.capacity})"
        )
    if most * SECTOR > 1 << 20:
        pytest.skip(f"max_append_sectors is {most}: too much for a test's memory")
    data = sectors(most)

    assert zoned.appended(zone, data) == zone.start
    assert zoned.contents(zone.start, most) == data


@clause("5.2.5.2-D-14")
@reads_only
def test_max_append_sectors_is_no_more_than_the_segments_of_a_request(plug):
    limits = [Feature.BLK_SEG_MAX, Feature.BLK_SIZE_MAX]
    disk = plug(zoned="host-managed", needs=[Feature.BLK_ZONED, *limits])
    config = disk.driver.config()

    assert config.max_append_sectors * SECTOR <= config.seg_max * config.size_max


@clause("5.2.5.2-D-16")
def test_writes_aligned_to_write_granularity_succeed_and_others_do_not(plug):
    zoned = plug_zoned(plug, write_granularity=4096)
    if zoned.granule == 1:
        pytest.skip("write_granularity is 512: every write is aligned")
    (zone,) = zoned.empty()

    done(zoned.disk.write(zone.start, zoned.data(1)))
    done(zoned.disk.write(zone.start + zoned.granule, zoned.data(2)))
    written = zoned.zone(zone)
    for count in (1, zoned.granule // 2, zoned.granule - 1, zoned.granule + 1):
        completion = zoned.disk.write(written.wp, sectors(count, salt=70))
        assert completion.status is not Status.OK, f"{count} sectors were written"
        assert completion.damage == ()

    assert written.wp == zone.start + 3 * zoned.granule
    assert zoned.zone(zone) == written


@clause("5.2.5.2-D-16")
def test_appends_aligned_to_write_granularity_succeed_and_others_do_not(plug):
    zoned = plug_zoned(plug, write_granularity=4096)
    if zoned.granule == 1:
        pytest.skip("write_granularity is 512: every append is aligned")
    zoned.need_append(zoned.granule + 1)
    (zone,) = zoned.empty()

    assert zoned.appended(zone, zoned.data(1)) == zone.start
    written = zoned.zone(zone)
    for count in (1, zoned.granule // 2, zoned.granule - 1, zoned.granule + 1):
        completion = zoned.append(zone.start, sectors(count, salt=70))
        assert completion.status is not Status.OK, f"{count} sectors were appended"
        assert completion.damage == ()

    assert written.wp == zone.start + zoned.granule
    assert zoned.zone(zone) == written


@pytest.mark.parametrize("model", MODELS)
@clause("5.2.5.2-D-17")
@reads_only
def test_the_padding_behind_model_is_zero(plug, model):
    zoned = plug_zoned(plug, model)
    field = CONFIG_FIELD["unused2"]

    assert zoned.disk.driver.config_read(field.offset, field.size) == bytes(3)


@described("5.2.5-P-10")
def test_the_fields_of_zoned_cannot_be_written(plug):
    zoned = plug_zoned(plug)
    driver = zoned.disk.driver
    before = driver.config_read(*ZONED_FIELDS)

    for name in ("zone_sectors", "max_open_zones", "max_append_sectors", "write_granularity"):
        # A device may report the write as an error, or ignore it.
        trouble(lambda name=name: driver.config_write(CONFIG_FIELD[name].offset, b"\x08\0\0\0"))
    trouble(lambda: driver.config_write(CONFIG_FIELD["model"].offset, b"\0"))

    assert driver.config_read(*ZONED_FIELDS) == before


@clause("5.2.6.2-D-37")
@reads_only
def test_secure_erase_is_aligned_to_zones(plug):
    disk = plug(
        zoned="host-managed",
        secure_erase=True,
        needs=[Feature.BLK_ZONED, Feature.BLK_SECURE_ERASE],
    )
    config = ZonedDisk(disk, disk.driver.config()).config

    assert config.secure_erase_sector_alignment % config.zone_sectors == 0
