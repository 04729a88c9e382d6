"""Defects of zoned disks (virtio 5.2.5, 5.2.6)."""

from __future__ import annotations

from harness.diskspec import SECTOR
from harness.model.block import SIZE_MAX
from harness.model.defects.registry import Original, defect, during
from harness.model.request import Request
from harness.model.zoned import ZonedBlock
from harness.model.zones import ACTIVE, OPEN, Zone, ZoneError, Zones
from harness.virtio.blk import Status, ZonedModel, ZoneState

Fields = dict[str, int]

# --- features and configuration space


@defect(ZonedBlock.declined, "5.2.5.2-D-06", text="the fields of zoned are shown without ZONED")
def zoned_fields_without_zoned(original: Original, block: ZonedBlock) -> bool:
    return False


@defect(
    ZonedBlock.acceptable, "5.2.5.2-D-06", text="a host-aware disk refuses features without ZONED"
)
def host_aware_insists_on_zoned(original: Original, block: ZonedBlock, features: int) -> bool:
    with during(block, host_managed=True):
        return bool(original(block, features))


@defect(
    ZonedBlock.acceptable, "5.2.5.2-D-07", text="a host-managed disk accepts features without ZONED"
)
def host_managed_without_zoned(original: Original, block: ZonedBlock, features: int) -> bool:
    with during(block, host_managed=False):
        return bool(original(block, features))


def _shown(original: Original, block: ZonedBlock, **changed: int) -> Fields:
    fields: Fields = original(block)
    return {**fields, **(changed if fields.get("zone_sectors") else {})}


@defect(ZonedBlock.fields, "5.2.5.2-D-08", text="model is 0")
def model_none(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, model=ZonedModel.NONE)


@defect(ZonedBlock.fields, "5.2.5.2-D-08", text="model is host-aware for every zoned disk")
def model_always_host_aware(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, model=ZonedModel.HOST_AWARE)


@defect(ZonedBlock.fields, "5.2.5.2-D-09", text="zone_sectors is twice the size of a zone")
def zone_sectors_doubled(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, zone_sectors=2 * block.zones.size)


@defect(ZonedBlock.fields, "5.2.5.2-D-11", text="max_open_zones is one more than can be open")
def max_open_zones_too_high(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, max_open_zones=block.zones.max_open + 1)


@defect(ZonedBlock.fields, "5.2.5.2-D-12", text="max_active_zones is one less than can be active")
def max_active_zones_too_low(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, max_active_zones=max(block.zones.max_active - 1, 0))


@defect(
    Zones.exhausted,
    "5.2.5.2-D-12",
    text="zones that were opened implicitly do not count as active",
)
def implicitly_open_zones_not_active(
    original: Original, zones: Zones, limit: int, states: frozenset[ZoneState]
) -> bool:
    counted = states - {ZoneState.IOPEN} if ZoneState.CLOSED in states else states
    return bool(original(zones, limit, counted))


@defect(ZonedBlock.fields, "5.2.5.2-D-13", text="max_append_sectors is more than can be appended")
def max_append_too_high(original: Original, block: ZonedBlock) -> Fields:
    most = block.zones.max_append
    return _shown(original, block, max_append_sectors=most and most + 8)


