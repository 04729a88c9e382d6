"""Memory whose every byte is accounted for: what the device was given, and what it was not."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.driver.interface import CANARY, GUARD, Driver


@dataclass
class Region:
    """A stretch of the driver's memory: what it has to hold, and what of it was given away."""

    name: str
    address: int
    image: bytearray
    given: list[tuple[int, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + len(self.image)

    def overlap(self, address: int, length: int) -> tuple[int, int]:
        """The offsets, first and behind the last, that a stretch has in this region."""
        start = max(address - self.address, 0)
        return start, max(start, min(address + length - self.address, len(self.image)))


class GuardedMemory:
    """The regions of a driver's memory that are watched."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._regions: list[Region] = []

    def watch(self, name: str, address: int, length: int) -> None:
        """Watch a stretch that is in use, as it stands."""
        image = bytearray(self._driver.memory_read(address, length))
        self._regions.append(Region(name, address, image))

    def fence(self, name: str, length: int = GUARD) -> int:
        """Allocate a stretch that nobody has any business in; its address."""
        address = self._driver.alloc(length)
        self._driver.memory_write(address, bytes([CANARY]) * length)
        self.watch(name, address, length)
        return address

    def write(self, address: int, data: bytes) -> None:
        """Write as the driver, so that it is not taken for the device's doing."""
        self._driver.memory_write(address, data)
        for region in self._regions:
            start, end = region.overlap(address, len(data))
            offset = region.address + start - address
            region.image[start:end] = data[offset : offset + end - start]

    def give(self, address: int, length: int) -> None:
        """From now on the device may write there."""
        for region in self._regions:
            start, end = region.overlap(address, length)
            if start < end:
                region.given.append((start, end))

    def renew(self, address: int, length: int) -> None:
        """Take back all that was given of the region there, and fill a stretch with canaries."""
        for region in self._regions:
            if region.address <= address < region.end:
                region.given.clear()
        self.write(address, bytes([CANARY]) * length)

    def damage(self) -> str:
        """The first byte that changed and was not given, in words; "" if there is none."""
        for region in self._regions:
            found = self._driver.memory_read(region.address, len(region.image))
            if found == region.image:
                continue
            expected = bytearray(region.image)
            for start, end in region.given:
                expected[start:end] = found[start:end]
            changed = [n for n, byte in enumerate(found) if byte != expected[n]]
            if changed:
                first = changed[0]
                was, now = expected[first], found[first]
                return (
                    f"{len(changed)} bytes of {region.name} changed, the first at +{first:#x}"
                    f" from {was:#04x} to {now:#04x}"
                )
        return ""
