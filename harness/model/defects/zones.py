"""Defects of zoned disks (virtio 5.2.5, 5.2.6)."""

from __future__ import annotations

from collections.abc import Callable

from harness.disks import SECTOR
from harness.model.block import SIZE_MAX
from harness.model.request import Request
from harness.model.zoned import ZonedBlock
from harness.model.zones import ACTIVE, OPEN, Zone, ZoneError, Zones
from harness.virtio.blk import APPEND_SECTOR, Status, ZonedModel, ZoneState, ZoneType

from .registry import Original, defect

Fields = dict[str, int]

# --- features and configuration space


@defect(ZonedBlock.declined, "5.2.5.2-D-06", text="the zoned fields stay without ZONED")
def zoned_fields_without_zoned(original: Original, block: ZonedBlock) -> bool:
    return False


@defect(ZonedBlock.acceptable, "5.2.5.2-D-06", text="a host-aware disk insists on ZONED")
def host_aware_insists_on_zoned(original: Original, block: ZonedBlock, features: int) -> bool:
    managed, block.host_managed = block.host_managed, True
    try:
        return bool(original(block, features | 0))
    finally:
        block.host_managed = managed


@defect(ZonedBlock.acceptable, "5.2.5.2-D-07", text="a host-managed disk goes without ZONED")
def host_managed_without_zoned(original: Original, block: ZonedBlock, features: int) -> bool:
    managed, block.host_managed = block.host_managed, False
    try:
        return bool(original(block, features))
    finally:
        block.host_managed = managed


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


@defect(ZonedBlock.fields, "5.2.5.2-D-13", text="max_append_sectors is more than can be appended")
def max_append_too_high(original: Original, block: ZonedBlock) -> Fields:
    most = block.zones.max_append
    return _shown(original, block, max_append_sectors=most and most + 8)


