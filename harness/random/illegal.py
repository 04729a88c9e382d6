"""Operations of a driver that follows no rule: plain data, as in `operations`.

A place is a name and an offset in bytes: "arena" (memory for buffers), "table" (for indirect
tables), "desc", "driver" and "device" (the areas of virtqueue 0), "own" (the device's own
registers), "low", "beyond" and "top" (bus addresses outside our memory).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from harness.inputs import at_most, one_of, within
from harness.random.operations import Operation, Queue

U16 = Annotated[int, within(0, (1 << 16) - 1)]
U32 = Annotated[int, within(0, (1 << 32) - 1)]
U64 = Annotated[int, within(0, (1 << 64) - 1)]
Offset = Annotated[int, within(-(1 << 63), (1 << 63) - 1)]
AREAS = ("arena", "table", "desc", "driver", "device")
Area = Annotated[str, one_of(*AREAS)]
Name = Annotated[str, one_of(*AREAS, "own", "low", "beyond", "top")]

Place = tuple[Name, Offset]

Piece = tuple[Name, Offset, U32, U16]
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

    pieces: Annotated[tuple[Piece, ...], at_most(1024)] = ()
    header: tuple[U32, U64] | None = None
    status: bool = True
    table: U32 | None = None
    spare: Annotated[int, within(-(1 << 31), (1 << 31) - 1)] = 0
    queue: Queue = 0


@dataclass(frozen=True, kw_only=True)
class Describe(Mischief):
    """Overwrite one descriptor of the ring. `last` is `next` (split) or the buffer id (packed)."""

    slot: U16
    place: Place
    length: U32
    flags: U16
    last: U16 = 0
    queue: Queue = 0


@dataclass(frozen=True, kw_only=True)
class Offer(Mischief):
    """Put heads into a split queue's available ring, and advance its index.

    The index advances by the number of heads plus `jump`.
    """

    heads: Annotated[tuple[U16, ...], at_most(256)] = ()
    jump: U16 = 0
    queue: Queue = 0


@dataclass(frozen=True, kw_only=True)
class Scribble(Mischief):
    """Write 2 bytes to one of our areas, at an offset modulo its length."""

    place: tuple[Area, Offset]
    value: U16


@dataclass(frozen=True, kw_only=True)
class Kick(Mischief):
    """Notify the device of a virtqueue."""

    queue: Queue = 0


@dataclass(frozen=True, kw_only=True)
class Poke(Mischief):
    """Write a register of the transport."""

    register: str
    value: U16


@dataclass(frozen=True, kw_only=True)
class PokeAddress(Mischief):
    """Write the address of a place to a register of the transport."""

    register: str
    place: Place


@dataclass(frozen=True, kw_only=True)
class PokeConfig(Mischief):
    """Write the device configuration space, in one access of 1, 2 or 4 bytes."""

    offset: Annotated[int, within(0, 4095)]
    width: Annotated[int, one_of(1, 2, 4)]
    value: U32

    def __post_init__(self) -> None:
        """Raise ValueError for a value that the access has no room for."""
        if self.value >> 8 * self.width:
            raise ValueError(f"{self.value} does not fit into {self.width} bytes")


@dataclass(frozen=True, kw_only=True)
class Pause(Mischief):
    """Wait a few milliseconds."""
