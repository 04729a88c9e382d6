"""Buses that stand between a driver and a real device, and alter what passes.

Each forwards everything; a defect overrides the few methods whose names begin
with `alter_`. Accesses come to those by the specification's names for what is
accessed, whatever BAR or offset it lies at.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

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
"""Names of what is no register of a structure: ISR status, the device's configuration space
(any field of it), and the notification addresses."""


class Alteration:
    """What a defect may do to the accesses of one device; by itself it does nothing.

    `written` has the last value that the driver wrote to each register, 0 if
    none; a reset (0 written to the status) leaves it alone.
    """

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        """What the driver reads, where the device shows `value`.

        `offset` is in bytes from the register's (or the configuration space's) start.
        """
        del name, offset, width
        return value

    def alter_write(self, name: str, value: int) -> int | None:
        """What reaches the device, where the driver writes `value`; None for nothing at all."""
        del name
        return value

    def alter_interrupts(self, raised: int) -> int:
        """How often the driver finds the line raised, where the device raised it `raised` times."""
        return raised


class AlteredPci(Alteration, PciFunction):
    """A PCI function with a defect."""

    def __init__(self, real: PciFunction) -> None:
        super().__init__()
        self.real = real
        self.memory = real.memory
        self.access_platform = real.access_platform
        self.vectors = 0
        self._capabilities = virtio_capabilities(real)
        self._patches: dict[int, int] = {}
        for at, data in self.patches().items():
            self._patches.update(enumerate(data, at))

    # --- what a PCI defect may override beside `alter_...`

    def patches(self) -> dict[int, bytes]:
        """Offset in PCI configuration space -> what is read there instead."""
        return {}

    def alter_pci_read(self, offset: int, data: bytes) -> bytes:
        """What the driver reads of PCI configuration space."""
        del offset
        return data

    def alter_pci_write(self, offset: int, data: bytes) -> bytes | None:
        """What reaches PCI configuration space; None for nothing."""
        del offset
        return data

    def alter_messages(self, messages: Counter[int]) -> Counter[int]:
        """The messages that reach the driver, by vector."""
        return messages

    def capability(self, kind: CapType) -> int:
        """Where the first capability of a type lies in PCI configuration space."""
        return next(one.at for one in self._capabilities if one.type == kind)

    # --- the function

    def description(self) -> dict[str, Any]:
        """That of the real device."""
        return self.real.description()

    def fileno(self) -> int | None:
        """That of the real device."""
        return self.real.fileno()

    def take_interrupts(self, timeout: float) -> int:
        """Those of the real device, altered."""
        return self.alter_interrupts(self.real.take_interrupts(timeout))

    def unmask_interrupts(self) -> None:
        """Let the line through again."""
        self.real.unmask_interrupts()

    def close(self) -> None:
        """Give the real device back."""
        self.real.close()

    def pci_read(self, offset: int, length: int) -> bytes:
        """Configuration space, patched and altered."""
        data = bytearray(self.real.pci_read(offset, length))
        for at in range(length):
            data[at] = self._patches.get(offset + at, data[at])
        return self.alter_pci_read(offset, bytes(data))

    def pci_write(self, offset: int, data: bytes) -> None:
        """Write configuration space, unless that is altered."""
        altered = self.alter_pci_write(offset, data)
        if altered is not None:
            self.real.pci_write(offset, altered)

    def enable_msix(self, vectors: int) -> None:
        """Enable as many of the vectors as there really are."""
        self.real.enable_msix(vectors)
        self.vectors = vectors

    def take_messages(self, timeout: float) -> Counter[int]:
        """The messages of the real device, altered."""
        return self.alter_messages(self.real.take_messages(timeout))

    def bar_size(self, bar: int) -> int:
        """That of the real device."""
        return self.real.bar_size(bar)

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """One access, altered."""
        value = self.real.bar_read(bar, offset, width)
        name, at = self._named(bar, offset)
        return self.alter_read(name, at, width, value) & ((1 << 8 * width) - 1)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """One access, altered."""
        name, _ = self._named(bar, offset)
        altered = self.alter_write(name, value)
        self.written[name] = value
        if altered is not None:
            self.real.bar_write(bar, offset, width, altered)

    def _named(self, bar: int, offset: int) -> tuple[str, int]:
        for one in self._capabilities:
            if one.bar != bar or not one.offset <= offset < one.offset + one.length:
                continue
            at = offset - one.offset
            if one.type == CapType.COMMON_CFG:
                return _register(COMMON_REGISTERS, at)
            if one.type == CapType.ISR_CFG:
                return ISR, at
            if one.type == CapType.DEVICE_CFG:
                return CONFIG, at
            if one.type == CapType.NOTIFY_CFG:
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
        """That of the real device."""
        return self.real.description()

    def fileno(self) -> int | None:
        """That of the real device."""
        return self.real.fileno()

    def take_interrupts(self, timeout: float) -> int:
        """Those of the real device, altered."""
        return self.alter_interrupts(self.real.take_interrupts(timeout))

    def unmask_interrupts(self) -> None:
        """Let the line through again."""
        self.real.unmask_interrupts()

    def close(self) -> None:
        """Give the real device back."""
        self.real.close()

    def read(self, offset: int, width: int) -> int:
        """One access, altered."""
        value = self.real.read(offset, width)
        name, at = self._named(offset)
        return self.alter_read(name, at, width, value) & ((1 << 8 * width) - 1)

    def write(self, offset: int, width: int, value: int) -> None:
        """One access, altered."""
        name, _ = self._named(offset)
        altered = self.alter_write(name, value)
        self.written[name] = value
        if altered is not None:
            self.real.write(offset, width, altered)

    def _named(self, offset: int) -> tuple[str, int]:
        if offset >= MMIO_CONFIG:
            return CONFIG, offset - MMIO_CONFIG
        return self._names.get(offset, f"{offset:#x}"), 0
