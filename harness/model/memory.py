"""The front-end's memory, as described by its memory table."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class BrokenError(Exception):
    """Error of a virtqueue that the driver has broken so that only a reset helps (virtio 2.1.2)."""


@dataclass(frozen=True)
class Region:
    """A region of the memory table.

    `bus` is its address on the bus, `user` its address in the front-end's process, `view` its
    bytes.
    """

    bus: int
    user: int
    view: memoryview

    @classmethod
    def mapped(cls, fd: int, bus: int, size: int, user: int, offset: int) -> Region:
        """Map `size` bytes of the file `fd` at `offset`.

        Raise OSError or ValueError if that fails.
        """
        # The offset need not be a multiple of a page, so the file is mapped from its start.
        return cls(bus, user, memoryview(mmap.mmap(fd, offset + size))[offset:])


class Memory:
    """All regions. Access to an address outside them raises BrokenError."""

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        self._regions = list(regions)

    def regions(self) -> list[tuple[int, int]]:
        """Return address on the bus and length in bytes of each region."""
        return [(region.bus, len(region.view)) for region in self._regions]

    def with_region(self, region: Region) -> Memory:
        """Return this memory with one more region."""
        return Memory([*self._regions, region])

    def without(self, bus: int, size: int, user: int) -> Memory | None:
        """Return this memory without the region of these addresses and size; None if there is none.

        `size` is in bytes.
        """
        rest = [
            region
            for region in self._regions
            if (region.bus, len(region.view), region.user) != (bus, size, user)
        ]
        return Memory(rest) if len(rest) < len(self._regions) else None

    def bus(self, address: int, length: int) -> memoryview:
        """Return the bytes at a bus address, which is the kind that descriptors contain."""
        return self._find(address, length, [region.bus for region in self._regions])

    def user(self, address: int, length: int) -> memoryview:
        """Return the bytes at a user address, which is the kind that SET_VRING_ADDR contains."""
        return self._find(address, length, [region.user for region in self._regions])

    def bus_of(self, user: int) -> int:
        """Return the bus address for a user address, or the same number if it is in no region."""
        for region in self._regions:
            if 0 <= user - region.user < len(region.view):
                return region.bus + user - region.user
        return user

    def _find(self, address: int, length: int, starts: list[int]) -> memoryview:
        for start, region in zip(starts, self._regions, strict=True):
            at = address - start
            if at >= 0 and at + length <= len(region.view):
                return region.view[at : at + length]
        raise BrokenError(f"{length} bytes at {address:#x} are not in the driver's memory")


def pieces(views: Iterable[memoryview], start: int, end: int) -> Iterator[memoryview]:
    """Yield bytes `start` to `end` of the concatenation of the views."""
    at = 0
    for view in views:
        first, last = max(start - at, 0), min(end - at, len(view))
        if first < last:
            yield view[first:last]
        at += len(view)


def size(views: Iterable[memoryview]) -> int:
    """Return the number of bytes in all views."""
    return sum(len(view) for view in views)
