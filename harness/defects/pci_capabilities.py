"""Defects of PCI configuration space: ids, capabilities, window (virtio 4.1.2, 4.1.4)."""

from __future__ import annotations

import struct

from harness.defects.bus import AlteredPci
from harness.defects.registers import LEGACY, defect
from harness.virtio.features import Feature
from harness.virtio.pci import (
    BAR_0,
    CAP,
    CAPABILITIES,
    DEVICE,
    REVISION,
    STATUS,
    STATUS_INTERRUPT,
    SUBSYSTEM,
    VENDOR,
    CapType,
)

KIND, CAP_LEN, OFFSET, LENGTH, MULTIPLIER = 3, 2, 8, 12, 16
"""Offsets of fields in a capability."""

UNKNOWN_KIND = 0x7F
FREE = 0xC0
"""Offset in configuration space that QEMU does not use, for additional capabilities."""

TRANSITIONAL = "qtest-pci-transitional"


@defect(
    "pci-vendor-id",
    "4.1.2.1-D-01",
    text="the PCI vendor id is wrong",
    unusable=True,
)
class VendorId(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {VENDOR: b"\xf5\x1a"}


@defect(
    "pci-device-id",
    "4.1.2.1-D-02",
    text="the PCI device id is that of another kind of device",
    unusable=True,
)
class DeviceId(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {DEVICE: b"\x41\x10"}


@defect(
    "pci-transitional-device-id",
    "4.1.2.1-D-04",
    text="a device without a legacy interface has a transitional device id",
)
class TransitionalDeviceId(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {DEVICE: b"\x01\x10"}


@defect(
    "pci-revision-0",
    "4.1.2.1-D-05",
    text="a device without a legacy interface has revision 0",
)
class Revision0(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {REVISION: b"\x00"}


@defect(
    "pci-low-subsystem-id",
    "4.1.2.1-D-06",
    text="the subsystem id of a device without a legacy interface is its device type",
)
class LowSubsystemId(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {SUBSYSTEM: b"\x02\x00"}


@defect(
    "pci-transitional-revision-1",
    "4.1.2.3-L-01",
    text="a transitional device has revision 1",
    target=TRANSITIONAL,
)
class TransitionalRevision(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {REVISION: b"\x01"}


@defect(
    "pci-transitional-subsystem-id",
    "4.1.2.3-L-02",
    text="the subsystem id of a transitional device is another device type",
    target=TRANSITIONAL,
)
class TransitionalSubsystem(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {SUBSYSTEM: b"\x03\x00"}


@defect(
    "pci-transitional-modern-id",
    "4.1.2.3-L-03",
    text="a device with a legacy interface has the device id of a modern device",
    target=TRANSITIONAL,
)
class TransitionalModernId(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {DEVICE: b"\x42\x10"}


@defect(
    "pci-legacy-bar-in-memory",
    "4.1.4.10-L-01",
    "4.1.5.1.1.1-L-01",
    text="BAR 0 of a transitional device is a memory BAR",
    target=LEGACY,
)
class LegacyBarInMemory(AlteredPci):
    def alter_pci_read(self, offset: int, data: bytes) -> bytes:
        return bytes([data[0] & ~1]) + data[1:] if offset == BAR_0 else data


@defect(
    "pci-short-cap-len",
    "4.1.4.2-D-01",
    text="cap_len does not include the additional field of the notification capability",
)
class ShortCapLen(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {self.capability(CapType.NOTIFY_CFG) + CAP_LEN: bytes([CAP.size])}


class _Without(AlteredPci):
    kind: CapType

    def patches(self) -> dict[int, bytes]:
        return {self.capability(self.kind) + KIND: bytes([UNKNOWN_KIND])}


# A driver of the legacy interface does not need the capabilities, so the tests can run.
@defect(
    "pci-no-common-cfg",
    "4.1.4.3.1-D-02",
    text="there is no common configuration structure",
    target=LEGACY,
)
class NoCommon(_Without):
    kind = CapType.COMMON_CFG


@defect(
    "pci-no-notify-cfg",
    "4.1.4.4.1-D-01",
    text="there is no notification structure",
    target=LEGACY,
)
class NoNotify(_Without):
    kind = CapType.NOTIFY_CFG


@defect("pci-no-isr-cfg", "4.1.4.5.1-D-01", text="there is no ISR structure", target=LEGACY)
class NoIsr(_Without):
    kind = CapType.ISR_CFG


@defect(
    "pci-no-device-cfg",
    "4.1.4.6-T-01",
    text="there is no device configuration structure",
    target=LEGACY,
)
class NoDevice(_Without):
    kind = CapType.DEVICE_CFG


@defect(
    "pci-no-window",
    "4.1.4.9.1-D-01",
    text="there is no PCI configuration access capability (window)",
)
class NoWindow(_Without):
    kind = CapType.PCI_CFG


class _Moved(AlteredPci):
    kind: CapType

    def patches(self) -> dict[int, bytes]:
        at = self.capability(self.kind) + OFFSET
        offset, length = struct.unpack("<II", self.real.pci_read(at, 8))
        return {at: struct.pack("<II", offset + 1, length - 1)}


@defect(
    "pci-common-cfg-unaligned",
    "4.1.4.3.1-D-01",
    text="the common configuration structure is at an odd offset",
    target=LEGACY,
)
class CommonUnaligned(_Moved):
    kind = CapType.COMMON_CFG


@defect(
    "pci-device-cfg-unaligned",
    "4.1.4.6.1-D-01",
    text="the device configuration structure is at an odd offset",
    target=LEGACY,
)
class DeviceUnaligned(_Moved):
    kind = CapType.DEVICE_CFG


@defect(
    "pci-notify-cfg-unaligned",
    "4.1.4.4.1-D-02",
    text="the notification structure is at an odd offset",
)
class NotifyUnaligned(_Moved):
    kind = CapType.NOTIFY_CFG


class _Multiplier(AlteredPci):
    multiplier: int

    def patches(self) -> dict[int, bytes]:
        at = self.capability(CapType.NOTIFY_CFG) + MULTIPLIER
        return {at: self.multiplier.to_bytes(4, "little")}


@defect(
    "pci-multiplier-no-power-of-2",
    "4.1.4.4.1-D-03",
    text="notify_off_multiplier is 12",
)
class Multiplier12(_Multiplier):
    multiplier = 12


class NotifyLength(AlteredPci):
    length: int

    def patches(self) -> dict[int, bytes]:
        at = self.capability(CapType.NOTIFY_CFG) + LENGTH
        return {at: self.length.to_bytes(4, "little")}


@defect(
    "pci-notify-cfg-of-1-byte",
    "4.1.4.4.1-D-04a",
    text="the notification structure has 1 byte",
    unusable=True,
)
class NotifyOf1Byte(NotifyLength):
    length = 1


@defect(
    "pci-notify-address-outside",
    "4.1.4.4.1-D-05",
    "4.1.4.4.1-D-04b",
    text="the notification structure has room only for the first queue",
)
class NotifyOutside(NotifyLength):
    length = 2


class _OffersNotificationData(AlteredPci):
    """Offers NOTIFICATION_DATA, which no device here really has, for defects of this feature."""

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == "device_feature" and self.written["device_feature_select"] == 1:
            return value | Feature.NOTIFICATION_DATA.mask >> 32
        return value


@defect(
    "pci-notification-data-multiplier-2",
    "4.1.4.4.1-D-06",
    text="with NOTIFICATION_DATA, notify_off_multiplier is 2",
)
class DataMultiplier(_OffersNotificationData, _Multiplier):
    multiplier = 2


@defect(
    "pci-notification-data-unaligned",
    "4.1.4.4.1-D-07",
    text="with NOTIFICATION_DATA, the notification structure is at an odd offset",
)
class DataUnaligned(_OffersNotificationData, _Moved):
    kind = CapType.NOTIFY_CFG


@defect(
    "pci-notification-data-2-bytes",
    "4.1.4.4.1-D-08a",
    "4.1.4.4.1-D-08b",
    "4.1.4.4.1-D-09",
    text="with NOTIFICATION_DATA, the notification structure has 2 bytes",
)
class DataOf2Bytes(_OffersNotificationData, NotifyLength):
    length = 2


class _Added(AlteredPci):
    """A function with capabilities in front of the device's own."""

    def added(self) -> list[bytes]:
        """Return the capabilities, each without its first two bytes."""
        raise NotImplementedError

    def patches(self) -> dict[int, bytes]:
        following = self.real.pci_read(CAPABILITIES, 1)[0]
        patches: dict[int, bytes] = {}
        at = FREE
        for body in self.added():
            patches[at] = bytes([0x09, following]) + body
            following = at
            at += 2 + len(body) + -(2 + len(body)) % 4
        return {**patches, CAPABILITIES: bytes([following])}


def shared_memory(bar: int, ident: int, offset: int, length: int) -> bytes:
    """Return the capability of a shared memory region, without its first two bytes."""
    first = CAP.pack(0, 0, CAP.size + 8, CapType.SHARED_MEMORY_CFG, bar, ident, offset, length)
    return first[2:] + bytes(8)


@defect(
    "pci-shared-memory-same-id",
    "4.1.4.7.1-D-02",
    text="two shared memory regions have the same id",
)
class SameIds(_Added):
    def added(self) -> list[bytes]:
        return [shared_memory(4, 7, 0x3800, 16), shared_memory(4, 7, 0x3900, 16)]


@defect(
    "pci-shared-memory-outside-its-bar",
    "4.1.4.7.1-D-01",
    text="a shared memory region ends after the end of its BAR",
)
class RegionOutside(_Added):
    def added(self) -> list[bytes]:
        return [shared_memory(4, 7, 0x3000, 0x10_0000)]


@defect(
    "pci-shared-memory-over-registers",
    "2.10.2-D-01",
    text="a shared memory region covers the device's registers",
)
class RegionOverRegisters(_Added):
    def added(self) -> list[bytes]:
        at = self.capability(CapType.COMMON_CFG)
        bar, offset = self.real.pci_read(at + 4, 1)[0], self.real.pci_read(at + OFFSET, 4)
        return [shared_memory(bar, 0, int.from_bytes(offset, "little"), 64)]


def vendor_data(vendor: int, length: int) -> bytes:
    """Return a vendor data capability of `length` bytes, without its first two bytes."""
    return (bytes([length, CapType.VENDOR_CFG]) + vendor.to_bytes(2, "little")).ljust(
        length - 2, b"\x5a"
    )


@defect(
    "pci-vendor-data-of-virtio",
    "4.1.4.8.1-D-01",
    text="the vendor of a vendor data capability is virtio's own",
)
class VendorDataOfVirtio(_Added):
    def added(self) -> list[bytes]:
        return [vendor_data(0x1AF4, 8)]


@defect(
    "pci-vendor-data-of-10-bytes",
    "4.1.4.8.1-D-02",
    text="a vendor data capability has 10 bytes",
)
class VendorDataOf10(_Added):
    def added(self) -> list[bytes]:
        return [vendor_data(0x1AF5, 10)]


@defect(
    "pci-vendor-data-counts-reads",
    "4.1.4.8-T-01",
    "4.1.4.8.1-D-03",
    text="a read of the vendor data capability changes it",
)
class VendorDataCounts(_Added):
    reads = 0

    def added(self) -> list[bytes]:
        return [vendor_data(0x1AF5, 8)]

    def alter_pci_read(self, offset: int, data: bytes) -> bytes:
        if not offset <= FREE + 6 < offset + len(data):
            return data
        self.reads += 1
        return data[: FREE + 6 - offset] + bytes([self.reads & 0xFF]) + data[FREE + 7 - offset :]


class _Window(AlteredPci):
    """A function that knows the place of the window's data."""

    def is_data(self, offset: int) -> bool:
        at = self.capability(CapType.PCI_CFG) + CAP.size
        return at <= offset < at + 4


@defect("pci-window-writes-nothing", "4.1.4.9.1-D-02", text="a write to the window is lost")
class WindowWrites(_Window):
    def alter_pci_write(self, offset: int, data: bytes) -> bytes | None:
        return None if self.is_data(offset) else data


@defect("pci-window-reads-zero", "4.1.4.9.1-D-03", text="the window reads zero")
class WindowReads(_Window):
    def alter_pci_read(self, offset: int, data: bytes) -> bytes:
        return bytes(len(data)) if self.is_data(offset) else data


@defect(
    "pci-interrupt-status-never-set",
    "4.1.4.5.1-D-04",
    text="PCI's interrupt status bit stays clear",
)
class NoInterruptStatus(AlteredPci):
    def alter_pci_read(self, offset: int, data: bytes) -> bytes:
        return bytes([data[0] & ~STATUS_INTERRUPT]) + data[1:] if offset == STATUS else data


@defect(
    "pci-interrupt-status-always-set",
    "4.1.4.5.1-D-04",
    text="PCI's interrupt status bit stays set",
)
class AlwaysInterruptStatus(AlteredPci):
    def alter_pci_read(self, offset: int, data: bytes) -> bytes:
        return bytes([data[0] | STATUS_INTERRUPT]) + data[1:] if offset == STATUS else data
