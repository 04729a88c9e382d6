"""Interface of a virtqueue of any format (virtio 2.6)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence

from harness.driver.interface import Buffer, QueueLayout, QueueState, Used
from harness.driver.memory import DmaMemory
from harness.virtio.ring import DESC_SIZE

PAGE = 4096
"""Bytes of a page, to which the shift of a request's buffers refers."""


Described = tuple[bool, Sequence[int], bytes, int]
"""A chain for a trace: True if packed, the slots of its descriptors in the ring, these descriptors
and those of its indirect table as bytes, and the table's address (0 without one)."""


class Virtqueue(ABC):
    """A virtqueue in memory that driver and device share, zeroed at first.

    With `in_order` (IN_ORDER was accepted) descriptors are taken in ring order,
    and one used element may stand for several chains. With `event_idx` (EVENT_IDX
    was accepted) each side writes the position at which it wants a notification.
    """

    layout: QueueLayout

    def __init__(
        self, memory: DmaMemory, index: int, size: int, in_order: bool, event_idx: bool
    ) -> None:
        self.memory = memory
        self.index = index
        self.size = size
        self.in_order = in_order
        self.event_idx = event_idx
        self._order: deque[int] = deque()

    def _made_available(self, heads: Iterable[int]) -> None:
        """Record the order of these chains, if the device has to keep it."""
        if self.in_order:
            self._order.extend(heads)

    def _implied_by_in_order(self, head: int, most: int) -> list[int]:
        """Return the further chains that a used element of `head` implies (virtio 2.7.9, 2.8.9).

        These are the chains that became available before it and are not used yet.
        If there are more than `most`, the device has broken the order: then the
        element stands for its own chain only.
        """
        if head not in self._order:
            return []
        ahead = self._order.index(head)
        if ahead > most:
            self._order.remove(head)
            return []
        implied = [self._order.popleft() for _ in range(ahead)]
        self._order.popleft()
        return implied

    def _area(self, length: int, align: int, least_aligned: bool) -> int:
        """Allocate an area of the rings; with `least_aligned`, not at a multiple of 2 `align`."""
        return (
            self.memory.alloc(length, 2 * align, align)
            if least_aligned
            else (self.memory.alloc(length, align))
        )

    def _alloc_table(self, length: int, shift: int | None) -> int:
        """Allocate an indirect table, `shift` bytes after a multiple of PAGE (None: anywhere)."""
        if shift is None:
            return self.memory.alloc(length, DESC_SIZE)
        return self.memory.alloc(length, PAGE, shift)

    @abstractmethod
    def add(
        self,
        buffers: Sequence[Buffer],
        indirect: bool = False,
        shift: int | None = None,
        unusual: bool = False,
    ) -> int:
        """Write a chain of descriptors, or one with an indirect table, and return its head.

        `shift` is that of the indirect table, and `unusual` concerns its links and the
        fields that the device ignores: see `Request`. Raises BadArgumentError if there are
        not enough free descriptors.
        """

    @abstractmethod
    def publish(self, heads: Iterable[int]) -> None:
        """Make chains available, all together."""

    @abstractmethod
    def republish(self, head: int) -> None:
        """Make a used chain that was not released available again."""

    @abstractmethod
    def next_available(self) -> int:
        """Return the position of the next chain, as in NOTIFICATION_DATA (virtio 2.9)."""

    @abstractmethod
    def set_interrupts_enabled(self, wanted: bool) -> None:
        """Ask the device for used buffer notifications, or for none.

        With EVENT_IDX this is valid for the next used chain only: call it again after each poll.
        """

    @abstractmethod
    def needs_notification(self) -> bool:
        """Return True if the device asks for a notification of chains published since last call."""

    @abstractmethod
    def used_pending(self) -> bool:
        """Return True if there are used chains that `take_used` has not returned."""

    @abstractmethod
    def take_used(self) -> list[Used]:
        """Return newly used chains, in the device's order, without releasing them.

        A chain without a used element of its own (IN_ORDER) counts as written in full.
        """

    @abstractmethod
    def release(self, head: int) -> None:
        """Free a chain's descriptors and its indirect table. An unknown head is ignored.

        The chain was used, or never made available. Chains that were never made
        available are released in the reverse order of `add`.
        """

    @abstractmethod
    def chain(self, head: int) -> bytes:
        """Return the part of a chain in memory that the device must not change."""

    @abstractmethod
    def described(self, head: int, raw: bytes) -> Described:
        """Return a chain as it was written, for a trace; `raw` is that of `chain`."""

    @abstractmethod
    def state(self) -> QueueState:
        """Return the indices and flags in memory."""
