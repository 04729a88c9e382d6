"""Virtio over MMIO: the modern and the legacy interface (virtio 4.2)."""

from __future__ import annotations

from typing import Any, ClassVar

from harness.driver.bus.base import MmioWindow
from harness.driver.errors import BadArgumentError, NoDeviceError
from harness.driver.interface import QueueLayout
from harness.driver.transport.base import BusTransport
from harness.virtio.blk import config_accesses
from harness.virtio.device import BLOCK_DEVICE
from harness.virtio.mmio import (
    CONFIG,
    LEGACY_PAGE,
    LEGACY_REGISTERS,
    LEGACY_VERSION,
    MAGIC,
    REGISTERS,
    VERSION,
)


class _Mmio(BusTransport):
    """Common part of both interfaces: registers of 32 bits, then the configuration space."""

    version: ClassVar[int]
    registers: ClassVar[dict[str, int]]

    def __init__(self, window: MmioWindow) -> None:
        super().__init__(window)
        self.window = window
        self._accepted = 0
        magic = self.register_read("MagicValue")
        version = self.register_read("Version")
        device = self.register_read("DeviceID")
        if (magic, version, device) != (MAGIC, self.version, BLOCK_DEVICE):
            raise NoDeviceError(
                f"no virtio block device of version {self.version}: magic {magic:#x},"
                f" version {version}, device id {device}"
            )

    def description(self) -> dict[str, Any]:
        """Return facts on transport and address, for reports."""
        interface = "legacy" if self.legacy else "modern"
        return {"transport": f"mmio {interface}", **self.window.description()}

    def _register(self, name: str) -> int:
        try:
            return self.registers[name]
        except KeyError:
            raise BadArgumentError(f"{self.kind} has no register {name!r}") from None

    def register_read(self, name: str, width: int | None = None) -> int:
        """Read a register of 32 bits, or its first `width` bytes."""
        return self.window.read(self._register(name), width or 4)

    def register_write(self, name: str, value: int, width: int | None = None) -> None:
        """Write a register of 32 bits, or its first `width` bytes."""
        self.window.write(self._register(name), width or 4, value)

    def status(self) -> int:
        """Return the device status field."""
        return self.register_read("Status")

    def set_status(self, value: int) -> None:
        """Write the device status field."""
        self.register_write("Status", value)

    def accepted(self) -> int:
        """Return the features that were written: DriverFeatures cannot be read (virtio 4.2.2)."""
        return self._accepted

    def config_read(self, offset: int, length: int) -> bytes:
        """Read bytes of the device configuration space, in accesses as wide as its fields."""
        return b"".join(
            self.window.read(CONFIG + at, width).to_bytes(width, "little")
            for at, width in config_accesses(offset, length)
        )

    def config_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of the device configuration space in one access."""
        if len(data) not in (1, 2, 4) or offset % len(data):
            raise BadArgumentError(f"no single access writes {len(data)} bytes at {offset}")
        self.window.write(CONFIG + offset, len(data), int.from_bytes(data, "little"))

    def config_size(self) -> int:
        """Return the number of bytes in the window after the registers."""
        return self.window.size - CONFIG

    def notify(self, index: int, next_available: int | None) -> None:
        """Write the queue's index, and `next_available` if given, to QueueNotify."""
        self.register_write("QueueNotify", index | (next_available or 0) << 16)

    def isr(self) -> int:
        """Read InterruptStatus and acknowledge its bits until it reads 0 (virtio 4.2.3.4).

        An event between the read and the acknowledgement does not raise the line
        again, so nobody would be told of it.
        """
        seen = 0
        while pending := self.register_read("InterruptStatus"):
            self.register_write("InterruptACK", pending)
            seen |= pending
        return seen


class MmioModern(_Mmio):
    """A modern device in a window of memory-mapped registers.

    Raises NoDeviceError if the window has no virtio block device of version 2.
    """

    kind = "mmio"
    version = VERSION
    registers = REGISTERS

    def offered(self) -> int:
        """Return device feature bits 0 to 63."""
        bits = 0
        for word in (0, 1):
            self.register_write("DeviceFeaturesSel", word)
            bits |= self.register_read("DeviceFeatures") << 32 * word
        return bits

    def accept(self, features: int) -> None:
        """Write driver feature bits 0 to 63."""
        for word in (0, 1):
            self.register_write("DriverFeaturesSel", word)
            self.register_write("DriverFeatures", features >> 32 * word & 0xFFFFFFFF)
        self._accepted = features

    def config_generation(self) -> int:
        """Return the configuration generation."""
        return self.register_read("ConfigGeneration")

    def queue_max_size(self, index: int) -> int:
        """Return the largest size of a virtqueue in descriptors, 0 if there is no such queue."""
        self.register_write("QueueSel", index)
        return self.register_read("QueueSizeMax")

    def queue_enable(self, layout: QueueLayout) -> None:
        """Write the addresses of a virtqueue, and set QueueReady (virtio 4.2.3.2)."""
        self.register_write("QueueSel", layout.index)
        self.register_write("QueueSize", layout.size)
        for area, address in (
            ("Desc", layout.desc),
            ("Driver", layout.driver),
            ("Device", layout.device),
        ):
            self.register_write(f"Queue{area}Low", address & 0xFFFFFFFF)
            self.register_write(f"Queue{area}High", address >> 32)
        self.register_write("QueueReady", 1)

    def queue_reset(self, index: int) -> None:
        """Write 1 to QueueReset (virtio 4.2.2)."""
        self.register_write("QueueSel", index)
        self.register_write("QueueReset", 1)

    def queue_resetting(self, index: int) -> bool:
        """Return True while QueueReset reads 1."""
        self.register_write("QueueSel", index)
        return self.register_read("QueueReset") != 0


class MmioLegacy(_Mmio):
    """A legacy device in a window of memory-mapped registers (virtio 4.2.4).

    Raises NoDeviceError if the window has no virtio block device of version 1.
    """

    kind = "mmio-legacy"
    version = LEGACY_VERSION
    registers = LEGACY_REGISTERS
    queue_align = LEGACY_PAGE

    def offered(self) -> int:
        """Return device feature bits 0 to 31: a legacy driver reads no others."""
        self.register_write("HostFeaturesSel", 0)
        return self.register_read("HostFeatures")

    def accept(self, features: int) -> None:
        """Write driver feature bits 0 to 31. BadArgumentError for others."""
        if features >> 32:
            raise BadArgumentError("a legacy interface has feature bits 0 to 31 only")
        self.register_write("GuestFeaturesSel", 0)
        self.register_write("GuestFeatures", features)
        self._accepted = features

    def config_generation(self) -> int:
        """Return 0: the legacy interface has no configuration generation."""
        return 0

    def queue_max_size(self, index: int) -> int:
        """Return the largest size of a virtqueue in descriptors, 0 if there is no such queue."""
        self.register_write("QueueSel", index)
        return self.register_read("QueueNumMax")

    def queue_enable(self, layout: QueueLayout) -> None:
        """Write page size, queue size, alignment, and the page number of the rings."""
        self.register_write("GuestPageSize", LEGACY_PAGE)
        self.register_write("QueueSel", layout.index)
        self.register_write("QueueNum", layout.size)
        self.register_write("QueueAlign", LEGACY_PAGE)
        self.register_write("QueuePFN", layout.desc // LEGACY_PAGE)
