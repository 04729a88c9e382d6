"""Interface of a virtio transport (virtio 4), in the terms of chapter 2."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from harness.driver.bus.base import Bus
from harness.driver.errors import DriverError
from harness.driver.interface import Capability, QueueLayout, TransportKind
from harness.driver.memory import DmaMemory
from harness.driver.trace import Trace, unwatch, watch


class Transport(ABC):
    """Registers, notifications and interrupts of a device."""

    kind: ClassVar[TransportKind]
    memory: DmaMemory
    trace: Trace
    queue_align: int | None = None
    """Alignment of the legacy ring layout in bytes; None for a modern interface."""
    access_platform: bool = False
    """True if the device's memory accesses are translated, for example by an IOMMU (virtio 6.1)."""
    owns_pci_configuration: bool = False
    """True for a PCI function whose bus has `PciFunction.owns_configuration`."""

    @property
    def legacy(self) -> bool:
        """True for a legacy interface: without FEATURES_OK and generation (virtio 3.1.2)."""
        return self.queue_align is not None

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return facts on transport and address, for reports."""

    @abstractmethod
    def status(self) -> int:
        """Return the device status field."""

    @abstractmethod
    def set_status(self, value: int) -> None:
        """Write the device status field."""

    @abstractmethod
    def offered(self) -> int:
        """Return device feature bits 0 to 63."""

    @abstractmethod
    def accept(self, features: int) -> None:
        """Write driver feature bits 0 to 63."""

    @abstractmethod
    def accepted(self) -> int:
        """Return driver feature bits 0 to 63, as the device shows them."""

    @abstractmethod
    def register_read(self, name: str, width: int | None = None) -> int:
        """Read a register, by its name in the specification. BadArgumentError if there is none.

        With `width`, read this number of its bytes; None means the whole register.
        """

    @abstractmethod
    def register_write(self, name: str, value: int, width: int | None = None) -> None:
        """Write a register, by its name in the specification. BadArgumentError if there is none."""

    @abstractmethod
    def config_read(self, offset: int, length: int) -> bytes:
        """Read bytes of the device configuration space, in accesses as wide as its fields."""

    def config_pieces(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several pieces of the device configuration space: (offset, length in bytes)."""
        return [self.config_read(offset, length) for offset, length in places]

    @abstractmethod
    def config_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of the device configuration space in one access."""

    @abstractmethod
    def config_size(self) -> int:
        """Return the size of the device configuration space in bytes."""

    @abstractmethod
    def config_generation(self) -> int:
        """Return the configuration generation, 0 on a legacy interface, which has none."""

    @abstractmethod
    def queue_max_size(self, index: int) -> int:
        """Return the largest size of a virtqueue in descriptors, 0 if there is no such queue."""

    @abstractmethod
    def queue_enable(self, layout: QueueLayout) -> None:
        """Write the addresses of a virtqueue to the device, and enable it."""

    def queue_reset(self, index: int) -> None:
        """Start the reset of a virtqueue. DriverError if this transport has no queue reset."""
        raise DriverError(f"queue {index} cannot be reset alone on this transport")

    def queue_resetting(self, index: int) -> bool:
        """Return True while the reset of a virtqueue is not done."""
        raise DriverError(f"queue {index} cannot be reset alone on this transport")

    @abstractmethod
    def notify(self, index: int, next_available: int | None) -> None:
        """Send an available buffer notification (virtio 2.3, 2.9).

        `next_available` is a part of it if NOTIFICATION_DATA was accepted.
        """

    @abstractmethod
    def isr(self) -> int:
        """Read ISR status, which clears it."""

    @abstractmethod
    def fileno(self) -> int | None:
        """Return a descriptor that is readable while an interrupt is pending, None without one."""

    @abstractmethod
    def take_interrupts(self, timeout: float) -> int:
        """Return how often an interrupt was raised since the last call; wait up to `timeout` s."""

    def signals_by_queue(self) -> tuple[int, ...]:
        """Return the signals of each virtqueue since the start, () if they do not tell it."""
        return ()

    @abstractmethod
    def unmask_interrupts(self) -> None:
        """Unmask interrupts again, after ISR status was read."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources. The caller has reset the device."""

    vectors: int = 0
    """Number of MSI-X vectors in use, 0 without MSI-X."""

    queue_vector: int | None = None
    """Vector for the virtqueue that is enabled next; None maps each queue to its own."""

    def use_msix(self, vectors: int) -> None:
        """Switch to MSI-X with this number of vectors, with 0 back. DriverError without MSI-X."""
        if vectors:
            raise DriverError("this transport has no MSI-X")

    def map_config_vector(self) -> None:
        """Map configuration changes to vector 0 if MSI-X is in use. A reset unmaps them."""
        if self.vectors:
            self._map("config_msix_vector", 0)

    def map_queue_vector(self, index: int) -> None:
        """Map the selected virtqueue to its vector, if MSI-X is in use."""
        if self.vectors and self.queue_vector is not None:
            self.register_write("queue_msix_vector", self.queue_vector)
        elif self.vectors:
            others = self.vectors - 1
            self._map("queue_msix_vector", 1 + index % others if others else 0)

    def _map(self, register: str, vector: int) -> None:
        self.register_write(register, vector)
        if self.register_read(register) != vector:
            raise DriverError(f"the device does not map {register} to vector {vector}")

    def take_messages(self, timeout: float) -> Counter[int]:
        """Return messages since the last call, by MSI-X vector; wait up to `timeout` s for one."""
        raise DriverError(f"waited {timeout:g} s for messages of a transport without MSI-X")

    def pci_read(self, offset: int, length: int) -> bytes:
        """Read bytes of PCI configuration space."""
        raise DriverError(f"no PCI configuration space at {offset:#x}+{length}: not a PCI device")

    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of PCI configuration space."""
        raise DriverError(f"no PCI configuration space at {offset:#x}+{len(data)}")

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """Read `width` (1, 2 or 4) bytes of a BAR in one access."""
        raise DriverError(f"no BAR {bar} to read {width} bytes at {offset:#x}: not a PCI device")

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write `width` (1, 2 or 4) bytes of a BAR in one access."""
        raise DriverError(f"no BAR {bar} to write {value:#x} at {offset:#x}: not a PCI device")

    def capabilities(self) -> list[Capability]:
        """Return the virtio capabilities, in the order of the list."""
        raise DriverError("no capability list: not a PCI device")


class BusTransport(Transport):
    """A transport with the interrupts and the memory of the device's bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.trace = Trace()
        watch(bus, self.trace)
        self.memory = bus.memory
        self.access_platform = bus.access_platform

    @property
    def bus(self) -> Bus:
        """Return the bus that the device is on."""
        return self._bus

    def fileno(self) -> int | None:
        """Return a descriptor that is readable while an interrupt is pending, None without one."""
        return self._bus.fileno()

    def take_interrupts(self, timeout: float) -> int:
        """Return how often the line was raised since the last call; wait up to `timeout` s."""
        return self._bus.take_interrupts(timeout)

    def unmask_interrupts(self) -> None:
        """Unmask the line again."""
        self._bus.unmask_interrupts()

    def close(self) -> None:
        """Release the device on its bus."""
        try:
            self._bus.close()
        finally:
            unwatch(self._bus)
