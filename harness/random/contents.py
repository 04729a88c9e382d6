"""A model of the possible contents of a disk's sectors.

It accepts everything that the specification leaves open. Each write has a salt, and its data
follows from salt and sector, so that data in the wrong place is detected. Salt 0 means zeroes.
Requests in flight at the same time have no order (virtio 5.2.6): until a write is done, each byte
of its sectors may be the old or the new one, and after writes that overlapped in time, the data of
any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.virtio.blk import SECTOR

ZEROES = 0
ANYTHING = -1
"""Salt of contents that the specification leaves open.

These are discarded sectors, and sectors that were lost to a resize.
"""

UNIT = 32


def sector_of(salt: int, sector: int) -> bytes:
    """Return the data of a write with this salt for a sector.

    It is text, so it contains neither 0 nor CANARY.
    """
    if salt == ZEROES:
        return bytes(SECTOR)
    return (b"%d@%d" % (salt, sector)).ljust(UNIT, b".") * (SECTOR // UNIT)


def sectors_of(salt: int, sector: int, count: int) -> bytes:
    """Return the data of a write with this salt for several sectors."""
    return b"".join(sector_of(salt, number) for number in range(sector, sector + count))


@dataclass
class _Held:
    """State of one sector.

    `may` are the salts it may hold, `writers` the writes in flight, and `together` the salts of
    writes that overlap in time.
    """

    may: set[int]
    writers: set[int] = field(default_factory=set)
    together: set[int] = field(default_factory=set)


@dataclass
class _Reader:
    """A read in flight: the salts that each of its sectors may return."""

    sector: int
    may: list[set[int]]


class Contents:
    """The data that each sector of a disk may hold, while writes are in flight and afterwards.

    A salt stands for the data of a sector. The caller identifies requests by numbers.
    """

    def __init__(self, initial: int = ZEROES) -> None:
        """Start with `initial` as the salt of every sector that nobody has written."""
        self._initial = initial
        self._lost: list[tuple[int, int]] = []
        self._held: dict[int, _Held] = {}
        self._readers: dict[int, _Reader] = {}

    def may_hold(self, sector: int) -> frozenset[int]:
        """Return the salts that a sector may hold now."""
        held = self._held.get(sector)
        return frozenset(held.may if held else {self._at_first(sector)})

    def _at_first(self, sector: int) -> int:
        """Return the salt of a sector that nobody has written."""
        for first, end in self._lost:
            if first <= sector < end:
                return ANYTHING
        return self._initial

    def touched(self, near: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges of sectors below `end` that may have been written, and `near` more.

        Each range is its first sector and the one after its last.
        """
        ranges: list[tuple[int, int]] = []
        for sector in sorted(self._held):
            first, last = max(sector - near, 0), min(sector + near + 1, end)
            if ranges and first <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(last, ranges[-1][1]))
            elif first < end:
                ranges.append((first, last))
        return ranges

    def write_begins(self, number: int, sector: int, count: int, salt: int) -> None:
        """Note that a request which writes `salt` is in flight from now on."""
        for at in range(sector, sector + count):
            if (held := self._held.get(at)) is None:
                held = self._held[at] = _Held({self._at_first(at)})
            held.may.add(salt)
            held.writers.add(number)
            held.together.add(salt)
        for reader in self._readers.values():
            self._tell(reader, sector, count, salt)

    @staticmethod
    def _tell(reader: _Reader, sector: int, count: int, salt: int) -> None:
        first = max(sector, reader.sector)
        last = min(sector + count, reader.sector + len(reader.may))
        for at in range(first, last):
            reader.may[at - reader.sector].add(salt)

    def write_ends(self, number: int, sector: int, count: int, done: bool) -> None:
        """Note that a write is no longer in flight.

        Unless it was `done`, its sectors may hold anything.
        """
        for at in range(sector, sector + count):
            held = self._held[at]
            if number not in held.writers:
                continue
            held.writers.discard(number)
            if done:
                held.may = set(held.together)
            else:
                held.may.add(ANYTHING)
                held.together.add(ANYTHING)
            if not held.writers:
                held.together = set()

    def lost(self, sector: int, end: int) -> None:
        """Note that the sectors from `sector` to `end` are gone, and may return with any data."""
        self._lost.append((sector, end))
        for held in [held for at, held in self._held.items() if sector <= at < end]:
            held.may.add(ANYTHING)
            held.together.add(ANYTHING)
            if not held.writers:
                held.may, held.together = {ANYTHING}, set()
        for reader in self._readers.values():
            self._tell(reader, sector, end - sector, ANYTHING)

    def read_begins(self, number: int, sector: int, count: int) -> None:
        """Note that a read is in flight from now on."""
        may = [set(self.may_hold(at)) for at in range(sector, sector + count)]
        self._readers[number] = _Reader(sector, may)

    def read_ends(self, number: int) -> list[frozenset[int]]:
        """Note that a read has ended.

        Return the salts that each of its sectors may have returned.
        """
        return [frozenset(may) for may in self._readers.pop(number).may]


def mismatch(data: bytes, sector: int, may: Sequence[frozenset[int]]) -> str | None:
    """Describe in one line how the data of a read is wrong; return None if it is right."""
    for position, salts in enumerate(may):
        if ANYTHING in salts:
            continue
        number = sector + position
        actual = data[position * SECTOR : (position + 1) * SECTOR]
        candidates = [sector_of(salt, number) for salt in sorted(salts)]
        if actual in candidates:
            continue
        bad = next(
            (at for at, byte in enumerate(actual) if all(byte != c[at] for c in candidates)), None
        )
        if bad is None and len(actual) == SECTOR:
            continue
        at = bad or 0
        expected = " or ".join(repr(c[at : at + UNIT // 2]) for c in candidates)
        return f"sector {number} at byte {at} is {actual[at : at + UNIT // 2]!r}, not {expected}"
    return None
