"""Defects of zoned disks: writes, appends, reads and reports (virtio 5.2.6)."""

from __future__ import annotations

from collections.abc import Callable

from harness.model.defects.registry import Original, defect, during
from harness.model.request import Request
from harness.model.zoned import ZonedBlock
from harness.model.zones import Zone, ZoneError, Zones
from harness.virtio.blk import (
    APPEND_SECTOR,
    CONFIG_FIELD,
    ZONE_DESCRIPTOR,
    ZONE_REPORT_HEADER,
    Status,
    ZoneState,
    ZoneType,
)
from harness.virtio.features import Feature

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
    text="a write that does not start at the write pointer ends with ZONE_INVALID_CMD",
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


@defect(Zones.check_write, "5.2.6.2-D-26", text="a full zone can be written again from its start")
def full_zone_written(original: Original, zones: Zones, zone: Zone, first: int, end: int) -> None:
    if zone.state is ZoneState.FULL:
        zone.state, zone.wp = ZoneState.EMPTY, first
    original(zones, zone, first, end)


@defect(Zones.aligned, "5.2.5.2-D-16", text="writes need not be aligned to write_granularity")
def granularity_ignored(original: Original, zones: Zones, sector: int) -> bool:
    return True


@defect(
    Zones.check_write,
    "5.2.6-P-31",
    text="a write from the write pointer to the middle of a granule ends with ZONE_INVALID_CMD",
)
def write_amid_a_granule_is_invalid_cmd(
    original: Original, zones: Zones, zone: Zone, first: int, end: int
) -> None:
    if first == zone.wp and not zones.aligned(end):
        raise ZoneError(Status.ZONE_INVALID_CMD)
    original(zones, zone, first, end)


@defect(
    Zones.written,
    "5.2.6-P-13",
    "5.2.6-P-33",
    "5.2.6-P-29",
    "5.2.6-P-30",
    "5.2.6-P-38",
    "5.2.6-P-32",
    text="a write does not advance the write pointer",
)
def write_pointer_stays(original: Original, zones: Zones, sector: int, count: int) -> None:
    pass


@defect(
    Zones.written,
    "5.2.6-P-34",
    text="a zone written to its capacity stays open",
)
def full_zone_stays_open(original: Original, zones: Zones, sector: int, count: int) -> None:
    states = [zone.state for zone in zones.all]
    original(zones, sector, count)
    for zone, state in zip(zones.all, states, strict=True):
        zone.state = state


@defect(ZonedBlock.append, "5.2.6.2-D-27", text="append_sector is the sector after the data")
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


@defect(
    Zones.append_to,
    "5.2.6.2-D-18",
    text="an append works in every zone that is not read-only or offline",
)
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
    Zones.append_to,
    "5.2.6.2-D-28",
    text="an append to a device without append ends with ZONE_INVALID_CMD",
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
    with during(zones, max_append=zones.max_append and zones.size):
        return int(original(zones, sector, count))


@defect(
    Zones.begin_write,
    "5.2.6.2-D-33",
    text="a read-only zone can be written, and its state does not change",
)
def read_only_zone_written(original: Original, zones: Zones, sector: int, count: int) -> None:
    zone = zones.touched(sector, count)[0]
    if zone.state is not ZoneState.RDONLY:
        original(zones, sector, count)


@defect(Zones.readable, "5.2.6.2-D-34", text="an offline zone can be read")
def offline_zone_read(original: Original, zones: Zones, sector: int, count: int) -> None:
    zones.one_zone(zones.touched(sector, count))


@defect(
    Zones.begin_write,
    "5.2.6.2-D-34",
    text="a write to an offline zone ends with OK, but cannot be read back",
)
def offline_zone_written(original: Original, zones: Zones, sector: int, count: int) -> None:
    zone = zones.touched(sector, count)[0]
    if zone.state is not ZoneState.OFFLINE:
        original(zones, sector, count)


# --- reads and reports


@defect(
    ZonedBlock.blank,
    "5.2.6.2-D-35",
    "5.2.6.2-D-36",
    text="sectors beyond the write pointer read as the data from before the zone's reset",
)
def old_data_behind_the_write_pointer(
    original: Original, block: ZonedBlock, request: Request, count: int
) -> None:
    pass


@defect(
    ZonedBlock.reported,
    "5.2.6-P-25",
    "5.2.6-P-27",
    "5.2.6-P-26",
    text="nr_zones of a report is one too high",
)
def report_counts_too_much(original: Original, block: ZonedBlock, count: int) -> int:
    return count + 1


