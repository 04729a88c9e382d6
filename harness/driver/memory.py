"""Memory that driver and device share: regions with bus addresses, and their allocator."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.driver.errors import BadArgumentError


@dataclass(frozen=True)
class Region:
    """Memory that is contiguous for the device: its bus address and our view of it."""

    address: int
    view: memoryview

    @property
    def end(self) -> int:
        """The first bus address after the region."""
        return self.address + len(self.view)


class DmaMemory:
    """First-fit allocator over regions of shared memory, with bus addresses.

    No allocation spans two regions. Lengths are in bytes. When no region has
    room, `grow` is called for one more region; if it returns None, the
    allocation fails. Memory below the address `first` is used when there is
    no other, or when `begin_at` says so.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        grow: Callable[[], Region | None] | None = None,
        first: int = 0,
    ) -> None:
        self.regions: list[Region] = []
        self._first = self._begin = first
        self._starts: list[int] = []
        self._given: dict[int, int] = {}
        self._free: list[tuple[int, int]] = []
        self._searched: dict[tuple[int, ...], int] = {}
        """Address below which nothing fits, by the arguments of a search, until memory is freed.

        Thousands of allocations leave a gap each, which every later search would look at.
        """
        self._grow = grow
        for region in regions:
            self._add(region)

    def _add(self, region: Region) -> None:
        bisect.insort(self.regions, region, key=lambda other: other.address)
        bisect.insort(self._starts, region.address)
        bisect.insort(self._free, (region.address, region.end))
        self._searched.clear()

    def allocations(self) -> dict[int, int]:
        """Return all allocations: address -> length in bytes."""
        return dict(self._given)

    def free_all(self) -> None:
        """Free all allocations."""
        self._given.clear()
        self._searched.clear()
        self._free = [(region.address, region.end) for region in self.regions]

    def begin_at(self, address: int | None) -> None:
        """Allocate from this bus address on; None means from the usual one on.

        Raises BadArgumentError if the address is in no region.
        """
        if address is not None:
            self.view(address, 1)
        self._begin = self._first if address is None else address

    def alloc(self, length: int, align: int = 16, shift: int = 0) -> int:
        """Allocate zeroed memory and return its bus address.

        The address is `shift` bytes after a multiple of `align`. Raises BadArgumentError if no
        region has room.
        """
        if length <= 0 or align <= 0 or align & (align - 1) or not 0 <= shift < align:
            placed = f" + {shift}" if shift else ""
            raise BadArgumentError(f"cannot allocate {length} bytes aligned to {align}{placed}")
        address = self._first_fit(length, align, shift)
        while address is None:
            region = self._grow() if self._grow else None
            if region is None or length > len(region.view):
                raise BadArgumentError(
                    f"no {length} bytes of device-visible memory left",
                    {
                        "given": sum(self._given.values()),
                        "regions": [len(region.view) for region in self.regions],
                    },
                )
            self._add(region)
            address = self._first_fit(length, align, shift)
        self.view(address, length)[:] = bytes(length)
        return address

    def _first_fit(self, length: int, align: int, shift: int) -> int | None:
        address = self._first_fit_from(self._begin, length, align, shift)
        if address is None and self._begin:
            address = self._first_fit_from(0, length, align, shift)
        return address

    def _first_fit_from(self, begin: int, length: int, align: int, shift: int) -> int | None:
        search = (begin, length, align, shift)
        below = bisect.bisect(self._free, (self._searched.get(search, 0), 0))
        for index in range(below, len(self._free)):
            start, end = self._free[index]
            address = -((shift - max(start, begin)) // align) * align + shift
            if address + length > end:
                continue
            pieces = [(start, address), (address + length, end)]
            self._free[index : index + 1] = [(low, high) for low, high in pieces if low < high]
            self._given[address] = length
            self._searched[search] = address
            return address
        return None

    def free(self, address: int) -> None:
        """Free an allocation and join it with free neighbours in the same region."""
        try:
            end = address + self._given.pop(address)
        except KeyError:
            raise BadArgumentError(f"{address:#x} was not allocated") from None
        self._searched.clear()
        start = address
        index = bisect.bisect(self._free, (start, end))
        borders = set(self._starts)
        if index < len(self._free) and self._free[index][0] == end and end not in borders:
            end = self._free.pop(index)[1]
        if index and self._free[index - 1][1] == start and start not in borders:
            index -= 1
            start = self._free.pop(index)[0]
        self._free.insert(index, (start, end))

    def view(self, address: int, length: int) -> memoryview:
        """Return our view of `length` bytes at a bus address.

        Raises BadArgumentError if they are not within one region.
        """
        index = bisect.bisect(self._starts, address) - 1
        region = self.regions[index] if index >= 0 else None
        if region is None or address + length > region.end or length < 0:
            raise BadArgumentError(f"{address:#x}+{length:#x} is not device-visible memory")
        offset = address - region.address
        return region.view[offset : offset + length]
