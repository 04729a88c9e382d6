"""Breaches of requests (virtio 5.2.6)."""

from __future__ import annotations

from harness.proof.breaches.breach import V1, ZONES, breach
from harness.targets.disk import Disk
from harness.virtio.blk import RequestType, segment
from harness.virtio.features import Feature, mask


@breach("5.2.6.1-R-02")
def reads_beyond_the_end(disk: Disk) -> None:
    """Read the last sector and the one after it."""
    disk.start(V1)
    disk.read(disk.spec.capacity - 1, 2)


@breach("5.2.6.1-R-04")
def flushes_a_sector(disk: Disk) -> None:
    """Send a FLUSH with another sector than 0."""
    disk.start(V1 | Feature.BLK_FLUSH.mask)
    disk.request(RequestType.FLUSH, 5)


@breach("5.2.6.1-R-05")
def flushes_with_data(disk: Disk) -> None:
    """Send a FLUSH with data."""
    disk.start(V1 | Feature.BLK_FLUSH.mask)
    disk.request(RequestType.FLUSH, data=bytes(512))


@breach("5.2.6.1-R-06")
def sends_half_a_sector(disk: Disk) -> None:
    """Write 256 bytes."""
    disk.start(V1)
    disk.request(RequestType.OUT, 5, b"a" * 256)


@breach("5.2.6.1-R-07")
def cuts_a_segment(disk: Disk) -> None:
    """Send a DISCARD with 15 bytes."""
    disk.start(V1 | Feature.BLK_DISCARD.mask)
    disk.discard(segment(0, 8)[:15])


@breach("5.2.6.1-R-08")
def asks_for_half_an_id(disk: Disk) -> None:
    """Send a GET_ID with 10 bytes."""
    disk.start(V1)
    disk.request(RequestType.GET_ID, receive=10)


@breach("5.2.6.1-R-09")
def discards_too_many_segments(disk: Disk) -> None:
    """Send a DISCARD with more segments than max_discard_seg."""
    disk.start(V1 | Feature.BLK_DISCARD.mask)
    disk.discard(*[segment(0, 8)] * ((disk.driver.config().max_discard_seg or 0) + 1))


@breach("5.2.6.1-R-10", secure_erase=True)
def erases_too_many_segments(disk: Disk) -> None:
    """Send a SECURE_ERASE with more segments than max_secure_erase_seg."""
    disk.start(V1 | Feature.BLK_SECURE_ERASE.mask)
    disk.secure_erase(*[segment(0, 8)] * ((disk.driver.config().max_secure_erase_seg or 0) + 1))


@breach("5.2.6.1-R-11")
def zeroes_too_many_segments(disk: Disk) -> None:
    """Send a WRITE_ZEROES with more segments than max_write_zeroes_seg."""
    disk.start(V1 | Feature.BLK_WRITE_ZEROES.mask)
    disk.write_zeroes(*[segment(0, 8)] * ((disk.driver.config().max_write_zeroes_seg or 0) + 1))


@breach("5.2.6.1-R-14")
def unmaps_in_a_discard(disk: Disk) -> None:
    """Send a DISCARD with the unmap bit."""
    disk.start(V1 | Feature.BLK_DISCARD.mask)
    disk.discard(segment(0, 8, 1))


def zones(disk: Disk) -> None:
    """Start a zoned disk."""
    disk.start(mask(Feature.VERSION_1, Feature.BLK_ZONED, Feature.BLK_SECURE_ERASE))


@breach("5.2.6.1-R-18", **ZONES)
def reports_beyond_the_end(disk: Disk) -> None:
    """Send a ZONE_REPORT with a sector beyond the capacity."""
    zones(disk)
    disk.request(RequestType.ZONE_REPORT, disk.spec.capacity, receive=128)


@breach("5.2.6.1-R-20", **ZONES)
def opens_half_a_zone(disk: Disk) -> None:
    """Send a ZONE_OPEN with a sector in the middle of a zone."""
    zones(disk)
    disk.request(RequestType.ZONE_OPEN, 1024 + 8)


@breach("5.2.6.1-R-21", **ZONES)
def resets_all_from_a_sector(disk: Disk) -> None:
    """Send a ZONE_RESET_ALL with another sector than 0."""
    zones(disk)
    disk.request(RequestType.ZONE_RESET_ALL, 1024)


@breach("5.2.6.1-R-22", **ZONES)
def appends_in_the_middle(disk: Disk) -> None:
    """Send a ZONE_APPEND with a sector in the middle of a zone."""
    zones(disk)
    disk.request(RequestType.ZONE_APPEND, 1024 + 8, bytes(4096), receive=8)


@breach("5.2.6.1-R-23a", "5.2.6.1-R-25", **ZONES)
def appends_a_fragment(disk: Disk) -> None:
    """Send a ZONE_APPEND with data that is no multiple of write_granularity."""
    zones(disk)
    disk.request(RequestType.ZONE_APPEND, 1024, bytes(512), receive=8)


@breach("5.2.6.1-R-23b", **ZONES)
def appends_too_much(disk: Disk) -> None:
    """Send a ZONE_APPEND with more data than max_append_sectors."""
    zones(disk)
    disk.request(RequestType.ZONE_APPEND, 1024, bytes(65 * 512 + 7 * 512), receive=8)


@breach("5.2.6.1-R-25", **ZONES)
def writes_beyond_a_zone(disk: Disk) -> None:
    """Write beyond the capacity of a sequential zone."""
    zones(disk)
    disk.write(1024 + 512, bytes(4096))


@breach("5.2.6.2-D-38", **ZONES)
def erases_half_a_zone(disk: Disk) -> None:
    """Send a SECURE_ERASE of a part of a zone."""
    zones(disk)
    disk.secure_erase(segment(1024, 8))