@defect(
    ZonedBlock.descriptor,
    "5.2.6-P-34",
    text="z_cap in a report is the zone's size",
)
def report_capacity_is_the_size(original: Original, block: ZonedBlock, zone: Zone) -> bytes:
    with during(zone, capacity=zone.size):
        return bytes(original(block, zone))


@defect(
    ZonedBlock.descriptor,
    "5.2.6-P-37",
    "5.2.6-P-23",
    text="conventional zones are reported as EMPTY",
)
def report_conventional_empty(original: Original, block: ZonedBlock, zone: Zone) -> bytes:
    with during(zone, state=zone.state if zone.sequential else ZoneState.EMPTY):
        return bytes(original(block, zone))


@defect(
    ZonedBlock.descriptor,
    "5.2.6-P-39",
    text="the write pointer of an empty zone is reported as 0",
)
def report_empty_at_0(original: Original, block: ZonedBlock, zone: Zone) -> bytes:
    with during(zone, wp=0 if zone.state is ZoneState.EMPTY else zone.wp):
        return bytes(original(block, zone))


@defect(
    ZonedBlock.report,
    "5.2.6-P-28",
    "5.2.6-P-26",
    text="nr_zones includes a descriptor that was cut off",
)
def report_counts_what_is_cut_off(
    original: Original, block: ZonedBlock, request: Request
) -> Status:
    status = Status(original(block, request))
    count, rest = divmod(request.room - ZONE_REPORT_HEADER.size, ZONE_DESCRIPTOR.size)
    if status is Status.OK and rest:
        request.write(0, ZONE_REPORT_HEADER.pack(count + 1))
    return status


@defect(
    ZonedBlock.report,
    "5.2.6-P-24",
    text="a report that starts after the first zone continues with the first zones after the last",
)
def report_goes_around(original: Original, block: ZonedBlock, request: Request) -> Status:
    zones, first = block.zones.all, request.sector // block.zones.size
    with during(block.zones, all=zones + zones[:first]):
        return Status(original(block, request))


@defect(
    ZonedBlock.report,
    "5.2.6-P-27",
    text="a report begins with the zone after the one of its sector",
)
def report_from_the_next_zone(original: Original, block: ZonedBlock, request: Request) -> Status:
    request.sector = -(-request.sector // block.zones.size) * block.zones.size
    return Status(original(block, request))


Act = Callable[[Zone], None]


@defect(
    ZonedBlock.manage,
    "5.2.6-P-29",
    text="a request also acts on the zone before the one that it names",
)
def neighbour_managed_too(
    original: Original, block: ZonedBlock, request: Request, act: Act
) -> Status:
    status = Status(original(block, request, act))
    number = request.sector // block.zones.size
    if status is Status.OK and number and block.zones.all[number - 1].state is ZoneState.CLOSED:
        act(block.zones.all[number - 1])
    return status


# --- more reports, and requests that zones do not affect


@defect(
    ZonedBlock.report,
    "2.7.4-P-01",
    text="the header of a report has to be in one descriptor",
)
def report_header_in_one_descriptor(
    original: Original, block: ZonedBlock, request: Request
) -> Status:
    whole = len(request.area()[0]) >= ZONE_REPORT_HEADER.size
    return Status(original(block, request)) if whole else Status.IOERR


@defect(
    ZonedBlock.report,
    "5.2.6-P-36",
    text="a report from a sector beyond the last zone shows the last zone",
)
def report_beyond_the_last_zone(original: Original, block: ZonedBlock, request: Request) -> Status:
    request.sector = min(request.sector, block.capacity - 1)
    return Status(original(block, request))


@defect(
    ZonedBlock.write,
    "5.2.5-P-01",
    text="without ZONED, a host-aware disk cannot be written",
)
def host_aware_read_only_without_zoned(
    original: Original, block: ZonedBlock, request: Request
) -> Status:
    zoned = block.has(Feature.BLK_ZONED)
    return Status(original(block, request)) if zoned else Status.IOERR


@defect(
    ZonedBlock.configure,
    "5.2.5-P-10",
    text="the driver can write max_append_sectors",
)
def max_append_writable(
    original: Original, block: ZonedBlock, offset: int, data: bytes, legacy: bool = False
) -> bool:
    if offset == CONFIG_FIELD["max_append_sectors"].offset:
        block.zones.max_append = int.from_bytes(data, "little")
        return True
    return bool(original(block, offset, data, legacy))
