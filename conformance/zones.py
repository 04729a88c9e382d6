"""A zoned disk for the tests of zones (virtio 5.2.4, 5.2.6).

Geometry and limits are read from the device's configuration space and reports. The fields that
a test gives to `plug_zoned` only ask for a suitable disk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from conformance.data import needed, sectors
from harness.driver.interface import Completion
from harness.virtio.blk import (
    APPEND_SECTOR,
    SECTOR,
    ZONE_DESCRIPTOR,
    ZONE_REPORT_HEADER,
    BlockConfig,
    RequestType,
    Status,
    Zone,
    ZoneState,
    ZoneType,
    zones_of,
)
from harness.virtio.features import Feature

if TYPE_CHECKING:
    from harness.pytestplugin.fixtures import Plug
    from harness.targets import Disk

AT_ONCE = 32
"""The most zones in one report."""

MOST = 64
"""The most zones that a test fills, opens or writes one after the other."""

MODELS = ["host-managed", "host-aware"]

OPEN = {ZoneState.IOPEN, ZoneState.EOPEN}
ACTIVE = {*OPEN, ZoneState.CLOSED}
RESOURCES = {Status.ZONE_OPEN_RESOURCE, Status.ZONE_ACTIVE_RESOURCE}


@dataclass
class ZonedDisk:
    """A disk whose driver has accepted ZONED; `sector` and lengths are in sectors of 512 bytes."""

    disk: Disk
    config: BlockConfig

    @property
    def granule(self) -> int:
        """The alignment of writes to sequential zones, in sectors (512 bytes)."""
        assert self.config.write_granularity and self.config.write_granularity % SECTOR == 0
        return self.config.write_granularity // SECTOR

    def data(self, granules: int = 1, salt: int = 1) -> bytes:
        """Return `granules` granules of data in which each sector is different."""
        return sectors(granules * self.granule, salt)

    # --- reports

    def report(self, sector: int, most: int) -> list[Zone]:
        """Return the zones of one report that starts at `sector` and has room for `most` zones."""
        room = ZONE_REPORT_HEADER.size + most * ZONE_DESCRIPTOR.size
        completion = self.disk.request(RequestType.ZONE_REPORT, sector, receive=room)
        assert completion.status is Status.OK, f"a zone report from sector {sector:#x}"
        assert completion.damage == ()
        count, zones = zones_of(completion.data)
        assert count == len(zones) <= most, f"nr_zones is {count} in a report with room for {most}"
        return zones

    def zones(self) -> list[Zone]:
        """Return the current descriptors of all zones."""
        found: list[Zone] = []
        while len(found) * self._size < self.config.capacity:
            sector = len(found) * self._size
            more = self.report(sector, AT_ONCE)
            starts = [zone.start for zone in more]
            # Without progress this loop would not end.
            assert starts, f"the report from sector {sector} has no zone"
            expected = range(sector, sector + len(more) * self._size, self._size)
            assert starts == list(expected), f"a report from sector {sector}"
            found += more
        return found

    def zone(self, zone: Zone) -> Zone:
        """Return the current descriptor of `zone`."""
        (now,) = self.report(zone.start, 1)
        assert now.start == zone.start
        return now

    def states(self) -> Counter[ZoneState]:
        """Return the number of zones in each state."""
        return Counter(zone.state for zone in self.zones())

    @property
    def _size(self) -> int:
        assert self.config.zone_sectors, "zone_sectors is 0"
        return self.config.zone_sectors

    # --- zones that fit a test

    def of_type(self, *types: ZoneType) -> list[Zone]:
        """Return the zones of these types; skip if there is none."""
        found = [zone for zone in self.zones() if zone.type in types]
        if not found:
            names = " or ".join(kind.name for kind in types)
            pytest.skip(f"the disk has no zone of type {names}")
        return found

    def in_state(self, state: ZoneState) -> Zone:
        """Return a zone in this state; skip if there is none."""
        found = next((zone for zone in self.zones() if zone.state is state), None)
        if found is None:
            pytest.skip(f"the disk has no zone in the state {state.name}")
        return found

    def empty(self, count: int = 1) -> list[Zone]:
        """Empty all zones, and return `count` sequential zones; skip if there are fewer."""
        self.reset_all()
        found = [zone for zone in self.zones() if zone.state is ZoneState.EMPTY]
        if len(found) < count:
            pytest.skip(f"the disk has {len(found)} zones that can be written; {count} are wanted")
        return found[:count]

    def limit(self, name: str) -> int:
        """Return `max_open_zones` or `max_active_zones`; skip if it is no limit or too high."""
        limit: int = getattr(self.config, name)
        if not limit:
            pytest.skip(f"{name} is 0: the device has no such limit")
        if limit > MOST:
            pytest.skip(f"{name} is {limit}: a test cannot reach this limit")
        return limit

    # --- requests

    def open(self, zone: Zone) -> Completion:
        """Send ZONE_OPEN."""
        return self.disk.request(RequestType.ZONE_OPEN, zone.start)

    def close(self, zone: Zone) -> Completion:
        """Send ZONE_CLOSE."""
        return self.disk.request(RequestType.ZONE_CLOSE, zone.start)

    def finish(self, zone: Zone) -> Completion:
        """Send ZONE_FINISH."""
        return self.disk.request(RequestType.ZONE_FINISH, zone.start)

    def reset(self, zone: Zone) -> Completion:
        """Send ZONE_RESET."""
        return self.disk.request(RequestType.ZONE_RESET, zone.start)

    def reset_all(self) -> None:
        """Send ZONE_RESET_ALL, and assert its success."""
        done(self.disk.request(RequestType.ZONE_RESET_ALL))

    def contents(self, sector: int, count: int) -> bytes:
        """Return `count` sectors as a read shows them; skip if the read fails."""
        read = needed(self.disk.read(sector, count), f"a read of {count} sectors from {sector}")
        return read.data

    def append(self, sector: int, data: bytes) -> Completion:
        """Send ZONE_APPEND to the zone at `sector`; the completion's data is append_sector."""
        return self.disk.request(RequestType.ZONE_APPEND, sector, data, receive=APPEND_SECTOR.size)

    def appended(self, zone: Zone, data: bytes) -> int:
        """Send ZONE_APPEND, assert its success, and return the sector where the data is."""
        (sector,) = APPEND_SECTOR.unpack(done(self.append(zone.start, data)).data)
        return int(sector)

    def need_append(self, count: int) -> None:
        """Skip unless `count` sectors can be appended at once."""
        most = self.config.max_append_sectors
        assert most is not None
        if most < count:
            pytest.skip(f"max_append_sectors is {most}: {count} sectors cannot be appended")

    def brought_to(self, state: ZoneState, zone: Zone) -> Zone:
        """Bring an empty zone to `state`, with one granule of data unless `state` is EMPTY."""
        if state is ZoneState.EOPEN:
            done(self.open(zone))
        if state is not ZoneState.EMPTY:
            done(self.disk.write(zone.start, self.data(salt=11)))
        if state is ZoneState.CLOSED:
            done(self.close(zone))
        if state is ZoneState.FULL:
            done(self.finish(zone))
        now = self.zone(zone)
        assert now.state is state
        return now

    def fill(self, zone: Zone, append: bool = False) -> bytes:
        """Fill an empty zone in requests of up to 64 sectors, and return its contents."""
        share = max(self.granule, 64 // self.granule * self.granule)
        if append:
            self.need_append(share)
        whole = sectors(zone.capacity, salt=5)
        for at in range(0, zone.capacity, share):
            piece = whole[at * SECTOR : (at + share) * SECTOR]
            if append:
                assert self.appended(zone, piece) == zone.start + at
            else:
                done(self.disk.write(zone.start + at, piece))
        return whole


def plug_zoned(plug: Plug, model: str = "host-managed", **fields: Any) -> ZonedDisk:
    """Return a zoned disk of `model` with its driver started; `fields` as for `DiskSpec`."""
    disk = plug(zoned=model, needs=[Feature.BLK_ZONED], **fields)
    return ZonedDisk(disk, disk.driver.config())


def done(completion: Completion) -> Completion:
    """Assert that a completion has status OK and no damage, and return it."""
    assert completion.status is Status.OK
    assert completion.damage == ()
    return completion


def check_refused(completion: Completion, *statuses: Status, case: str = "") -> None:
    """Assert that a request ended with one of the statuses and changed nothing else."""
    assert completion.damage == (), case
    assert completion.status in statuses, case