@defect(ZonedBlock.fields, "5.2.5.2-D-14", text="max_append_sectors exceeds a request's segments")
def max_append_beyond_segments(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, max_append_sectors=block.seg_max * SIZE_MAX // SECTOR + 8)


@defect(ZonedBlock.fields, "5.2.5.2-D-16", text="write_granularity is half of the real value")
def write_granularity_halved(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, write_granularity=max(block.zones.granularity // 2, SECTOR))


@defect(ZonedBlock.config, "5.2.5.2-D-17", text="the padding after model is not 0")
def zoned_padding_not_zero(original: Original, block: ZonedBlock) -> bytes:
    return bytes(original(block)[:-1]) + b"\x01"


@defect(ZonedBlock.fields, "5.2.6.2-D-37", text="the alignment of secure erase is one sector")
def secure_erase_unaligned_to_zones(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, secure_erase_sector_alignment=1)


# --- zone management


@defect(Zones.manageable, "5.2.6.2-D-17", text="conventional zones can be managed like other zones")
def conventional_zone_managed(original: Original, zones: Zones, zone: Zone) -> None:
    if zone.sequential:
        original(zones, zone)


def _leniently(original: Original, zones: Zones, zone: Zone) -> None:
    try:
        original(zones, zone)
    except ZoneError as error:
        if error.status is not Status.ZONE_INVALID_CMD:
            raise


@defect(Zones.open, "5.2.6.2-D-19", text="a zone that cannot be opened is opened with OK")
def open_always_succeeds(original: Original, zones: Zones, zone: Zone) -> None:
    _leniently(original, zones, zone)


@defect(Zones.close, "5.2.6.2-D-21", text="a zone that cannot be closed is closed with OK")
def close_always_succeeds(original: Original, zones: Zones, zone: Zone) -> None:
    _leniently(original, zones, zone)


@defect(Zones.finish, "5.2.6.2-D-22", text="a zone that cannot be finished is finished with OK")
def finish_always_succeeds(original: Original, zones: Zones, zone: Zone) -> None:
    _leniently(original, zones, zone)


@defect(ZonedBlock.clear, "5.2.6.2-D-23", text="a read-only or offline zone is reset to EMPTY")
def dead_zone_reset(original: Original, block: ZonedBlock, zone: Zone) -> None:
    if zone.sequential:
        zone.state, zone.wp = ZoneState.EMPTY, zone.start
    original(block, zone)


@defect(
    Zones.make_room, "5.2.6.2-D-20", text="opening one zone too many ends with ZONE_INVALID_CMD"
)
def resources_are_invalid_cmd(original: Original, zones: Zones) -> None:
    try:
        original(zones)
    except ZoneError:
        raise ZoneError(Status.ZONE_INVALID_CMD) from None


@defect(
    Zones.make_room,
    "5.2.6-P-14",
    text="opening one zone too many ends with ZONE_ACTIVE_RESOURCE",
)
def open_limit_named_active(original: Original, zones: Zones) -> None:
    try:
        original(zones)
    except ZoneError:
        raise ZoneError(Status.ZONE_ACTIVE_RESOURCE) from None


@defect(
    Zones.exhausted, "5.2.6.2-D-20", "5.2.6.2-D-24", text="the limit of open zones is not enforced"
)
def open_limit_ignored(
    original: Original, zones: Zones, limit: int, states: frozenset[ZoneState]
) -> bool:
    return states != OPEN and bool(original(zones, limit, states))


@defect(
    Zones.exhausted,
    "5.2.6.2-D-20",
    "5.2.6.2-D-24",
    text="the limit of active zones is not enforced",
)
def active_limit_ignored(
    original: Original, zones: Zones, limit: int, states: frozenset[ZoneState]
) -> bool:
    return states != ACTIVE and bool(original(zones, limit, states))


@defect(
    Zones.enter,
    "5.2.6-P-15",
    text="if both limits are reached, the limit of open zones is reported",
)
def open_limit_named_first(original: Original, zones: Zones, zone: Zone, state: ZoneState) -> None:
    if zone.state not in OPEN and zones.exhausted(zones.max_open, OPEN):
        zones.make_room()
    original(zones, zone, state)


@defect(
    Zones.open_for_write, "5.2.6.2-D-24", text="a write opens its zone without regard to the limits"
)
def implicit_open_beyond_limits(original: Original, zones: Zones, zone: Zone) -> None:
    try:
        original(zones, zone)
    except ZoneError:
        zone.state = ZoneState.IOPEN


@defect(
    Zones.closed,
    "5.2.6-P-16",
    text="a zone opened and closed without a write is CLOSED",
)
def closed_without_data(original: Original, zones: Zones, zone: Zone) -> ZoneState:
    return ZoneState.CLOSED


@defect(
    Zones.open,
    "5.2.6-P-19",
    text="an implicitly open zone stays implicitly open after ZONE_OPEN",
)
def implicitly_open_stays(original: Original, zones: Zones, zone: Zone) -> None:
    before = zone.state
    original(zones, zone)
    if before is ZoneState.IOPEN:
        zone.state = before


@defect(
    Zones.close,
    "5.2.6-P-17",
    text="an open zone with data stays open after ZONE_CLOSE",
)
def close_does_nothing(original: Original, zones: Zones, zone: Zone) -> None:
    before = zone.state
    original(zones, zone)
    if zone.state is ZoneState.CLOSED:
        zone.state = before


@defect(
    Zones.reset,
    "5.2.6-P-20",
    "5.2.6-P-35",
    text="a full zone stays FULL after ZONE_RESET",
)
def reset_leaves_full_zone(original: Original, zones: Zones, zone: Zone) -> None:
    before = zone.state
    original(zones, zone)
    if before is ZoneState.FULL:
        zone.state = before


@defect(
    Zones.finish,
    "5.2.6-P-18",
    text="a zone keeps its state after ZONE_FINISH",
)
def finish_does_nothing(original: Original, zones: Zones, zone: Zone) -> None:
    zones.manageable(zone)


@defect(
    Zones.finish,
    "5.2.6.2-D-22",
    text="a zone that is not open becomes CLOSED after ZONE_FINISH",
)
def finish_closes(original: Original, zones: Zones, zone: Zone) -> None:
    before = zone.state
    original(zones, zone)
    if before in (ZoneState.EMPTY, ZoneState.CLOSED):
        zone.state = ZoneState.CLOSED


@defect(
    Zones.resettable,
    "5.2.6-P-22",
    text="a reset of all zones leaves full zones full",
)
def reset_all_leaves_full_zones(original: Original, zones: Zones) -> list[Zone]:
    return [zone for zone in original(zones) if zone.state is not ZoneState.FULL]


@defect(
    Zones.resettable,
    "5.2.6-P-21",
    text="a reset of all zones resets read-only and offline zones, too",
)
def reset_all_revives_zones(original: Original, zones: Zones) -> list[Zone]:
    sequential: list[Zone] = [zone for zone in zones.all if zone.sequential]
    for zone in sequential:
        zone.state = ZoneState.FULL
    return sequential


@defect(
    Zones.at,
    "5.2.6-P-36",
    text="a request for a zone beyond the last acts on the last zone",
)
def zone_beyond_the_last(original: Original, zones: Zones, sector: int) -> Zone:
    last = zones.all[-1]
    zone: Zone = last if sector >= last.end else original(zones, sector)
    return zone


@defect(ZonedBlock.erase, "5.2.6.2-D-39", text="secure erase does not change the state of zones")
def secure_erase_keeps_states(
    original: Original, block: ZonedBlock, sector: int, count: int, flags: int
) -> None:
    block.storage.deallocate("discard", sector, count)


# --- limits


@defect(
    Zones.exhausted,
    "5.2.4-P-01",
    text="a closed zone still counts as open",
)
def closed_zones_count_as_open(
    original: Original, zones: Zones, limit: int, states: frozenset[ZoneState]
) -> bool:
    return bool(original(zones, limit, states | {ZoneState.CLOSED}))


@defect(
    Zones.exhausted,
    "5.2.4-P-02",
    "5.2.4-P-01",
    text="a full zone still counts as open and active",
)
def full_zones_count(
    original: Original, zones: Zones, limit: int, states: frozenset[ZoneState]
) -> bool:
    return bool(original(zones, limit, states | {ZoneState.FULL}))


@defect(
    ZonedBlock.reset_all,
    "5.2.4-P-03",
    text="zones reset by a reset of all zones still count as open and active",
)
def reset_all_gives_no_place_back(
    original: Original, block: ZonedBlock, request: Request
) -> Status:
    if any(zone.state in OPEN for zone in block.zones.all):
        vars(block.zones)["exhausted"] = lambda limit, states: limit > 0
    return Status(original(block, request))


@defect(
    Zones.resettable,
    "5.2.6-P-22",
    text="a reset of all zones leaves open zones open",
)
def reset_all_leaves_open_zones(original: Original, zones: Zones) -> list[Zone]:
    return [zone for zone in original(zones) if zone.state not in OPEN]


@defect(
    Zones.exhausted,
    "5.2.5-P-02",
    text="a limit of 0 allows no zones, instead of any number",
)
def limit_0_is_a_limit(
    original: Original, zones: Zones, limit: int, states: frozenset[ZoneState]
) -> bool:
    return limit == 0 or bool(original(zones, limit, states))
