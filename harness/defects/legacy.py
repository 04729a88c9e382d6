"""Defects of the legacy interfaces, and of the reset of a queue (virtio 2.6.1, 4.2.4)."""

from __future__ import annotations

from harness.defects.bus import CONFIG, NOTIFY, AlteredMmio, AlteredPci
from harness.defects.pci_capabilities import NotifyLength
from harness.defects.registers import LEGACY, defect
from harness.virtio.blk import CONFIG_FIELD
from harness.virtio.features import Feature
from harness.virtio.pci import LEGACY_CONFIG

WRITEBACK = CONFIG_FIELD["writeback"].offset
MMIO_LEGACY = "qtest-mmio-legacy"


@defect(
    "legacy-config-big-endian",
    "5.2.4.1-L-01",
    text="the legacy configuration space is big-endian for a little-endian guest",
    target=LEGACY,
)
class ConfigBigEndian(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == CONFIG and width > 1:
            return int.from_bytes(value.to_bytes(width, "little"), "big")
        return value


@defect(
    "legacy-writeback-follows-driver-features",
    "5.2.5.3-L-04",
    text="legacy: writeback changes when the driver writes its features",
    target=LEGACY,
)
class WritebackFollows(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        touched = name == CONFIG and offset == WRITEBACK and self.written["driver_features"]
        return value ^ 1 if touched else value


@defect(
    "legacy-cache-mode-follows-driver-features",
    "5.2.5.3-L-04",
    text="CONFIG_WCE without FLUSH makes the cache volatile, and writeback shows the old mode",
    target=LEGACY,
)
class CacheModeFollows(AlteredPci):
    shown: int | None = None

    def alter_write(self, name: str, value: int) -> int | None:
        alone = value & (Feature.BLK_CONFIG_WCE.mask | Feature.BLK_FLUSH.mask)
        if name == "driver_features" and alone == Feature.BLK_CONFIG_WCE.mask:
            self.shown = self.real.bar_read(0, LEGACY_CONFIG + WRITEBACK, 1)
            self.real.bar_write(0, LEGACY_CONFIG + WRITEBACK, 1, 1)
        return value

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        hidden = name == CONFIG and offset == WRITEBACK and width == 1 and self.shown is not None
        return self.shown or 0 if hidden else value


@defect(
    "legacy-wide-config-write-lost",
    "4.1.4.10-L-03b",
    text="a write of two bytes to the configuration space is lost",
    target=LEGACY,
)
class WideConfigWriteLost(AlteredPci):
    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        name, _ = self._named(bar, offset)
        if name != CONFIG or width == 1:
            super().bar_write(bar, offset, width, value)


@defect(
    "legacy-config-4-bytes-at-once",
    "4.1.4.10-L-03b",
    text="configuration space reads differently in accesses of four bytes",
    target=LEGACY,
)
class FourBytesAtOnce(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        altered = name == CONFIG and width == 4 and offset >= CONFIG_FIELD["cylinders"].offset
        return value ^ 0x1100 if altered else value


@defect(
    "legacy-interrupts-lost",
    "6.3-L-02",
    text="the interrupt line is never raised",
    target=LEGACY,
)
class InterruptsLost(AlteredPci):
    def alter_interrupts(self, raised: int) -> int:
        return 0


@defect(
    "pci-structure-beyond-its-bar",
    "4.1.4-P-01",
    text="the notification structure ends after the end of its BAR",
    target=LEGACY,
)
class StructureBeyond(NotifyLength):
    length = 0x10_0000


@defect(
    "queue-reset-keeps-vector",
    "2.6.1.2.1-D-01",
    text="a queue that was reset keeps its old vector, but shows the new one",
)
class VectorKept(AlteredPci):
    def alter_write(self, name: str, value: int) -> int | None:
        return None if name == "queue_msix_vector" and self.written["queue_reset"] else value

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == "queue_msix_vector" and self.written["queue_reset"]:
            return self.written[name]
        return value


@defect(
    "queue-reset-stops-the-others",
    "2.6.1-P-01",
    text="notifications of the other queues are lost while one queue is reset",
)
class OthersStopped(AlteredPci):
    stopped = False

    def alter_write(self, name: str, value: int) -> int | None:
        if name in ("queue_reset", "queue_enable"):
            self.stopped = name == "queue_reset"
        return None if name == NOTIFY and self.stopped else value


@defect(
    "mmio-feature-of-pci",
    "2.2.2-D-03",
    text="a virtio-mmio device offers SR_IOV",
    target="qtest-mmio",
)
class FeatureOfPci(AlteredMmio):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == "DeviceFeatures" and self.written["DeviceFeaturesSel"] == 1:
            return value | 1 << 5
        return value


@defect(
    "mmio-legacy-magic-value",
    "4.2.4-P-02",
    text="MagicValue of a legacy device is wrong",
    target=MMIO_LEGACY,
    unusable=True,
)
class LegacyMagic(AlteredMmio):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value + 1 if name == "MagicValue" else value


@defect(
    "mmio-queue-pfn-survives-reset",
    "4.2.4-P-01",
    text="QueuePFN keeps its value through a reset",
    target=MMIO_LEGACY,
)
class PfnSurvives(AlteredMmio):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return self.written[name] if name == "QueuePFN" else value


@defect(
    "legacy-zoned-offered",
    "5.2.5.2-D-05",
    text="ZONED is offered through the legacy interface",
    target=LEGACY,
)
class ZonedOffered(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value | Feature.BLK_ZONED.mask if name == "device_features" else value
