"""Operations of a driver that follows no rule: plain data, as in `operations`.

A place is a name and an offset in bytes: "arena" (memory for buffers), "table" (for indirect
tables), "desc", "driver" and "device" (the areas of virtqueue 0), "own" (the device's own
registers), "low", "beyond" and "top" (bus addresses outside our memory).
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.random.operations import Operation

Place = tuple[str, int]

Piece = tuple[str, int, int, int]
"""A descriptor: a place, a length in bytes, and the flags of the ring (WRITE is 2)."""


class Mischief(Operation):
    """An operation that makes a script hostile."""


@dataclass(frozen=True, kw_only=True)
class Chain(Mischief):
    """Make a chain of descriptors available, at the next free slots.

    NEXT is set in the pieces as it should be; then all flags are changed (xor) by the pieces' own.
    With `header` (type, sector), a correct header is first; with `status`, a status byte is last.
    With `table` the chain is in an indirect table at that offset, whose length is wrong by `spare`
    bytes.
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
    """Put heads into a split queue's available ring, and advance its index.

    The index advances by the number of heads plus `jump`.
    """

    heads: tuple[int, ...] = ()
    jump: int = 0
    queue: int = 0


@dataclass(frozen=True, kw_only=True)
class Scribble(Mischief):
    """Write 2 bytes to one of our areas, at an offset modulo its length."""

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
    """Wait a few milliseconds."""
