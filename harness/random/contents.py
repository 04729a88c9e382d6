"""What the sectors of a disk may hold: a model that accuses no device of what is left open.

Each write has a salt, and what it writes follows from salt and sector, so that data in the wrong
place is seen. Salt 0 is zeroes. Requests in flight together have no order (virtio 5.2.6): until
a write is done its sectors may hold what they held or what it writes, byte by byte, and after
writes that overlapped in time, what any of them wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.virtio.blk import SECTOR

ZEROES = 0
ANYTHING = -1
"""The salt of what the specification leaves open: discarded sectors, and those lost to a resize."""

UNIT = 32


def sector_of(salt: int, sector: int) -> bytes:
    """What a write with this salt puts into a sector: text, so neither 0 nor CANARY."""
    if salt == ZEROES:
        return bytes(SECTOR)
    return (b"%d@%d" % (salt, sector)).ljust(UNIT, b".") * (SECTOR // UNIT)


def sectors_of(salt: int, sector: int, count: int) -> bytes:
    """What a write with this salt puts into sectors."""
    return b"".join(sector_of(salt, one) for one in range(sector, sector + count))


@dataclass
class _Held:
    """One sector: what it may hold, the writes in flight, and what they and their like write."""

    may: set[int]
    writers: set[int] = field(default_factory=set)
    together: set[int] = field(default_factory=set)


@dataclass
class _Reader:
    """A read in flight: for each of its sectors what it may return."""

    sector: int
    may: list[set[int]]


class Contents:
    """The sectors of one disk. Requests are known by a number of the caller's."""

    def __init__(self, initial: int = ZEROES) -> None:
        """`initial` is the salt of a sector that nobody has written."""
        self._initial = initial
        self._held: dict[int, _Held] = {}
        self._readers: dict[int, _Reader] = {}

    def may_hold(self, sector: int) -> frozenset[int]:
        """The salts of what a sector may hold now."""
        held = self._held.get(sector)
        return frozenset(held.may) if held else frozenset({self._initial})

    def write_begins(self, number: int, sector: int, count: int, salt: int) -> None:
        """A request that puts `salt` into sectors is in flight from now on."""
        for one in range(sector, sector + count):
            held = self._held.setdefault(one, _Held({self._initial}))
            held.may.add(salt)
            held.writers.add(number)
            held.together.add(salt)
        for reader in self._readers.values():
            self._tell(reader, sector, count, salt)

    @staticmethod
    def _tell(reader: _Reader, sector: int, count: int, salt: int) -> None:
        first = max(sector, reader.sector)
        last = min(sector + count, reader.sector + len(reader.may))
        for one in range(first, last):
            reader.may[one - reader.sector].add(salt)

    def write_ends(self, number: int, sector: int, count: int, done: bool) -> None:
        """It is in flight no more; unless it was `done`, nobody knows what it has left."""
        for one in range(sector, sector + count):
            held = self._held[one]
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
        """The sectors from `sector` to `end` are gone, and come back with anything in them."""
        for one in range(sector, end):
            held = self._held.setdefault(one, _Held({self._initial}))
            held.may.add(ANYTHING)
            held.together.add(ANYTHING)
            if not held.writers:
                held.may, held.together = {ANYTHING}, set()
        for reader in self._readers.values():
            self._tell(reader, sector, end - sector, ANYTHING)

    def read_begins(self, number: int, sector: int, count: int) -> None:
        """A read is in flight from now on."""
        may = [set(self.may_hold(one)) for one in range(sector, sector + count)]
        self._readers[number] = _Reader(sector, may)

    def read_ends(self, number: int) -> list[frozenset[int]]:
        """It is in flight no more; for each of its sectors the salts it may have returned."""
        return [frozenset(may) for may in self._readers.pop(number).may]


def mismatch(found: bytes, sector: int, may: Sequence[frozenset[int]]) -> str | None:
    """What is wrong with sectors that were read, None if nothing is: one line."""
    for position, salts in enumerate(may):
        if ANYTHING in salts:
            continue
        one = sector + position
        got = found[position * SECTOR : (position + 1) * SECTOR]
        candidates = [sector_of(salt, one) for salt in sorted(salts)]
        if got in candidates:
            continue
        bad = next(
            (at for at, byte in enumerate(got) if all(byte != c[at] for c in candidates)), None
        )
        if bad is None and len(got) == SECTOR:
            continue
        at = bad or 0
        expected = " or ".join(repr(c[at : at + UNIT // 2]) for c in candidates)
        return f"sector {one} at byte {at} is {got[at : at + UNIT // 2]!r}, not {expected}"
    return None
