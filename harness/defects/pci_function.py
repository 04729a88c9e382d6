"""Defects of the PCI function, and of rare features (virtio 4.1.1, 6.2, 7.4)."""

from __future__ import annotations

import struct

from harness.defects.bus import AlteredPci
from harness.defects.pci_capabilities import FREE
from harness.defects.pci_registers import Offer
from harness.defects.registers import LEGACY, defect
from harness.driver.bus.base import PciFunction
from harness.virtio.features import Feature, mask
from harness.virtio.pci import (
    BAR_0,
    BAR_TYPE,
    BARS,
    CAP_EXPRESS,
    CAPABILITIES,
    COMMON_REGISTERS,
    DEVICE,
    EXT_CAP_SR_IOV,
    EXTENDED,
    HEADER_TYPE,
    REVISION,
    SUBSYSTEM,
    CapType,
)


@defect("pci-header-of-a-bridge", "4.1.1-D-01", text="the PCI header is a bridge's")
class BridgeHeader(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {HEADER_TYPE: b"\x01"}


# A driver of the legacy interface does not read the list, so the test can run.
@defect(
    "pci-capabilities-in-a-circle",
    "4.1.1-D-01",
    text="the list of capabilities is circular",
    target=LEGACY,
)
class Circle(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        first = self.real.pci_read(CAPABILITIES, 1)
        return {self.capability(CapType.COMMON_CFG) + 1: first}


@defect("pci-bar-of-no-type", "4.1.1-D-01", text="a BAR has the reserved memory type 3")
class BarOfNoType(AlteredPci):
    def alter_pci_read(self, offset: int, data: bytes) -> bytes:
        bar, within = divmod(offset - BAR_0, 4)
        if not 0 <= bar < BARS or within or not any(data):
            return data
        return bytes([data[0] | BAR_TYPE]) + data[1:]


@defect(
    "pci-transitional-in-name",
    "7.4-T-01",
    text="all ids are those of a transitional device, but there is no legacy interface",
)
class TransitionalInName(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        return {DEVICE: b"\x01\x10", REVISION: b"\0", SUBSYSTEM: b"\x02\0"}


@defect(
    "access-platform-not-offered",
    "6.2-D-03",
    text="the platform translates addresses, but ACCESS_PLATFORM is not offered",
)
class NoAccessPlatform(Offer):
    missing = Feature.ACCESS_PLATFORM.mask

    def __init__(self, real: PciFunction) -> None:
        super().__init__(real)
        self.access_platform = True


@defect("sr-iov-without-capability", "6.2-D-09b", text="SR_IOV is offered without the capability")
class SrIovAlone(Offer):
    added = Feature.SR_IOV.mask


@defect(
    "sr-iov-not-offered",
    "6.2-D-09a",
    text="the device has the SR-IOV capability, but does not offer SR_IOV",
)
class SrIovNotOffered(AlteredPci):
    def patches(self) -> dict[int, bytes]:
        following = self.real.pci_read(CAPABILITIES, 1)[0]
        return {
            CAPABILITIES: bytes([FREE]),
            FREE: bytes([CAP_EXPRESS, following]),
            EXTENDED: struct.pack("<I", EXT_CAP_SR_IOV | 1 << 16),
        }


class _Administration(Offer):
    """A device with `count` administration virtqueues, from `first` after the other queues on."""

    added = mask(Feature.ADMIN_VQ)
    first = 0
    count = 1

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == "admin_queue_index":
            return self._queues() + self.first
        if name == "admin_queue_num":
            return self.count
        return super().alter_read(name, offset, width, value)

    def _queues(self) -> int:
        common = next(cap for cap in self._capabilities if cap.type == CapType.COMMON_CFG)
        return self.real.bar_read(common.bar, common.offset + COMMON_REGISTERS["num_queues"][0], 2)


@defect(
    "admin-queue-among-the-others",
    "4.1.4.3.1-D-16a",
    text="the first administration virtqueue is one of the device's other queues",
)
class AdministrationAmong(_Administration):
    first = -1


@defect(
    "admin-queues-beyond-16-bits",
    "4.1.4.3.1-D-16b",
    text="the index of the last administration virtqueue does not fit into 16 bits",
)
class AdministrationBeyond(_Administration):
    first = 1
    count = 0xFFFF


class _AdministrationOutside(_Administration):
    """The administration virtqueue notifies beyond the notification structure."""

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == "queue_notify_off" and self.written["queue_select"] >= self._queues():
            return 0x4000
        return super().alter_read(name, offset, width, value)


@defect(
    "admin-queue-notifies-outside",
    "4.1.4.4.1-D-05",
    "4.1.4.4.1-D-04b",
    text="the notification structure has no room for the administration virtqueue",
)
class AdministrationOutside(_AdministrationOutside):
    pass


@defect(
    "admin-queue-notifies-with-data-outside",
    "4.1.4.4.1-D-09",
    "4.1.4.4.1-D-08b",
    text="with NOTIFICATION_DATA there is no room for the administration virtqueue",
)
class AdministrationWithDataOutside(_AdministrationOutside):
    added = mask(Feature.ADMIN_VQ, Feature.NOTIFICATION_DATA)


@defect(
    "queue-reset-in-name",
    "4.1.4.3.1-D-12",
    text="queue_reset reads 0 at once, but the queue is not reset",
)
class QueueResetInName(AlteredPci):
    def alter_write(self, name: str, value: int) -> int | None:
        return None if name == "queue_reset" else value
