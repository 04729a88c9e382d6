"""Expected contents of a whole disk, so that a change in any other sector is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance.data import sectors
from harness.virtio.blk import SECTOR

if TYPE_CHECKING:
    from harness.targets import Disk

MOST = 2048
"""Sectors (512 bytes) at the start of a disk that are compared: all of a disk of 1 MiB."""


class Contents:
    """The first sectors of a disk, filled with known data and compared as a whole.

    A sector of any value is one whose contents the specification leaves open.
    """

    def __init__(self, disk: Disk, fill: bool = True) -> None:
        """Fill the disk from the host's side, or take it as it is.

        Raises LacksError, which skips a test, if the backing store is out of reach.
        """
        self._backing = disk.backing
        self.count = min(disk.driver.config().capacity, MOST)
        if fill:
            self._backing.write(0, sectors(self.count))
        self._expected = bytearray(self._backing.read(0, self.count))
        self._any_value: set[int] = set()

    def read(self, sector: int, count: int) -> bytes:
        """Return the expected contents of `count` sectors."""
        return bytes(self._expected[sector * SECTOR : (sector + count) * SECTOR])

    def write(self, sector: int, data: bytes) -> None:
        """Expect these whole sectors from now on."""
        self._expected[sector * SECTOR : sector * SECTOR + len(data)] = data
        self._any_value -= set(range(sector, sector + len(data) // SECTOR))

    def may_have_any_value(self, sector: int, count: int) -> None:
        """Expect nothing of these sectors any more, until they are written."""
        self._any_value |= set(range(sector, sector + count))

    def check(self, after: str) -> None:
        """Assert that the disk has the expected contents; `after` says what was done to it."""
        found = self._backing.read(0, self.count)
        if found == self._expected:
            return
        wrong = [
            sector
            for sector in range(self.count)
            if sector not in self._any_value
            and found[sector * SECTOR : (sector + 1) * SECTOR] != self.read(sector, 1)
        ]
        assert not wrong, (
            f"after {after}, {len(wrong)} sectors have wrong contents: {wrong[:8]}"
            f"{', ...' if len(wrong) > 8 else ''}"
        )
