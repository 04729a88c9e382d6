"""What split and packed virtqueues have in common on the device's side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from harness.model.memory import BrokenError, Memory
from harness.virtio.ring import DESC, DESC_F_WRITE, DESC_SIZE


@dataclass
class Chain:
    """A buffer that the driver made available.

    `id` is what the used ring names it by. `position` is the ring's before it
    was taken, and `slots` are the ring's entries that it fills.
    """

    id: int
    position: int
    slots: int = 1
    readable: list[memoryview] = field(default_factory=list)
    writable: list[memoryview] = field(default_factory=list)

    def add(self, memory: Memory, address: int, length: int, flags: int) -> None:
        """One element. BrokenError if the device may not read it any more (virtio 2.7.4.2)."""
        view = memory.bus(address, length)
        if flags & DESC_F_WRITE:
            self.writable.append(view)
        elif self.writable:
            raise BrokenError("a device-readable element after a device-writable one")
        else:
            self.readable.append(view)


@dataclass(frozen=True)
class Addresses:
    """Where a ring lies, in the front-end's own addresses."""

    desc: int
    driver: int
    device: int


class Ring(ABC):
    """One virtqueue's rings. Any method that looks at them may raise BrokenError."""

    def __init__(self, size: int, event_idx: bool) -> None:
        self.size = size
        self.event_idx = event_idx

    @abstractmethod
    def map(self, memory: Memory, addresses: Addresses) -> None:
        """Find the rings in memory, which may have moved."""

    @property
    @abstractmethod
    def base(self) -> int:
        """Where the next chain is taken, as GET_VRING_BASE says it."""

    @abstractmethod
    def take(self) -> Chain | None:
        """The next available chain, None if there is none."""

    @abstractmethod
    def give_back(self, chain: Chain) -> None:
        """Go back to before `chain` was taken: neither it nor a later one was used."""

    @abstractmethod
    def use(self, chain: Chain, length: int) -> None:
        """Mark a chain as used, with so many bytes written."""

    @abstractmethod
    def notification_due(self) -> bool:
        """Whether what was used since the last call is to be announced (virtio 2.7.7, 2.8.10)."""

    @abstractmethod
    def want_kicks(self) -> None:
        """Ask the driver to notify when the next chain becomes available."""


def descriptors(table: memoryview) -> list[tuple[int, int, int, int]]:
    """The entries of an indirect table. BrokenError if it is cut off in the middle of one."""
    if not len(table) or len(table) % DESC_SIZE:
        raise BrokenError(f"an indirect table of {len(table)} bytes")
    return list(DESC.iter_unpack(table))
