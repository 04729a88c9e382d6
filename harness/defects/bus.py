"""Buses between a driver and a real device that can alter the accesses.

Each bus forwards everything; a defect overrides the few methods whose names begin with `alter_`.
These methods get the specification's name of the accessed register, whatever BAR and offset it has.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from harness.driver.bus.base import MmioWindow, PciFunction
from harness.driver.transport.pci import virtio_capabilities
from harness.virtio.mmio import CONFIG as MMIO_CONFIG
from harness.virtio.mmio import LEGACY_REGISTERS as MMIO_LEGACY_REGISTERS
from harness.virtio.mmio import LEGACY_VERSION
from harness.virtio.mmio import REGISTERS as MMIO_REGISTERS
from harness.virtio.pci import COMMON_REGISTERS, LEGACY_CONFIG, LEGACY_REGISTERS, CapType

ISR = "isr_status"
CONFIG = "config"
NOTIFY = "notify"
"""Names for accesses that are not to a register of a structure.

They are ISR status, any field of the device configuration space, and the notification addresses.
"""


MachineEvent = Literal["paused", "moved", "removed", "system reset"]


class Alteration:
    """Changes that a defect makes to the accesses of one device; this base class changes nothing.

    `written` has the last value that the driver wrote to each register, 0 if it wrote none. A reset
    (0 written to the status) does not clear it. `events` counts what has happened to the machine
    around the device.
    """

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()
        self.events: Counter[MachineEvent] = Counter()

    def happened(self, event: MachineEvent) -> None:
        """Note what has happened to the machine around the device."""
        self.events[event] += 1

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        """Return the value for the driver when the device returns `value`.

        `offset` is in bytes from the start of the register (or of the configuration space).
        """
        del name, offset, width
        return value

    def alter_write(self, name: str, value: int) -> int | None:
        """Return the value for the device when the driver writes `value`; None drops the write."""
        del name
        return value

    def alter_interrupts(self, raised: int) -> int:
        """Return the number of interrupts for the driver when the device has sent `raised`."""
        return raised


class AlteredPci(Alteration, PciFunction):
    """A PCI function with a defect."""

    def __init__(self, real: PciFunction) -> None:
        super().__init__()
        self.real = real
        self.memory = real.memory
        self.access_platform = real.access_platform
        self.owns_configuration = real.owns_configuration
        self.vectors = 0
        self._capabilities = virtio_capabilities(real)
        self._patches: dict[int, int] = {}
        for at, data in self.patches().items():
            self._patches.update(enumerate(data, at))

    # --- additional methods that a PCI defect may override

    def patches(self) -> dict[int, bytes]:
        """Return offset in PCI configuration space -> bytes that are read there instead."""
        return {}

    def alter_pci_read(self, offset: int, data: bytes) -> bytes:
        """Return the bytes that the driver reads from PCI configuration space."""
        del offset
        return data

    def alter_pci_write(self, offset: int, data: bytes) -> bytes | None:
        """Return the bytes that reach PCI configuration space; None drops the write."""
        del offset
        return data

    def alter_messages(self, messages: Counter[int]) -> Counter[int]:
        """Return the messages that reach the driver, by vector."""
        return messages

    def capability(self, kind: CapType) -> int:
        """Return the offset of the first capability of a type in PCI configuration space."""
        return next(cap.at for cap in self._capabilities if cap.type == kind)

    # --- forwarding

    def description(self) -> dict[str, Any]:
        """Return the description of the real device."""
        return self.real.description()

    def fileno(self) -> int | None:
        """Return the file descriptor of the real device."""
        return self.real.fileno()

    def take_interrupts(self, timeout: float) -> int:
        """Return how often the line was raised since the last call, as the defect changes it."""
        return self.alter_interrupts(self.real.take_interrupts(timeout))

    def unmask_interrupts(self) -> None:
        """Unmask the interrupt line of the real device."""
        self.real.unmask_interrupts()

    def close(self) -> None:
        """Close the real device."""
        self.real.close()

    def pci_read(self, offset: int, length: int) -> bytes:
        """Read configuration space, patched and altered."""
        data = bytearray(self.real.pci_read(offset, length))
        for at in range(length):
            data[at] = self._patches.get(offset + at, data[at])
        return self.alter_pci_read(offset, bytes(data))

    def pci_write(self, offset: int, data: bytes) -> None:
        """Write configuration space, unless the defect drops the write."""
        altered = self.alter_pci_write(offset, data)
        if altered is not None:
            self.real.pci_write(offset, altered)

    def enable_msix(self, vectors: int) -> None:
        """Enable vectors of the real device."""
        self.real.enable_msix(vectors)
        self.vectors = vectors

    def take_messages(self, timeout: float) -> Counter[int]:
        """Take the messages of the real device, altered."""
        return self.alter_messages(self.real.take_messages(timeout))

    def bar_size(self, bar: int) -> int:
        """Return the size of the real device's BAR in bytes."""
        return self.real.bar_size(bar)

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """Read once, altered."""
        value = self.real.bar_read(bar, offset, width)
        name, at = self._named(bar, offset)
        return self.alter_read(name, at, width, value) & ((1 << 8 * width) - 1)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write once, altered."""
        name, _ = self._named(bar, offset)
        altered = self.alter_write(name, value)
        self.written[name] = value
        if altered is not None:
            self.real.bar_write(bar, offset, width, altered)

    def _named(self, bar: int, offset: int) -> tuple[str, int]:
        for cap in self._capabilities:
            if cap.bar != bar or not cap.offset <= offset < cap.offset + cap.length:
                continue
            at = offset - cap.offset
            if cap.type == CapType.COMMON_CFG:
                return _register(COMMON_REGISTERS, at)
            if cap.type == CapType.ISR_CFG:
                return ISR, at
            if cap.type == CapType.DEVICE_CFG:
                return CONFIG, at
            if cap.type == CapType.NOTIFY_CFG:
                return NOTIFY, at
        header = LEGACY_CONFIG + (4 if self.vectors else 0)
        return (
            (CONFIG, offset - header) if offset >= header else _register(LEGACY_REGISTERS, offset)
        )


def _register(registers: dict[str, tuple[int, int]], offset: int) -> tuple[str, int]:
    for name, (at, size) in registers.items():
        if at <= offset < at + size:
            return name, offset - at
    return f"{offset:#x}", 0


class AlteredMmio(Alteration, MmioWindow):
    """A window of virtio-mmio registers with a defect."""

    def __init__(self, real: MmioWindow) -> None:
        super().__init__()
        self.real = real
        self.size = real.size
        self.memory = real.memory
        self.access_platform = real.access_platform
        legacy = real.read(MMIO_REGISTERS["Version"], 4) == LEGACY_VERSION
        registers = MMIO_LEGACY_REGISTERS if legacy else MMIO_REGISTERS
        self._names = {offset: name for name, offset in registers.items()}

    def description(self) -> dict[str, Any]:
        """Return the description of the real device."""
        return self.real.description()

    def fileno(self) -> int | None:
        """Return the file descriptor of the real device."""
        return self.real.fileno()

    def take_interrupts(self, timeout: float) -> int:
        """Return how often the line was raised since the last call, as the defect changes it."""
        return self.alter_interrupts(self.real.take_interrupts(timeout))

    def unmask_interrupts(self) -> None:
        """Unmask the interrupt line of the real device."""
        self.real.unmask_interrupts()

    def close(self) -> None:
        """Close the real device."""
        self.real.close()

    def read(self, offset: int, width: int) -> int:
        """Read once, altered."""
        value = self.real.read(offset, width)
        name, at = self._named(offset)
        return self.alter_read(name, at, width, value) & ((1 << 8 * width) - 1)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write once, altered."""
        name, _ = self._named(offset)
        altered = self.alter_write(name, value)
        self.written[name] = value
        if altered is not None:
            self.real.write(offset, width, altered)

    def _named(self, offset: int) -> tuple[str, int]:
        if offset >= MMIO_CONFIG:
            return CONFIG, offset - MMIO_CONFIG
        return self._names.get(offset, f"{offset:#x}"), 0
