"""What a transport needs of the bus that its device sits on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

from harness.driver.memory import DmaMemory


class Bus(ABC):
    """One device's interrupt line, and the memory that driver and device share."""

    memory: DmaMemory
    access_platform: bool = False
    """Whether bus addresses mean what the platform makes of them (an IOMMU), so that a device
    which can tell has to be told (ACCESS_PLATFORM, virtio 6.1)."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Address and identity, for reports."""

    @abstractmethod
    def fileno(self) -> int | None:
        """A descriptor that is readable while an interrupt is pending, None if there is none."""

    @abstractmethod
    def take_interrupts(self, timeout: float) -> int:
        """How often the line was raised since the last call; wait up to `timeout` s for one.

        After a call that returned more than 0 the line may be masked until
        `unmask_interrupts`.
        """

    @abstractmethod
    def unmask_interrupts(self) -> None:
        """Let the line through again, once its cause (ISR status) was read."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


class PciFunction(Bus):
    """One PCI function: its configuration space and its BARs, in memory or in I/O space."""

    @abstractmethod
    def pci_read(self, offset: int, length: int) -> bytes:
        """Bytes of configuration space; 1, 2 or 4 at an aligned offset are one access."""

    @abstractmethod
    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of configuration space in one access."""

    @abstractmethod
    def enable_msix(self, vectors: int) -> None:
        """Let messages of vectors 0 to `vectors` - 1 through, none and INTx with 0.

        DriverError where there is no MSI-X, or too few vectors.
        """

    @abstractmethod
    def take_messages(self, timeout: float) -> Counter[int]:
        """Messages since the last call, by vector; wait up to `timeout` s for one."""

    @abstractmethod
    def bar_size(self, bar: int) -> int:
        """Bytes of a BAR, 0 if it has none."""

    @abstractmethod
    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """One access of `width` (1, 2 or 4) bytes to a BAR."""

    @abstractmethod
    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """One access of `width` (1, 2 or 4) bytes to a BAR."""


class MmioWindow(Bus):
    """A window of memory-mapped registers, of `size` bytes."""

    size: int

    @abstractmethod
    def read(self, offset: int, width: int) -> int:
        """One access of `width` (1, 2 or 4) bytes."""

    @abstractmethod
    def write(self, offset: int, width: int, value: int) -> None:
        """One access of `width` (1, 2 or 4) bytes."""
