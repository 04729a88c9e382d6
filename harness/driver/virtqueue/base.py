"""What the driver needs of a virtqueue, whatever its format (virtio 2.6)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence

from harness.driver.interface import Buffer, QueueLayout, QueueState, Used
from harness.driver.memory import DmaMemory


class Virtqueue(ABC):
    """One virtqueue in memory that driver and device share, zeroed at first.

    With `in_order` (IN_ORDER was accepted) descriptors are taken in the ring's
    order, and one used element may stand for several chains. With `event_idx`
    (EVENT_IDX was accepted) each side says how far the other one may go in silence.
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
        """Note the order, if the device has to keep it."""
        if self.in_order:
            self._order.extend(heads)

    def _implied_by_in_order(self, head: int, most: int) -> list[int]:
        """What a used element for `head` stands for beside its own chain (virtio 2.7.9, 2.8.9).

        It is the chains that became available before it and are not used yet. A
        device that would have used more than `most` of them has broken the
        order: then the element stands for its own chain only.
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

    @abstractmethod
    def add(self, buffers: Sequence[Buffer], indirect: bool = False) -> int:
        """Write a chain of descriptors, or one that refers to an indirect table; its head.

        BadArgumentError if there is no room for it.
        """

    @abstractmethod
    def publish(self, heads: Iterable[int]) -> None:
        """Make chains available, all at once."""

    @abstractmethod
    def republish(self, head: int) -> None:
        """Make a chain that was used, and not released, available once more."""

    @abstractmethod
    def next_available(self) -> int:
        """Where the next chain goes, as NOTIFICATION_DATA tells the device (virtio 2.9)."""

    @abstractmethod
    def set_interrupts_enabled(self, wanted: bool) -> None:
        """Ask the device for used buffer notifications, or for none.

        With EVENT_IDX this is about the next chain that it uses: to be said anew after each look.
        """

    @abstractmethod
    def needs_notification(self) -> bool:
        """Whether the device asks to be notified of what became available since the last call."""

    @abstractmethod
    def used_pending(self) -> bool:
        """Whether the device has used chains that `take_used` has not returned."""

    @abstractmethod
    def take_used(self) -> list[Used]:
        """What the device has newly used, in its order. The chains stay as they are.

        A chain that IN_ORDER let the device pass over counts as written in full.
        """

    @abstractmethod
    def release(self, head: int) -> None:
        """Free a chain's descriptors and its indirect table; an unknown head is let be.

        It was used, or never made available; of several such, the last one comes first.
        """

    @abstractmethod
    def chain(self, head: int) -> bytes:
        """What of a chain the device must not change, as it stands in memory."""

    @abstractmethod
    def state(self) -> QueueState:
        """The indices as they stand in memory."""