@defect(ZonedBlock.fields, "5.2.5.2-D-14", text="max_append_sectors exceeds a request's segments")
def max_append_beyond_segments(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, max_append_sectors=block.seg_max * SIZE_MAX // SECTOR + 8)


@defect(ZonedBlock.fields, "5.2.5.2-D-16", text="write_granularity is half of what it is")
def write_granularity_halved(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, write_granularity=max(block.zones.granularity // 2, SECTOR))


@defect(ZonedBlock.config, "5.2.5.2-D-17", text="the padding behind model is not 0")
def zoned_padding_not_zero(original: Original, block: ZonedBlock) -> bytes:
    return bytes(original(block)[:-1]) + b"\x01"


@defect(ZonedBlock.fields, "5.2.6.2-D-37", text="the alignment of secure erase is one sector")
def secure_erase_unaligned_to_zones(original: Original, block: ZonedBlock) -> Fields:
    return _shown(original, block, secure_erase_sector_alignment=1)


# --- zone management


@defect(Zones.manageable, "5.2.6.2-D-17", text="conventional zones are managed like others")
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


@defect(Zones.make_room, "5.2.6.2-D-20", text="an open zone too many ends in ZONE_INVALID_CMD")
def resources_are_invalid_cmd(original: Original, zones: Zones) -> None:
    try:
        original(zones)
    except ZoneError:
        raise ZoneError(Status.ZONE_INVALID_CMD) from None


@defect(Zones.exhausted, "5.2.6.2-D-20", "5.2.6.2-D-24", text="there is no limit of open zones")
def open_limit_ignored(
    original: Original, zones: Zones, limit: int, states: frozenset[ZoneState]
) -> bool:
    return states != OPEN and bool(original(zones, limit, states))


@defect(Zones.exhausted, "5.2.6.2-D-20", "5.2.6.2-D-24", text="there is no limit of active zones")
def active_limit_ignored(
    original: Original, zones: Zones, limit: int, states: frozenset[ZoneState]
) -> bool:
    return states != ACTIVE and bool(original(zones, limit, states))


@defect(Zones.enter, "5.2.6", text="where both limits are reached the open one is named")
def open_limit_named_first(original: Original, zones: Zones, zone: Zone, state: ZoneState) -> None:
    if zone.state not in OPEN and zones.exhausted(zones.max_open, OPEN):
        zones.make_room()
    original(zones, zone, state)


@defect(Zones.open_for_write, "5.2.6.2-D-24", text="a write opens its zone whatever the limits")
def implicit_open_beyond_limits(original: Original, zones: Zones, zone: Zone) -> None:
    try:
        original(zones, zone)
    except ZoneError:
        zone.state = ZoneState.IOPEN


@defect(Zones.closed, "5.2.6", text="a zone opened and closed without a write is CLOSED")
def closed_without_data(original: Original, zones: Zones, zone: Zone) -> ZoneState:
    return ZoneState.CLOSED


@defect(Zones.open, "5.2.6", text="an implicitly open zone stays so when it is opened")
def implicitly_open_stays(original: Original, zones: Zones, zone: Zone) -> None:
    before = zone.state
    original(zones, zone)
    if before is ZoneState.IOPEN:
        zone.state = before


@defect(Zones.finish, "5.2.6", text="a zone that is finished stays in its state")
def finish_does_nothing(original: Original, zones: Zones, zone: Zone) -> None:
    zones.manageable(zone)


@defect(Zones.resettable, "5.2.6", text="reset of all zones leaves full ones full")
def reset_all_leaves_full_zones(original: Original, zones: Zones) -> list[Zone]:
    return [zone for zone in original(zones) if zone.state is not ZoneState.FULL]


@defect(Zones.resettable, "5.2.6", text="reset of all zones revives read-only and offline ones")
def reset_all_revives_zones(original: Original, zones: Zones) -> list[Zone]:
    found: list[Zone] = [zone for zone in zones.all if zone.sequential]
    for zone in found:
        zone.state = ZoneState.FULL
    return found


@defect(Zones.at, "5.2.6", text="a zone beyond the last is taken for the last")
def zone_beyond_the_last(original: Original, zones: Zones, sector: int) -> Zone:
    last = zones.all[-1]
    zone: Zone = last if sector >= last.end else original(zones, sector)
    return zone


@defect(ZonedBlock.erase, "5.2.6.2-D-39", text="secure erase leaves the state of zones alone")
def secure_erase_keeps_states(
    original: Original, block: ZonedBlock, sector: int, count: int, flags: int
) -> None:
    block.storage.deallocate("discard", sector, count)


# --- writes and appends


@defect(Zones.one_zone, "5.2.6.2-D-30", text="a request may cross from one zone into the next")
def zone_boundary_ignored(original: Original, zones: Zones, touched: list[Zone]) -> None:
    pass


@defect(Zones.check_write, "5.2.6.2-D-31", text="a write may begin anywhere in its zone")
def write_pointer_ignored(
    original: Original, zones: Zones, zone: Zone, first: int, end: int
) -> None:
    try:
        original(zones, zone, first, end)
    except ZoneError as error:
        if error.status is not Status.ZONE_UNALIGNED_WP or not zones.aligned(end):
            raise


@defect(
    Zones.check_write,
    "5.2.6.2-D-31",
    text="a write off the write pointer ends with ZONE_INVALID_CMD",
)
def unaligned_write_is_invalid_cmd(
    original: Original, zones: Zones, zone: Zone, first: int, end: int
) -> None:
    try:
        original(zones, zone, first, end)
    except ZoneError:
        raise ZoneError(Status.ZONE_INVALID_CMD) from None


@defect(
    Zones.check_write,
    "5.2.6.2-D-26",
    text="a zone is written beyond its capacity, up to its size",
)
def zone_capacity_ignored(
    original: Original, zones: Zones, zone: Zone, first: int, end: int
) -> None:
    if not (zone.limit < end <= zone.end and first == zone.wp):
        original(zones, zone, first, end)


@defect(Zones.check_write, "5.2.6.2-D-26", text="a full zone is written again from its start")
def full_zone_written(original: Original, zones: Zones, zone: Zone, first: int, end: int) -> None:
    if zone.state is ZoneState.FULL:
        zone.state, zone.wp = ZoneState.EMPTY, first
    original(zones, zone, first, end)


@defect(Zones.aligned, "5.2.5.2-D-16", text="writes need not be aligned to write_granularity")
def granularity_ignored(original: Original, zones: Zones, sector: int) -> bool:
    return True


@defect(Zones.written, "5.2.6", text="a write leaves the write pointer where it was")
def write_pointer_stays(original: Original, zones: Zones, sector: int, count: int) -> None:
    pass


@defect(Zones.written, "5.2.6", text="a zone written to its capacity stays open")
def full_zone_stays_open(original: Original, zones: Zones, sector: int, count: int) -> None:
    states = [zone.state for zone in zones.all]
    original(zones, sector, count)
    for zone, state in zip(zones.all, states, strict=True):
        zone.state = state


@defect(ZonedBlock.append, "5.2.6.2-D-27", text="append_sector is where the data ends")
def append_sector_behind_the_data(
    original: Original, block: ZonedBlock, request: Request
) -> Status:
    status = Status(original(block, request))
    if status is Status.OK:
        request.write(0, APPEND_SECTOR.pack(block.zones.at(request.sector).wp))
    return status


@defect(ZonedBlock.append, "5.2.6.2-D-27", text="append_sector is the sector of the request")
def append_sector_of_the_request(original: Original, block: ZonedBlock, request: Request) -> Status:
    status = Status(original(block, request))
    if status is Status.OK:
        request.write(0, APPEND_SECTOR.pack(request.sector))
    return status


@defect(Zones.append_to, "5.2.6.2-D-18", text="append works in every zone with a state")
def append_to_any_zone(original: Original, zones: Zones, sector: int, count: int) -> int:
    zone = zones.at(sector)
    kind, zone.type = zone.type, ZoneType.SWR
    wp, zone.wp = zone.wp, zone.wp if zone.sequential and kind is not ZoneType.CONV else sector
    try:
        return int(original(zones, sector, count))
    finally:
        zone.type, zone.wp = kind, wp


@defect(Zones.append_to, "5.2.6.2-D-25", text="an append may name any sector of its zone")
def append_anywhere_in_the_zone(original: Original, zones: Zones, sector: int, count: int) -> int:
    return int(original(zones, sector // zones.size * zones.size, count))


@defect(
    Zones.append_to, "5.2.6.2-D-28", text="without append, an append ends with ZONE_INVALID_CMD"
)
def append_invalid_instead_of_unsupported(
    original: Original, zones: Zones, sector: int, count: int
) -> int:
    try:
        return int(original(zones, sector, count))
    except ZoneError:
        raise ZoneError(Status.ZONE_INVALID_CMD) from None


@defect(Zones.append_to, "5.2.6.2-D-29", text="an append may exceed max_append_sectors")
def max_append_ignored(original: Original, zones: Zones, sector: int, count: int) -> int:
    most, zones.max_append = zones.max_append, zones.max_append and zones.size
    try:
        return int(original(zones, sector, count))
    finally:
        zones.max_append = most


@defect(Zones.begin_write, "5.2.6.2-D-33", text="a read-only zone is written, without a trace")
def read_only_zone_written(original: Original, zones: Zones, sector: int, count: int) -> None:
    zone = zones.touched(sector, count)[0]
    if zone.state is not ZoneState.RDONLY:
        original(zones, sector, count)


@defect(Zones.readable, "5.2.6.2-D-34", text="an offline zone can be read")
def offline_zone_read(original: Original, zones: Zones, sector: int, count: int) -> None:
    zones.one_zone(zones.touched(sector, count))


@defect(Zones.begin_write, "5.2.6.2-D-34", text="a write to an offline zone is OK, and lost")
def offline_zone_written(original: Original, zones: Zones, sector: int, count: int) -> None:
    zone = zones.touched(sector, count)[0]
    if zone.state is not ZoneState.OFFLINE:
        original(zones, sector, count)


# --- reads and reports


@defect(
    ZonedBlock.blank,
    "5.2.6.2-D-35",
    "5.2.6.2-D-36",
    text="behind the write pointer, what was there before the reset is read",
)
def old_data_behind_the_write_pointer(
    original: Original, block: ZonedBlock, request: Request, count: int
) -> None:
    pass


@defect(ZonedBlock.reported, "5.2.6", text="nr_zones of a report counts all zones from its sector")
def report_counts_too_much(original: Original, block: ZonedBlock, count: int) -> int:
    return count + 1


@defect(ZonedBlock.descriptor, "5.2.6", text="z_cap of a report is zone_sectors")
def report_capacity_is_the_size(original: Original, block: ZonedBlock, zone: Zone) -> bytes:
    capacity, zone.capacity = zone.capacity, zone.size
    try:
        return bytes(original(block, zone))
    finally:
        zone.capacity = capacity


@defect(ZonedBlock.descriptor, "5.2.6", text="conventional zones are reported as EMPTY")
def report_conventional_empty(original: Original, block: ZonedBlock, zone: Zone) -> bytes:
    state, zone.state = zone.state, zone.state if zone.sequential else ZoneState.EMPTY
    try:
        return bytes(original(block, zone))
    finally:
        zone.state = state


@defect(ZonedBlock.report, "5.2.6", text="a report begins with the zone behind its sector")
def report_from_the_next_zone(original: Original, block: ZonedBlock, request: Request) -> Status:
    request.sector = -(-request.sector // block.zones.size) * block.zones.size
    return Status(original(block, request))


Act = Callable[[Zone], None]


@defect(ZonedBlock.manage, "5.2.6", text="a request acts on the zone before the one it names too")
def neighbour_managed_too(
    original: Original, block: ZonedBlock, request: Request, act: Act
) -> Status:
    status = Status(original(block, request, act))
    number = request.sector // block.zones.size
    if status is Status.OK and number and block.zones.all[number - 1].state is ZoneState.CLOSED:
        act(block.zones.all[number - 1])
    return status
