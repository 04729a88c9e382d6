"""Virtio over PCI, the modern interface (virtio 4.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from harness.driver.bus.base import Access, PciFunction
from harness.driver.errors import BadArgumentError, NoDeviceError
from harness.driver.interface import Capability, QueueLayout
from harness.driver.transport.base import BusTransport
from harness.virtio.blk import config_accesses
from harness.virtio.features import Feature
from harness.virtio.pci import (
    CAP,
    CAP_VENDOR,
    CAPABILITIES,
    COMMON_REGISTERS,
    HEADER_SIZE,
    MODERN_DEVICE_ID,
    STATUS,
    STATUS_CAPABILITIES,
    TRANSITIONAL_DEVICE_ID,
    VENDOR,
    VENDOR_ID,
    CapType,
)

CONFIG_SPACE = 256


def virtio_capabilities(function: PciFunction) -> list[Capability]:
    """Return the virtio capabilities. NoDeviceError if the list loops or leaves the space."""
    if not function.pci_read(STATUS, 1)[0] & STATUS_CAPABILITIES:
        return []
    capabilities: list[Capability] = []
    seen: set[int] = set()
    at = function.pci_read(CAPABILITIES, 1)[0] & ~3
    while at:
        if at in seen or at < HEADER_SIZE:
            raise NoDeviceError(f"the PCI capability list is broken at {at:#x}")
        seen.add(at)
        # A capability of another kind may be shorter: then the next ones are read, too.
        data = function.pci_read(at, min(CAP.size, CONFIG_SPACE - at))
        vendor, following = data[:2]
        if vendor == CAP_VENDOR and len(data) == CAP.size:
            _, _, cap_len, kind, bar, ident, offset, length = CAP.unpack(data)
            capabilities.append(Capability(at, kind, bar, ident, offset, length, cap_len))
        at = following & ~3
    return capabilities


class PciTransport(BusTransport):
    """Common part of the modern and the legacy interface of a PCI function."""

    def __init__(self, function: PciFunction) -> None:
        super().__init__(function)
        self.function = function
        self.owns_pci_configuration = function.owns_configuration

    def pci_read(self, offset: int, length: int) -> bytes:
        """Read bytes of PCI configuration space."""
        return self.function.pci_read(offset, length)

    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of PCI configuration space."""
        self.function.pci_write(offset, data)

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """Read `width` (1, 2 or 4) bytes of a BAR in one access."""
        return self.function.bar_read(bar, offset, width)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write `width` (1, 2 or 4) bytes of a BAR in one access."""
        self.function.bar_write(bar, offset, width, value)

    def capabilities(self) -> list[Capability]:
        """Return the virtio capabilities, in the order of the list."""
        return virtio_capabilities(self.function)

    def use_msix(self, vectors: int) -> None:
        """Switch to MSI-X with this number of vectors, with 0 back. DriverError without MSI-X."""
        self.function.enable_msix(vectors)
        self.vectors = vectors

    def take_messages(self, timeout: float) -> Counter[int]:
        """Return messages since the last call, by MSI-X vector; wait up to `timeout` s for one."""
        return self.function.take_messages(timeout)


class PciModern(PciTransport):
    """The modern interface of a PCI function, found through its capabilities.

    Raises NoDeviceError if the function is not a virtio block device, or if a
    structure that the driver needs is missing or not within its BAR.
    """

    kind = "pci"

    def __init__(self, function: PciFunction) -> None:
        super().__init__(function)
        identity = function.pci_read(VENDOR, 4)
        vendor, device = identity[:2], identity[2:]
        devices = [
            number.to_bytes(2, "little") for number in (MODERN_DEVICE_ID, TRANSITIONAL_DEVICE_ID)
        ]
        if vendor != VENDOR_ID.to_bytes(2, "little") or device not in devices:
            raise NoDeviceError(
                f"{vendor[::-1].hex()}:{device[::-1].hex()} is not a virtio block device"
            )
        capabilities = self.capabilities()
        self._common = self._structure(capabilities, CapType.COMMON_CFG, 0x38)
        self._notify = self._structure(capabilities, CapType.NOTIFY_CFG, 2)
        self._isr = self._structure(capabilities, CapType.ISR_CFG, 1)
        self._device = self._structure(capabilities, CapType.DEVICE_CFG, 8)
        multiplier = function.pci_read(self._notify.at + CAP.size, 4)
        self._notify_multiplier = int.from_bytes(multiplier, "little")
        self._notifications: dict[int, tuple[int, int]] = {}
        for name, part in (
            ("common", self._common),
            ("notify", self._notify),
            ("isr", self._isr),
            ("device", self._device),
        ):
            self.trace("area", name, part.bar, part.offset, part.length)

    def _structure(self, capabilities: list[Capability], kind: CapType, least: int) -> Capability:
        """Return the first capability of a type that lies within its BAR (virtio 4.1.4.1)."""
        for capability in capabilities:
            if capability.type != kind or capability.bar > 5:
                continue
            end = capability.offset + capability.length
            if capability.length >= least and end <= self.function.bar_size(capability.bar):
                return capability
        raise NoDeviceError(f"no usable {kind.name} capability among {capabilities}")

    def description(self) -> dict[str, Any]:
        """Return facts on transport and address, for reports."""
        return {"transport": "pci modern", **self.function.description()}

    def _register(self, name: str) -> tuple[int, int]:
        try:
            offset, size = COMMON_REGISTERS[name]
        except KeyError:
            raise BadArgumentError(f"the common configuration has no register {name!r}") from None
        if offset + size > self._common.length:
            raise BadArgumentError(f"the device's common configuration ends before {name}")
        return self._common.offset + offset, size

    def register_read(self, name: str, width: int | None = None) -> int:
        """Read a register of the common configuration, or its first `width` bytes.

        A register of 64 bits is read in two halves.
        """
        offset, size = self._register(name)
        size = width or size
        low = self.function.bar_read(self._common.bar, offset, min(size, 4))
        if size == 8:
            return low | self.function.bar_read(self._common.bar, offset + 4, 4) << 32
        return low

    def register_write(self, name: str, value: int, width: int | None = None) -> None:
        """Write a register of the common configuration, or its first `width` bytes.

        A register of 64 bits is written in two halves.
        """
        for offset, piece, part in self._writes(name, value, width):
            self.function.bar_write(self._common.bar, offset, piece, part)

    def _writes(
        self, name: str, value: int, width: int | None = None
    ) -> list[tuple[int, int, int]]:
        """Return the accesses that write a register: offset, width and value of each."""
        offset, size = self._register(name)
        size = width or size
        piece = min(size, 4)
        low = (offset, piece, value & ((1 << 8 * piece) - 1))
        return [low, (offset + 4, 4, value >> 32)] if size == 8 else [low]

    def _registers(self, *steps: tuple[str, int | None]) -> list[int]:
        """Write registers, or read those whose value is None, in this order; return what was read.

        Those that are read have up to 32 bits.
        """
        accesses = list[Access]()
        for name, value in steps:
            accesses += (
                [(*self._register(name), None)] if value is None else self._writes(name, value)
            )
        return self.function.bar_accesses(self._common.bar, accesses)

    def status(self) -> int:
        """Return the device status field."""
        return self.register_read("device_status")

    def set_status(self, value: int) -> None:
        """Write the device status field."""
        self.register_write("device_status", value)

    def _features(self, select: str, register: str) -> int:
        low, high = self._registers((select, 0), (register, None), (select, 1), (register, None))
        return low | high << 32

    def offered(self) -> int:
        """Return device feature bits 0 to 63."""
        return self._features("device_feature_select", "device_feature")

    def accept(self, features: int) -> None:
        """Write driver feature bits 0 to 63."""
        self._registers(
            ("driver_feature_select", 0),
            ("driver_feature", features & 0xFFFFFFFF),
            ("driver_feature_select", 1),
            ("driver_feature", features >> 32 & 0xFFFFFFFF),
        )

    def accepted(self) -> int:
        """Return driver feature bits 0 to 63, as the device shows them."""
        return self._features("driver_feature_select", "driver_feature")

    def config_read(self, offset: int, length: int) -> bytes:
        """Read bytes of the device configuration space, in accesses as wide as its fields."""
        return self.config_pieces([(offset, length)])[0]

    def config_pieces(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several pieces of the device configuration space, whose accesses go together."""
        accesses = list[Access]()
        for offset, length in places:
            if offset < 0 or offset + length > self._device.length:
                raise BadArgumentError(
                    f"configuration space ends at {self._device.length}, not {offset + length}"
                )
            base = self._device.offset
            accesses += [(base + at, width, None) for at, width in config_accesses(offset, length)]
        values = self.function.bar_accesses(self._device.bar, accesses)
        data = b"".join(
            value.to_bytes(width, "little")
            for (_, width, _), value in zip(accesses, values, strict=True)
        )
        ends = accumulate(length for _, length in places)
        return [data[end - length : end] for end, (_, length) in zip(ends, places, strict=True)]

    def config_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of the device configuration space in one access."""
        if len(data) not in (1, 2, 4) or offset % len(data):
            raise BadArgumentError(f"no single access writes {len(data)} bytes at {offset}")
        base, bar = self._device.offset, self._device.bar
        self.function.bar_write(bar, base + offset, len(data), int.from_bytes(data, "little"))

    def config_size(self) -> int:
        """Return the size of the device configuration space in bytes."""
        return self._device.length

    def config_generation(self) -> int:
        """Return the configuration generation."""
        return self.register_read("config_generation")

    def queue_max_size(self, index: int) -> int:
        """Return the size that the device shows for a virtqueue, 0 if there is no such queue."""
        return self._registers(("queue_select", index), ("queue_size", None))[0]

    def queue_enable(self, layout: QueueLayout) -> None:
        """Write the addresses of a virtqueue to the device, and enable it (virtio 4.1.5.1.3)."""
        self._registers(
            ("queue_select", layout.index),
            ("queue_size", layout.size),
            ("queue_desc", layout.desc),
            ("queue_driver", layout.driver),
            ("queue_device", layout.device),
        )
        self.map_queue_vector(layout.index)
        offset = self.register_read("queue_notify_off") * self._notify_multiplier
        accepted = self.accepted()
        width = 4 if accepted & Feature.NOTIFICATION_DATA.mask else 2
        if offset + width > self._notify.length:
            raise NoDeviceError(
                f"queue {layout.index} notifies at {offset:#x},"
                f" beyond the {self._notify.length:#x} bytes of the notification structure"
            )
        own_data = accepted & Feature.NOTIF_CONFIG_DATA.mask
        identifier = self.register_read("queue_notif_config_data") if own_data else layout.index
        self._notifications[layout.index] = self._notify.offset + offset, identifier
        self.register_write("queue_enable", 1)

    def queue_reset(self, index: int) -> None:
        """Write 1 to queue_reset (virtio 4.1.5.1.4)."""
        self.register_write("queue_select", index)
        self.register_write("queue_reset", 1)

    def queue_resetting(self, index: int) -> bool:
        """Return True while queue_reset reads 1."""
        return self._registers(("queue_select", index), ("queue_reset", None))[0] != 0

    def notify(self, index: int, next_available: int | None) -> None:
        """Write the queue's identifier to its notification address (virtio 4.1.5.2)."""
        try:
            offset, identifier = self._notifications[index]
        except KeyError:
            raise BadArgumentError(f"queue {index} was not set up") from None
        if next_available is None:
            self.function.bar_write(self._notify.bar, offset, 2, identifier)
        else:
            value = identifier | next_available << 16
            self.function.bar_write(self._notify.bar, offset, 4, value)

    def isr(self) -> int:
        """Read ISR status, which clears it."""
        return self.function.bar_read(self._isr.bar, self._isr.offset, 1)
