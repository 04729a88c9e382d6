"""Common parts of split and packed virtqueues on the device's side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from harness.model.memory import BrokenError, Memory
from harness.virtio.ring import DESC, DESC_F_WRITE, DESC_SIZE

MAX_LOOK = 1024
"""Entries of an indirect table that an observer is shown at most."""


@dataclass
class Chain:
    """A buffer that the driver made available.

    `id` names it in the used ring. `position` is the ring's position before the chain was taken,
    and `slots` is the number of ring entries that it fills. `places` are the bus addresses and
    lengths of the device-writable elements. `descriptors` are those in a packed ring, without the
    bits about their availability: address, length, id, flags.
    """

    id: int
    position: int
    slots: int = 1
    readable: list[memoryview] = field(default_factory=list)
    writable: list[memoryview] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    descriptors: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, memory: Memory, address: int, length: int, flags: int) -> None:
        """Add one element.

        Raise BrokenError if a readable one follows a writable one (virtio 2.7.4.2).
        """
        view = memory.bus(address, length)
        if flags & DESC_F_WRITE:
            self.writable.append(view)
            self.places.append((address, length))
        elif self.writable:
            raise BrokenError("a device-readable element after a device-writable one")
        else:
            self.readable.append(view)


@dataclass(frozen=True)
class Addresses:
    """Addresses of a ring's areas, in the front-end's own address space."""

    desc: int
    driver: int
    device: int


class Ring(ABC):
    """The rings of one virtqueue. Any method that reads them may raise BrokenError."""

    def __init__(self, size: int, event_idx: bool) -> None:
        self.size = size
        self.event_idx = event_idx

    @abstractmethod
    def map(self, memory: Memory, addresses: Addresses) -> None:
        """Locate the rings in memory, which may have moved."""

    @property
    @abstractmethod
    def base(self) -> int:
        """Return the position of the next chain to take, in the form of GET_VRING_BASE."""

    @abstractmethod
    def take(self) -> Chain | None:
        """Return the next available chain, or None if there is none."""

    @abstractmethod
    def look(self) -> dict[str, Any] | None:
        """Return the next available chain as it lies in memory, or None if there is none.

        `descriptors` has slot, address, length, flags and the remaining 16-bit field (next or id)
        of each; `table` those of the indirect table at its end. No rule is enforced, and no error
        raised for what lies there: as much as can be read is returned.
        """

    @abstractmethod
    def give_back(self, chain: Chain) -> None:
        """Return to the position before `chain`.

        Neither it nor a later chain may have been used.
        """

    @abstractmethod
    def use(self, chain: Chain, length: int) -> None:
        """Mark a chain as used, with `length` bytes written."""

    @abstractmethod
    def notification_due(self) -> bool:
        """Return True if uses since the last call need a notification (virtio 2.7.7, 2.8.10)."""

    @abstractmethod
    def wanted(self, old: int, new: int) -> bool:
        """Return True if the driver wants a notification for the use of `old` to `new`."""

    @abstractmethod
    def want_kicks(self) -> None:
        """Ask the driver to notify when the next chain becomes available."""

    # --- for an observer

    @abstractmethod
    def look_again(self, seen: list[list[int]]) -> list[list[int]]:
        """Return descriptors that `look` has returned as they lie in memory now."""

    @abstractmethod
    def waiting(self) -> int:
        """Return the number of chains (packed: of descriptors) that are available and not taken.

        It is 0 for an available index that is too far ahead.
        """

    @abstractmethod
    def asked(self) -> tuple[int, int]:
        """Return what the driver is asked for: flags, and avail_event or desc_event_off_wrap."""

    def impossible(self) -> int | None:
        """Return an available index that is too far ahead, or None if there is no such index."""
        return None

    @abstractmethod
    def given_up(self, chain: Chain) -> Collection[int]:
        """Return the slots that belong to the driver again once `chain` is used.

        Of a packed virtqueue these are as many as the chain has, from the place where it is marked
        used. They may have descriptors of another chain (virtio 2.8.6).
        """


def look_at_table(memory: Memory, address: int, length: int) -> list[list[int]]:
    """Return the entries of an indirect table as far as they can be read, at most MAX_LOOK."""
    try:
        table = memory.bus(address, min(length - length % DESC_SIZE, MAX_LOOK * DESC_SIZE))
    except BrokenError:
        return []
    return [[slot, *entry] for slot, entry in enumerate(DESC.iter_unpack(table))]


def descriptors(table: memoryview) -> list[tuple[int, int, int, int]]:
    """Return the entries of an indirect table. Raise BrokenError if it ends inside an entry."""
    if not len(table) or len(table) % DESC_SIZE:
        raise BrokenError(f"an indirect table of {len(table)} bytes")
    return list(DESC.iter_unpack(table))
