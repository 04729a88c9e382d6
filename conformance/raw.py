"""Requests that a test lays out itself, for tests of their framing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conformance.data import untouched
from harness.driver.interface import Buffer, Driver
from harness.virtio.blk import REQUEST_HEADER, SECTOR, STATUS_UNWRITTEN, RequestType

if TYPE_CHECKING:
    from harness.targets import Disk


@dataclass(frozen=True)
class RawRead:
    """A read of one sector: three buffers in the device's memory, on no queue yet."""

    driver: Driver
    header: Buffer
    area: Buffer
    end: Buffer

    @classmethod
    def of(cls, driver: Driver, sector: int) -> RawRead:
        """Lay out a read of `sector` (512 bytes)."""
        header, area, end = (driver.alloc(length) for length in (REQUEST_HEADER.size, SECTOR, 1))
        driver.memory_write(header, REQUEST_HEADER.pack(RequestType.IN, 0, sector))
        driver.memory_write(area, untouched(SECTOR))
        driver.memory_write(end, bytes([STATUS_UNWRITTEN]))
        return cls(
            driver,
            Buffer(header, REQUEST_HEADER.size),
            Buffer(area, SECTOR, writable=True),
            Buffer(end, 1, writable=True),
        )

    @property
    def buffers(self) -> tuple[Buffer, Buffer, Buffer]:
        """The buffers in the usual order: header, data, status."""
        return self.header, self.area, self.end

    @property
    def status(self) -> int:
        """The status byte now."""
        return self.driver.memory_read(self.end.address, 1)[0]

    @property
    def done(self) -> bool:
        """True when the device has written the status byte."""
        return self.status != STATUS_UNWRITTEN

    @property
    def data(self) -> bytes:
        """The data area now."""
        return self.driver.memory_read(self.area.address, self.area.length)


def send_reads(disk: Disk, count: int) -> list[RawRead]:
    """Send `count` reads of every eighth sector (512 bytes) on queue 0; do not wait for them.

    Skip the test if the virtqueue has no room for all of them.
    """
    driver = disk.driver
    disk.needs_descriptors(3 * count)
    reads = [RawRead.of(driver, 8 * n) for n in range(count)]
    driver.queue_publish(0, [driver.queue_add(0, read.buffers) for read in reads])
    driver.queue_kick(0)
    return reads
