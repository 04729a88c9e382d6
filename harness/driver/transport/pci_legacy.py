"""Virtio over PCI, the legacy interface of a transitional device (virtio 4.1.4.10)."""

from __future__ import annotations

from typing import Any

from harness.driver.bus.base import PciFunction
from harness.driver.errors import BadArgumentError, NoDeviceError
from harness.driver.interface import QueueLayout
from harness.driver.transport.pci import PciTransport
from harness.virtio.pci import (
    LEGACY_CONFIG,
    LEGACY_CONFIG_MSIX,
    LEGACY_PAGE,
    LEGACY_REGISTERS,
    TRANSITIONAL_DEVICE_ID,
    VENDOR_ID,
)

BAR = 0


class PciLegacy(PciTransport):
    """The legacy interface of a transitional device, through the I/O ports of BAR 0.

    Fields have the byte order of the guest, here little-endian. Raises
    NoDeviceError if the function has no such interface.
    """

    kind = "pci-legacy"
    queue_align = LEGACY_PAGE

    def __init__(self, function: PciFunction) -> None:
        super().__init__(function)
        wanted = VENDOR_ID.to_bytes(2, "little") + TRANSITIONAL_DEVICE_ID.to_bytes(2, "little")
        identity = function.pci_read(0, 4)
        if identity != wanted or function.bar_size(BAR) <= LEGACY_CONFIG:
            raise NoDeviceError(
                f"{identity[1::-1].hex()}:{identity[:1:-1].hex()} has no legacy virtio block"
                f" interface: BAR {BAR} has {function.bar_size(BAR)} bytes"
            )

    def description(self) -> dict[str, Any]:
        """Return facts on transport and address, for reports."""
        return {"transport": "pci legacy", **self.function.description()}

    @staticmethod
    def _register(name: str) -> tuple[int, int]:
        try:
            return LEGACY_REGISTERS[name]
        except KeyError:
            raise BadArgumentError(f"the legacy header has no register {name!r}") from None

    def register_read(self, name: str, width: int | None = None) -> int:
        """Read a register of the legacy header, or its first `width` bytes."""
        offset, size = self._register(name)
        return self.function.bar_read(BAR, offset, width or size)

    def register_write(self, name: str, value: int, width: int | None = None) -> None:
        """Write a register of the legacy header, or its first `width` bytes."""
        offset, size = self._register(name)
        self.function.bar_write(BAR, offset, width or size, value)

    def status(self) -> int:
        """Return the device status field."""
        return self.register_read("device_status")

    def set_status(self, value: int) -> None:
        """Write the device status field."""
        self.register_write("device_status", value)

    def offered(self) -> int:
        """Return device feature bits 0 to 31: this interface has no others."""
        return self.register_read("device_features")

    def accept(self, features: int) -> None:
        """Write driver feature bits 0 to 31. BadArgumentError for others."""
        if features >> 32:
            raise BadArgumentError("a legacy interface has feature bits 0 to 31 only")
        self.register_write("driver_features", features)

    def accepted(self) -> int:
        """Return driver feature bits 0 to 31, as the device shows them."""
        return self.register_read("driver_features")

    def config_read(self, offset: int, length: int) -> bytes:
        """Read the device configuration space, in one access if possible, else byte by byte.

        All widths are permitted here (virtio 4.1.4.10).
        """
        if offset < 0 or offset + length > self.config_size():
            raise BadArgumentError(
                f"configuration space ends at {self.config_size()}, not {offset + length}"
            )
        base = self._config + offset
        width = length if length in (2, 4) and offset % length == 0 else 1
        accesses = [(base + at, width, None) for at in range(0, length, width)]
        values = self.function.bar_accesses(BAR, accesses)
        return b"".join(value.to_bytes(width, "little") for value in values)

    def config_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of the device configuration space in one access."""
        if len(data) not in (1, 2, 4) or offset % len(data):
            raise BadArgumentError(f"no single access writes {len(data)} bytes at {offset}")
        value = int.from_bytes(data, "little")
        self.function.bar_write(BAR, self._config + offset, len(data), value)

    def config_size(self) -> int:
        """Return the number of bytes in BAR 0 after the header."""
        return self.function.bar_size(BAR) - self._config

    @property
    def _config(self) -> int:
        return LEGACY_CONFIG_MSIX if self.vectors else LEGACY_CONFIG

    def config_generation(self) -> int:
        """Return 0: the legacy interface has no configuration generation."""
        return 0

    def queue_max_size(self, index: int) -> int:
        """Return the size of a virtqueue, which the driver cannot change; 0 if there is none."""
        self.register_write("queue_select", index)
        return self.register_read("queue_size")

    def queue_enable(self, layout: QueueLayout) -> None:
        """Write the page number of the rings."""
        self.register_write("queue_select", layout.index)
        self.register_write("queue_address", layout.desc // LEGACY_PAGE)
        self.map_queue_vector(layout.index)

    def notify(self, index: int, next_available: int | None) -> None:
        """Write the queue's index to the notify register."""
        del next_available  # no legacy device offers NOTIFICATION_DATA
        self.register_write("queue_notify", index)

    def isr(self) -> int:
        """Read ISR status, which clears it."""
        return self.register_read("isr_status")
