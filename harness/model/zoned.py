"""A zoned block device: the additions for zones to the requests of `block` (virtio 5.2.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.diskspec import SECTOR, DiskSpec
from harness.model.block import SIZE_MAX, Block
from harness.model.memory import pieces
from harness.model.request import Request
from harness.model.storage import Storage
from harness.model.zones import DEAD, Zone, ZoneError, Zones
from harness.virtio.blk import (
    APPEND_SECTOR,
    ZONE_DESCRIPTOR,
    ZONE_REPORT_HEADER,
    RequestType,
    Status,
    ZonedModel,
    ZoneState,
    ZoneType,
)
from harness.virtio.features import Feature

UNDEFINED = 2**64 - 1
"""Value of z_wp where it has no meaning."""


class ZonedBlock(Block):
    """A block device with zones. A reset of the device does not change the zones."""

    def __init__(self, spec: DiskSpec, storage: Storage) -> None:
        super().__init__(spec, storage)
        self.host_managed = spec.zoned == "host-managed"
        self.zones = Zones(spec, self.seg_max * SIZE_MAX // SECTOR)

    # --- features and configuration space

    def offered(self) -> int:
        # On a host-managed disk only a zone reset deallocates.
        features = super().offered() | Feature.BLK_ZONED.mask
        if self.host_managed:
            features &= ~(Feature.BLK_DISCARD.mask | Feature.BLK_WRITE_ZEROES.mask)
        return features

    def acceptable(self, features: int) -> bool:
        managed = bool(features & Feature.BLK_ZONED.mask) or not self.host_managed
        return super().acceptable(features) and managed

    def fields(self) -> dict[str, int]:
        fields, zones = super().fields(), self.zones
        if self.declined():
            return fields
        return fields | {
            "max_secure_erase_sectors": zones.size,
            "secure_erase_sector_alignment": zones.size,
            "zone_sectors": zones.size,
            "max_open_zones": zones.max_open,
            "max_active_zones": zones.max_active,
            "max_append_sectors": zones.max_append,
            "write_granularity": zones.granularity,
            "model": ZonedModel.HOST_MANAGED if self.host_managed else ZonedModel.HOST_AWARE,
        }

    def zone_facts(self) -> dict[str, int]:
        sequential = next((zone for zone in self.zones.all if zone.sequential), None)
        if sequential is None:
            return {}
        return {"sequential": sequential.start, "zone_capacity": sequential.capacity}

    def declined(self) -> bool:
        """Return True if the driver has chosen not to use zones (virtio 5.2.5.2)."""
        return bool(self.features) and not self.has(Feature.BLK_ZONED)

    def resize(self, capacity: int) -> None:
        raise OSError("a zoned disk cannot be resized")

    # --- requests

    def takes_time(self, request: Request) -> bool:
        return super().takes_time(request) or request.type == RequestType.ZONE_APPEND

    def execute(self, request: Request) -> Status:
        try:
            return super().execute(request)
        except ZoneError as error:
            return error.status

    def handlers(self) -> dict[RequestType, Callable[[Request], Status]]:
        handlers = super().handlers()
        if self.has(Feature.BLK_ZONED):
            handlers |= {
                RequestType.ZONE_APPEND: self.append,
                RequestType.ZONE_REPORT: self.report,
                RequestType.ZONE_OPEN: lambda request: self.manage(request, self.zones.open),
                RequestType.ZONE_CLOSE: lambda request: self.manage(request, self.zones.close),
                RequestType.ZONE_FINISH: lambda request: self.manage(request, self.zones.finish),
                RequestType.ZONE_RESET: lambda request: self.manage(request, self.clear),
                RequestType.ZONE_RESET_ALL: self.reset_all,
            }
        return handlers

    def read(self, request: Request) -> Status:
        """Serve IN; sectors that were never written read as zeroes."""
        count = request.room // SECTOR
        if not self.has(Feature.BLK_ZONED) or not self.within(request.sector, count):
            return super().read(request)
        self.zones.readable(request.sector, count)
        status = super().read(request)
        if status is Status.OK:
            self.blank(request, count)
        return status

    def blank(self, request: Request, count: int) -> None:
        """Fill the sectors of a read that were never written with zeroes."""
        for first, length in self.zones.unwritten(request.sector, count):
            at = (first - request.sector) * SECTOR
            for piece in pieces(request.area(), at, at + length * SECTOR):
                piece[:] = bytes(len(piece))

    def write(self, request: Request) -> Status:
        """Serve OUT."""
        count = request.sent // SECTOR
        zoned = self.has(Feature.BLK_ZONED) and self.within(request.sector, count)
        if not zoned or self.read_only():
            return super().write(request)
        with self.unless_it_fails():
            self.zones.begin_write(request.sector, count)
            status = super().write(request)
            if status is not Status.OK:
                raise ZoneError(status)
            self.zones.written(request.sector, count)
        return status

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """Context manager that undoes changes to state and write pointers if the block raises."""
        before = [(zone.state, zone.wp) for zone in self.zones.all]
        try:
            yield
        except (OSError, ZoneError):
            for zone, (state, wp) in zip(self.zones.all, before, strict=True):
                zone.state, zone.wp = state, wp
            raise

    def append(self, request: Request) -> Status:
        """Serve ZONE_APPEND."""
        count, rest = divmod(request.sent, SECTOR)
        if self.read_only() or rest or request.room != APPEND_SECTOR.size:
            return Status.IOERR
        with self.unless_it_fails():
            at = self.zones.append_to(request.sector, count)
            self.storage.write(at, request.data())
            self.settle()
            self.zones.written(at, count)
        request.write(0, APPEND_SECTOR.pack(at))
        return Status.OK

    def report(self, request: Request) -> Status:
        """Serve ZONE_REPORT: as many zones as the request has room for."""
        if not self.within(request.sector, 1):
            return Status.ZONE_INVALID_CMD
        if request.room < ZONE_REPORT_HEADER.size:
            return Status.IOERR
        most = (request.room - ZONE_REPORT_HEADER.size) // ZONE_DESCRIPTOR.size
        first = request.sector // self.zones.size
        zones = self.zones.all[first : first + most]
        head = ZONE_REPORT_HEADER.pack(self.reported(len(zones)))
        request.write(0, head + b"".join(map(self.descriptor, zones)))
        return Status.OK

    def reported(self, count: int) -> int:
        """Return `nr_zones` for a report with `count` descriptors."""
        return count

    def descriptor(self, zone: Zone) -> bytes:
        """Return a zone's descriptor for a report."""
        vague = not zone.sequential or zone.state in DEAD or zone.state is ZoneState.FULL
        wp = UNDEFINED if vague else zone.wp
        return ZONE_DESCRIPTOR.pack(zone.capacity, zone.start, wp, zone.type, zone.state)

    def manage(self, request: Request, act: Callable[[Zone], None]) -> Status:
        """Serve a request about the single zone that starts at its sector."""
        if self.read_only():
            return Status.IOERR
        act(self.zones.at(request.sector))
        return Status.OK

    def clear(self, zone: Zone) -> None:
        """Make a zone empty.

        Its data lies beyond the write pointer then and is not read. Where writes may leave gaps, it
        has to be deallocated.
        """
        self.zones.manageable(zone)
        if zone.type is ZoneType.SWP:
            self.storage.deallocate("discard", zone.start, zone.size)
        self.zones.reset(zone)

    def reset_all(self, request: Request) -> Status:
        """Serve ZONE_RESET_ALL."""
        del request
        if self.read_only():
            return Status.IOERR
        for zone in self.zones.resettable():
            self.clear(zone)
        return Status.OK

    def secure_erase(self, request: Request) -> Status:
        """Serve SECURE_ERASE: it erases whole zones, and resets them."""
        if not self.has(Feature.BLK_ZONED):
            return super().secure_erase(request)
        return self.each_segment(request, 0, self.zones.size, self.erase)

    def erase(self, sector: int, count: int, flags: int) -> None:
        """Erase one segment of SECURE_ERASE."""
        zones = self.zones.touched(sector, count)
        if sector != zones[0].start or sector + count != zones[-1].end:
            raise ZoneError(Status.ZONE_INVALID_CMD)
        for zone in zones:
            self.zones.manageable(zone)
        self.storage.deallocate("discard", sector, count)
        for zone in zones:
            self.clear(zone)
