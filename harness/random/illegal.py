"""What a driver does that keeps to no rule: plain data, as in `operations`.

A place is a name and an offset in bytes: "arena" (memory for buffers), "table" (for indirect
tables), "desc", "driver" and "device" (the areas of virtqueue 0), "own" (the device's own
registers), "low", "beyond" and "top" (bus addresses where no memory of ours is).
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.random.operations import Operation

Place = tuple[str, int]

Piece = tuple[str, int, int, int]
"""A descriptor: a place, a length in bytes, and flags as they go into the ring (WRITE is 2)."""


class Mischief(Operation):
    """An operation that makes a script a hostile one."""


@dataclass(frozen=True, kw_only=True)
class Chain(Mischief):
    """A chain of descriptors at the next free slots, made available.

    The pieces' NEXT flags are set as they should be, and then all flags are changed (xor) as the
    pieces say. With `header` (type, sector), a proper header comes first; with `status`, a status
    byte last. With `table` the chain is in an indirect table there, of `spare` bytes more or fewer.
    """

    pieces: tuple[Piece, ...] = ()
    header: tuple[int, int] | None = None
    status: bool = True
    table: int | None = None
    spare: int = 0
    queue: int = 0


@dataclass(frozen=True, kw_only=True)
class Describe(Mischief):
    """Overwrite one descriptor of the ring. `last` is `next` (split) or the buffer id (packed)."""

    slot: int
    place: Place
    length: int
    flags: int
    last: int = 0
    queue: int = 0


@dataclass(frozen=True, kw_only=True)
class Offer(Mischief):
    """Put heads into a split ring's available ring, and move its index by so many and `jump`."""

    heads: tuple[int, ...] = ()
    jump: int = 0
    queue: int = 0


@dataclass(frozen=True, kw_only=True)
class Scribble(Mischief):
    """Write a number of 2 bytes into an area that is ours, modulo its length."""

    place: Place
    value: int


@dataclass(frozen=True, kw_only=True)
class Kick(Mischief):
    """Notify the device of a virtqueue."""

    queue: int = 0


@dataclass(frozen=True, kw_only=True)
class Poke(Mischief):
    """Write a register of the transport."""

    register: str
    value: int


@dataclass(frozen=True, kw_only=True)
class PokeAddress(Mischief):
    """Write the address of a place to a register of the transport."""

    register: str
    place: Place


@dataclass(frozen=True, kw_only=True)
class PokeConfig(Mischief):
    """Write the device configuration space, in one access of 1, 2 or 4 bytes."""

    offset: int
    width: int
    value: int


@dataclass(frozen=True, kw_only=True)
class Pause(Mischief):
    """Give the device a few milliseconds."""
