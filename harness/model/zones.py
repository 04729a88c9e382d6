"""The state machine of a disk's zones (virtio 5.2.6), without storage.

Sectors have 512 bytes. The specification does not say what finishing an empty or a closed zone
does; here it makes the zone full, as the ZBD standards require.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.diskspec import SECTOR, DiskSpec
from harness.virtio.blk import Status, ZoneState, ZoneType

OPEN = frozenset({ZoneState.IOPEN, ZoneState.EOPEN})
ACTIVE = OPEN | {ZoneState.CLOSED}
DEAD = frozenset({ZoneState.RDONLY, ZoneState.OFFLINE})

ZONE_SECTORS = 1024
MAX_OPEN = 8
MAX_ACTIVE = 12


class ZoneError(Exception):
    """Error of a request that a zone cannot serve, with the status for the request."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass
class Zone:
    """One zone. `wp` is the end of its written part, also once the zone is full."""

    start: int
    size: int
    capacity: int
    type: ZoneType
    state: ZoneState
    wp: int

    @property
    def sequential(self) -> bool:
        """Return True if the zone has a write pointer."""
        return self.type is not ZoneType.CONV

    @property
    def end(self) -> int:
        """Return the first sector after the zone."""
        return self.start + self.size

    @property
    def limit(self) -> int:
        """Return the first sector after the writable part."""
        return self.start + self.capacity


