"""Interface of a bus: what a transport needs to reach its device."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from harness.driver.memory import DmaMemory
from harness.virtio.pci import REVISION, VENDOR

Access = tuple[int, int, int | None]
"""An access to a BAR: its offset, its width (1, 2 or 4 bytes), and the value of a write or None."""


class Bus(ABC):
    """Interrupt line of a device, and the memory that driver and device share."""

    memory: DmaMemory
    access_platform: bool = False
    """True if the platform (an IOMMU) translates bus addresses. Then ACCESS_PLATFORM has to be
    accepted if it is offered (virtio 6.1)."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return address and ids, for reports."""

    @abstractmethod
    def fileno(self) -> int | None:
        """Return a descriptor that is readable while an interrupt is pending, None without one."""

    @abstractmethod
    def take_interrupts(self, timeout: float) -> int:
        """Return how often the line was raised since the last call; wait up to `timeout` s.

        After a return value above 0 the line may be masked until
        `unmask_interrupts` is called.
        """

    @abstractmethod
    def unmask_interrupts(self) -> None:
        """Unmask the line again, after its cause (ISR status) was read."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources."""

    def windows(self) -> dict[int, tuple[int, bool]]:
        """Return the places of the registers, as far as this process chose or knows them.

        The keys are BARs (-1 for a window that is no BAR). The values are the physical address, or
        the first port, and True for I/O ports.
        """
        return {}


class PciFunction(Bus):
    """A PCI function: its configuration space and its BARs, in memory or in I/O space."""

    owns_configuration: bool = False
    """True if `pci_read` and `pci_write` reach the function itself. False if a kernel answers
    some of these accesses, or writes the same registers."""

    @abstractmethod
    def pci_read(self, offset: int, length: int) -> bytes:
        """Read bytes of configuration space; 1, 2 or 4 at an aligned offset are one access."""

    @abstractmethod
    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of configuration space in one access."""

    def identity(self) -> dict[str, Any]:
        """Return ids and revision, for reports."""
        vendor, device = struct.unpack("<HH", self.pci_read(VENDOR, 4))
        return {"id": f"{vendor:04x}:{device:04x}", "revision": self.pci_read(REVISION, 1)[0]}

    @abstractmethod
    def enable_msix(self, vectors: int) -> None:
        """Enable messages of vectors 0 to `vectors` - 1; with 0, use INTx instead.

        Raises DriverError if there is no MSI-X, or too few vectors.
        """

    @abstractmethod
    def take_messages(self, timeout: float) -> Counter[int]:
        """Return messages since the last call, by vector; wait up to `timeout` s for one."""

    @abstractmethod
    def bar_size(self, bar: int) -> int:
        """Return the size of a BAR in bytes, 0 if the function does not have it."""

    @abstractmethod
    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """Read from a BAR in one access of `width` (1, 2 or 4) bytes."""

    def bar_accesses(self, bar: int, accesses: Sequence[Access]) -> list[int]:
        """Do several accesses to a BAR, in order, and return the values of the reads."""
        values = list[int]()
        for offset, width, value in accesses:
            if value is None:
                values.append(self.bar_read(bar, offset, width))
            else:
                self.bar_write(bar, offset, width, value)
        return values

    @abstractmethod
    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write to a BAR in one access of `width` (1, 2 or 4) bytes."""


def aligned_accesses(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield offset and width (1, 2 or 4 bytes) of aligned accesses that cover a range, in order."""
    end = offset + length
    while offset < end:
        width = 4
        while offset % width or offset + width > end:
            width //= 2
        yield offset, width
        offset += width


class MmioWindow(Bus):
    """A window of memory-mapped registers, of `size` bytes."""

    size: int

    @abstractmethod
    def read(self, offset: int, width: int) -> int:
        """Read in one access of `width` (1, 2 or 4) bytes."""

    @abstractmethod
    def write(self, offset: int, width: int, value: int) -> None:
        """Write in one access of `width` (1, 2 or 4) bytes."""
