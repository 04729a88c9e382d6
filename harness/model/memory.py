"""The front-end's memory, as its memory table shows it to us."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class BrokenError(Exception):
    """The driver broke a virtqueue in a way that only a reset mends (virtio 2.1.2)."""


@dataclass(frozen=True)
class Region:
    """A piece of the memory table: addresses on the bus and of the front-end's process, bytes."""

    bus: int
    user: int
    view: memoryview

    @classmethod
    def mapped(cls, fd: int, bus: int, size: int, user: int, offset: int) -> Region:
        """Map `size` bytes of the file `fd` from `offset` on. OSError, ValueError if it is not."""
        # The offset need be no multiple of a page, so the file is mapped from its start on.
        return cls(bus, user, memoryview(mmap.mmap(fd, offset + size))[offset:])


class Memory:
    """All regions. An address outside them is BrokenError."""

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        self._regions = list(regions)

    def bus(self, address: int, length: int) -> memoryview:
        """The bytes at an address that a descriptor holds."""
        return self._find(address, length, [region.bus for region in self._regions])

    def user(self, address: int, length: int) -> memoryview:
        """The bytes at an address that SET_VRING_ADDR holds."""
        return self._find(address, length, [region.user for region in self._regions])

    def _find(self, address: int, length: int, starts: list[int]) -> memoryview:
        for start, region in zip(starts, self._regions, strict=True):
            at = address - start
            if at >= 0 and at + length <= len(region.view):
                return region.view[at : at + length]
        raise BrokenError(f"{length} bytes at {address:#x} are not in the driver's memory")


def pieces(views: Iterable[memoryview], start: int, end: int) -> Iterator[memoryview]:
    """Bytes `start` to `end` of what the views make up together."""
    at = 0
    for view in views:
        first, last = max(start - at, 0), min(end - at, len(view))
        if first < last:
            yield view[first:last]
        at += len(view)


def size(views: Iterable[memoryview]) -> int:
    """Bytes in all of the views."""
    return sum(len(view) for view in views)