class Zones:
    """All zones of a disk, with their limits. Raise ValueError for an impossible `spec`."""

    def __init__(self, spec: DiskSpec, max_append: int) -> None:
        self.size = ZONE_SECTORS if spec.zone_sectors is None else spec.zone_sectors
        capacity = self.size if spec.zone_capacity is None else spec.zone_capacity
        if not 0 < capacity <= self.size:
            raise ValueError(f"zones of {self.size} sectors with a capacity of {capacity}")
        self.max_open = MAX_OPEN if spec.max_open_zones is None else spec.max_open_zones
        self.max_active = MAX_ACTIVE if spec.max_active_zones is None else spec.max_active_zones
        self.max_append = min(max_append, capacity)
        if spec.max_append_sectors is not None:
            self.max_append = spec.max_append_sectors
        if self.max_append > max_append:
            raise ValueError(f"max_append_sectors beyond {max_append}: seg_max times size_max")
        self.granularity = spec.write_granularity or SECTOR
        if self.granularity % SECTOR or self.granularity & (self.granularity - 1):
            raise ValueError(f"a write_granularity of {self.granularity} bytes")
        self.host_managed = spec.zoned == "host-managed"
        self.all = [
            self._make(spec, number, start, capacity)
            for number, start in enumerate(range(0, spec.capacity, self.size))
        ]

    def _make(self, spec: DiskSpec, number: int, start: int, capacity: int) -> Zone:
        size = min(self.size, spec.capacity - start)
        capacity = min(capacity, size)
        if number < spec.conventional_zones:
            return Zone(start, size, size, ZoneType.CONV, ZoneState.NOT_WP, start + size)
        kind = ZoneType.SWR if self.host_managed else ZoneType.SWP
        if number in spec.zones_offline:
            return Zone(start, size, capacity, kind, ZoneState.OFFLINE, start)
        if number in spec.zones_read_only:
            return Zone(start, size, capacity, kind, ZoneState.RDONLY, start + capacity)
        return Zone(start, size, capacity, kind, ZoneState.EMPTY, start)

    # --- finding zones

    def touched(self, sector: int, count: int) -> list[Zone]:
        """Return the zones that contain sectors of a range on the disk."""
        first = sector // self.size
        last = (sector + max(count, 1) - 1) // self.size
        return self.all[first : last + 1]

    def at(self, sector: int) -> Zone:
        """Return the zone that starts at a sector. Raise ZoneError if there is none."""
        number, rest = divmod(sector, self.size)
        if rest or number >= len(self.all):
            raise ZoneError(Status.ZONE_INVALID_CMD)
        return self.all[number]

    # --- zone management

    def manageable(self, zone: Zone) -> None:
        """Raise ZoneError if no request may change the zone's state."""
        if not zone.sequential or zone.state in DEAD:
            raise ZoneError(Status.ZONE_INVALID_CMD)

    def open(self, zone: Zone) -> None:
        """Do ZONE_OPEN."""
        self.manageable(zone)
        if zone.state is ZoneState.FULL:
            raise ZoneError(Status.ZONE_INVALID_CMD)
        self.enter(zone, ZoneState.EOPEN)

    def close(self, zone: Zone) -> None:
        """Do ZONE_CLOSE."""
        self.manageable(zone)
        if zone.state not in ACTIVE:
            raise ZoneError(Status.ZONE_INVALID_CMD)
        zone.state = self.closed(zone)

    def closed(self, zone: Zone) -> ZoneState:
        """Return the state of an active zone after it is closed."""
        return ZoneState.EMPTY if zone.wp == zone.start else ZoneState.CLOSED

    def finish(self, zone: Zone) -> None:
        """Do ZONE_FINISH."""
        self.manageable(zone)
        zone.state = ZoneState.FULL

    def reset(self, zone: Zone) -> None:
        """Do ZONE_RESET."""
        self.manageable(zone)
        zone.state, zone.wp = ZoneState.EMPTY, zone.start

    def resettable(self) -> list[Zone]:
        """Return the zones that ZONE_RESET_ALL resets."""
        return [zone for zone in self.all if zone.sequential and zone.state not in DEAD]

    def enter(self, zone: Zone, state: ZoneState) -> None:
        """Open a zone that is not full.

        Raise ZoneError, with no change, if the limits forbid it.
        """
        if zone.state not in ACTIVE and self.exhausted(self.max_active, ACTIVE):
            raise ZoneError(Status.ZONE_ACTIVE_RESOURCE)
        if zone.state not in OPEN and self.exhausted(self.max_open, OPEN):
            self.make_room()
        zone.state = state

    def exhausted(self, limit: int, states: frozenset[ZoneState]) -> bool:
        """Return True if `limit` zones or more are in these states; a limit of 0 is none."""
        return 0 < limit <= sum(zone.state in states for zone in self.all)

    def make_room(self) -> None:
        """Close a zone that was opened implicitly. Raise ZoneError if there is none."""
        for zone in self.all:
            if zone.state is ZoneState.IOPEN:
                zone.state = self.closed(zone)
                return
        raise ZoneError(Status.ZONE_OPEN_RESOURCE)

    # --- reads and writes

    def readable(self, sector: int, count: int) -> None:
        """Raise ZoneError if the zones do not allow this read."""
        zones = self.touched(sector, count)
        if any(zone.state is ZoneState.OFFLINE for zone in zones):
            raise ZoneError(Status.ZONE_INVALID_CMD)
        self.one_zone(zones)

    def one_zone(self, zones: list[Zone]) -> None:
        """Raise ZoneError for a range over several zones if one requires sequential writes."""
        if len(zones) > 1 and any(zone.type is ZoneType.SWR for zone in zones):
            raise ZoneError(Status.ZONE_INVALID_CMD)

    def begin_write(self, sector: int, count: int) -> None:
        """Open the zones of a write. Raise ZoneError if the zones do not allow the write."""
        zones = self.touched(sector, count)
        if any(zone.state in DEAD for zone in zones):
            raise ZoneError(Status.ZONE_INVALID_CMD)
        self.one_zone(zones)
        for zone in zones:
            first, end = max(sector, zone.start), min(sector + count, zone.end)
            if zone.sequential:
                self.check_write(zone, first, end)
        if count:
            for zone in zones:
                self.open_for_write(zone)

    def check_write(self, zone: Zone, first: int, end: int) -> None:
        """Raise ZoneError if these sectors of a sequential zone cannot be written now."""
        required = zone.type is ZoneType.SWR
        if end > zone.limit or (required and zone.state is ZoneState.FULL):
            raise ZoneError(Status.ZONE_INVALID_CMD)
        if required and (first != zone.wp or not self.aligned(end)):
            raise ZoneError(Status.ZONE_UNALIGNED_WP)
        if not (self.aligned(first) and self.aligned(end)):
            raise ZoneError(Status.ZONE_INVALID_CMD)

    def aligned(self, sector: int) -> bool:
        """Return True if a write may begin or end at this sector."""
        return sector * SECTOR % self.granularity == 0

    def open_for_write(self, zone: Zone) -> None:
        """Open a zone for a write. Raise ZoneError if it cannot be opened."""
        if zone.sequential and zone.state in (ZoneState.EMPTY, ZoneState.CLOSED):
            self.enter(zone, ZoneState.IOPEN)

    def written(self, sector: int, count: int) -> None:
        """Note that these sectors were written."""
        for zone in self.touched(sector, count):
            if zone.sequential and count:
                zone.wp = max(zone.wp, min(sector + count, zone.end))
                if zone.wp == zone.limit:
                    zone.state = ZoneState.FULL

    def append_to(self, sector: int, count: int) -> int:
        """Return the sector that an append to the zone writes first.

        Raise ZoneError if it cannot append.
        """
        if not self.max_append:
            raise ZoneError(Status.UNSUPP)
        zone = self.at(sector)
        if zone.type is not ZoneType.SWR or zone.state in DEAD or count > self.max_append:
            raise ZoneError(Status.ZONE_INVALID_CMD)
        self.check_write(zone, zone.wp, zone.wp + count)
        if count:
            self.open_for_write(zone)
        return zone.wp

    def unwritten(self, sector: int, count: int) -> list[tuple[int, int]]:
        """Return the parts of a range that were never written, each as first sector and count."""
        gaps = []
        for zone in self.touched(sector, count):
            first, end = max(sector, zone.wp), min(sector + count, zone.end)
            if zone.sequential and first < end:
                gaps.append((first, end - first))
        return gaps
