"""Driver memory that is checked for writes of the device to bytes that it was not given."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.driver.interface import CANARY, GUARD, Driver

ADDRESSES = 1 << 64
"""The number of bus addresses."""


def overlaps(address: int, length: int, start: int, size: int) -> bool:
    """Return True if two ranges share a byte. Addresses wrap around at 2^64."""
    return (start - address) % ADDRESSES < length or (address - start) % ADDRESSES < size


@dataclass
class Region:
    """A range of the driver's memory: its expected contents, and the parts given to the device."""

    name: str
    address: int
    image: bytearray
    given: list[tuple[int, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Return the first address after the region."""
        return self.address + len(self.image)

    def overlap(self, address: int, length: int) -> tuple[int, int]:
        """Return the part of an address range that lies in this region, as start and end offset."""
        start = max(address - self.address, 0)
        return start, max(start, min(address + length - self.address, len(self.image)))


class GuardedMemory:
    """The watched regions of a driver's memory."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._regions: list[Region] = []

    def watch(self, name: str, address: int, length: int) -> None:
        """Watch a range with its present contents."""
        image = bytearray(self._driver.memory_read(address, length))
        self._regions.append(Region(name, address, image))

    def fence(self, name: str, length: int = GUARD) -> int:
        """Allocate a range that nobody may write, and return its address."""
        address = self._driver.alloc(length)
        self._driver.memory_write(address, bytes([CANARY]) * length)
        self.watch(name, address, length)
        return address

    def write(self, address: int, data: bytes) -> None:
        """Write as the driver, so that the change is not blamed on the device."""
        self._driver.memory_write(address, data)
        for region in self._regions:
            start, end = region.overlap(address, len(data))
            offset = region.address + start - address
            region.image[start:end] = data[offset : offset + end - start]

    def give(self, address: int, length: int) -> None:
        """Allow the device to write to a range from now on. Addresses wrap around at 2^64."""
        if address + length > ADDRESSES:
            self.give(0, address + length - ADDRESSES)
        for region in self._regions:
            start, end = region.overlap(address, length)
            if start < end:
                region.given.append((start, end))

    def give_all(self) -> None:
        """Allow the device to write anywhere: its driver cannot know where it may write."""
        self.give(0, ADDRESSES)

    def renew(self, address: int, length: int) -> None:
        """Withdraw all permissions in the region at `address`, and fill a range with canaries."""
        for region in self._regions:
            if region.address <= address < region.end:
                region.given.clear()
        self.write(address, bytes([CANARY]) * length)

    def damage(self) -> str:
        """Describe the first byte that changed without permission; return "" if there is none."""
        for region in self._regions:
            present = self._driver.memory_read(region.address, len(region.image))
            if present == region.image:
                continue
            expected = bytearray(region.image)
            for start, end in region.given:
                expected[start:end] = present[start:end]
            changed = [n for n, byte in enumerate(present) if byte != expected[n]]
            if changed:
                first = changed[0]
                was, now = expected[first], present[first]
                return (
                    f"{len(changed)} bytes of {region.name} changed, the first at +{first:#x}"
                    f" from {was:#04x} to {now:#04x}"
                )
        return ""
