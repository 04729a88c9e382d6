"""What the driver needs of a virtqueue, whatever its format (virtio 2.6)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from harness.driver.interface import Buffer, QueueLayout, QueueState, Used
from harness.driver.memory import DmaMemory


class Virtqueue(ABC):
    """One virtqueue in memory that driver and device share, zeroed at first."""

    memory: DmaMemory
    index: int
    size: int
    layout: QueueLayout

    @abstractmethod
    def add(self, buffers: Sequence[Buffer], indirect: bool = False) -> int:
        """Write a chain of descriptors, or one that refers to an indirect table; its head.

        BadArgumentError if there is no room for it.
        """

    @abstractmethod
    def publish(self, heads: Iterable[int]) -> None:
        """Make chains available, all at once."""

    @abstractmethod
    def again(self, head: int) -> None:
        """Make a chain that was used, and not released, available once more."""

    @abstractmethod
    def next_available(self) -> int:
        """Where the next chain goes, as NOTIFICATION_DATA tells the device (virtio 2.9)."""

    @abstractmethod
    def want_interrupts(self, wanted: bool) -> None:
        """Ask the device for used buffer notifications, or for none."""

    @abstractmethod
    def used_pending(self) -> bool:
        """Whether the device has used chains that `take_used` has not returned."""

    @abstractmethod
    def take_used(self) -> list[Used]:
        """What the device has newly used, in its order. The chains stay as they are."""

    @abstractmethod
    def release(self, head: int) -> None:
        """Free a used chain's descriptors and its indirect table; an unknown head is let be."""

    @abstractmethod
    def chain(self, head: int) -> bytes:
        """What of a chain the device must not change, as it stands in memory."""

    @abstractmethod
    def state(self) -> QueueState:
        """The indices as they stand in memory."""
