"""Defects of the common configuration, ISR status and the legacy header (virtio 4.1.4)."""

from __future__ import annotations

from harness.defects.bus import CONFIG, ISR, NOTIFY, AlteredPci
from harness.defects.registers import LEGACY, defect
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask
from harness.virtio.pci import COMMON_REGISTERS, ISR_CONFIG, ISR_QUEUE, LEGACY_CONFIG_MSIX, CapType

# --- features (virtio 2.2, 4.1.4.3, 6)


class Offer(AlteredPci):
    """Offers other features than the device does."""

    added = 0
    missing = 0

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name != "device_feature":
            return value
        word = self.written["device_feature_select"]
        if word > 1:
            return value
        return (value | self.added >> 32 * word) & ~(self.missing >> 32 * word)


@defect("no-version-1", "6.2-D-01", text="VERSION_1 is not offered")
class NoVersion1(Offer):
    missing = Feature.VERSION_1.mask


@defect(
    "reserved-feature-offered", "2.2.2-D-03", text="feature bit 45, which is reserved, is offered"
)
class ReservedFeature(Offer):
    added = 1 << 45


@defect(
    "feature-without-what-it-needs",
    "2.2.2-D-01",
    "5.2.5.2-D-01b",
    text="CONFIG_WCE is offered without FLUSH",
)
class FeatureAlone(Offer):
    missing = Feature.BLK_FLUSH.mask


@defect("flush-never-offered", "5.2.5.2-D-01a", text="FLUSH is never offered")
class NoFlush(Offer):
    missing = mask(Feature.BLK_FLUSH, Feature.BLK_CONFIG_WCE)


@defect(
    "features-repeat",
    "4.1.4.3.1-D-03",
    text="device_feature repeats bits 32 to 63 for every higher selector",
)
class FeaturesRepeat(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == "device_feature" and self.written["device_feature_select"] > 1:
            return 0x101
        return value


@defect(
    "ring-addresses-of-32-bits",
    "2.7-P-02",
    "2.8-P-01",
    text="the high halves of the addresses of rings have no effect",
)
class RingAddresses(AlteredPci):
    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        name, at = self._named(bar, offset)
        high = name in ("queue_desc", "queue_driver", "queue_device") and at == 4
        super().bar_write(bar, offset, width, 0 if high else value)


@defect("driver-feature-reads-0", "4.1.4.3.1-D-04", text="driver_feature reads 0")
class DriverFeatureReads0(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 0 if name == "driver_feature" else value


@defect(
    "driver-feature-repeats",
    "4.1.4.3.1-D-04",
    text="driver_feature shows the low 32 bits for every selector beyond 1",
)
class DriverFeatureRepeats(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        beyond = name == "driver_feature" and self.written["driver_feature_select"] > 1
        return self.written["driver_feature"] | 1 if beyond else value


class _Refuses(AlteredPci):
    """Refuses FEATURES_OK for some sets of features."""

    def __init__(self, real: AlteredPci) -> None:
        super().__init__(real)
        self.accepted = 0
        self.refused = False

    def refuses(self, accepted: int) -> bool:
        """Return True if this set of features is refused."""
        raise NotImplementedError

    def alter_write(self, name: str, value: int) -> int | None:
        if name == "driver_feature":
            shift = 32 * self.written["driver_feature_select"]
            self.accepted = self.accepted & ~(0xFFFFFFFF << shift) | value << shift
        if name == "device_status":
            self.refused = bool(value & DeviceStatus.FEATURES_OK) and self.refuses(self.accepted)
            if self.refused:
                return value & ~DeviceStatus.FEATURES_OK
        return value


@defect(
    "unoffered-features-taken",
    "2.2.2-D-02b",
    text="bits that were not offered are accepted, and then nothing is served",
)
class UnofferedTaken(_Refuses):
    def refuses(self, accepted: int) -> bool:
        return False

    def alter_write(self, name: str, value: int) -> int | None:
        unknown = self.accepted & (1 << 44 | 1 << 63)
        return None if name == NOTIFY and unknown else super().alter_write(name, value)


@defect(
    "features-all-or-nothing",
    "2.2.2-D-02a",
    text="features are refused if they do not include SEG_MAX",
)
class AllOrNothing(_Refuses):
    def refuses(self, accepted: int) -> bool:
        return not accepted & Feature.BLK_SEG_MAX.mask


@defect(
    "features-accepted-once",
    "2.2.2-D-04",
    text="features that were accepted once are refused after a reset",
)
class AcceptedOnce(_Refuses):
    times = 0

    def refuses(self, accepted: int) -> bool:
        self.times += 1
        return self.times > 2


@defect(
    "features-refused-after-system-reset",
    "2.2.2-D-04",
    text="features that were accepted are refused after a reset of the machine",
)
class RefusedAfterSystemReset(_Refuses):
    last: object = None
    """The machine of the latest function."""

    def __init__(self, real: AlteredPci) -> None:
        super().__init__(real)
        # Only a reset of the machine has another driver on the same machine.
        machine = getattr(real, "qtest", None)
        self.again = machine is not None and machine is RefusedAfterSystemReset.last
        RefusedAfterSystemReset.last = machine

    def refuses(self, accepted: int) -> bool:
        return self.again


# --- device status (virtio 2.1, 2.4)


@defect(
    "status-stays-after-reset",
    "2.4.1-D-01",
    "4.1.4.3.1-D-07",
    text="device status keeps ACKNOWLEDGE after a reset",
)
class StatusStays(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value | DeviceStatus.ACKNOWLEDGE if name == "device_status" else value


@defect(
    "needs-reset-hidden",
    "2.1.2-D-02",
    text="a device that has stopped working does not set DEVICE_NEEDS_RESET",
)
class NeedsResetHidden(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value & ~DeviceStatus.NEEDS_RESET if name == "device_status" else value


@defect(
    "needs-reset-silent",
    "2.1.2-D-03",
    text="DEVICE_NEEDS_RESET is set without a configuration change notification",
)
class NeedsResetSilent(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 0 if name == ISR and value & ISR_CONFIG else value

    def alter_interrupts(self, raised: int) -> int:
        return 0 if raised and self._needs_reset() else raised

    def _needs_reset(self) -> bool:
        for cap in self._capabilities:
            if cap.type == CapType.COMMON_CFG:
                status = self.real.bar_read(
                    cap.bar, cap.offset + COMMON_REGISTERS["device_status"][0], 1
                )
                return bool(status & DeviceStatus.NEEDS_RESET)
        return False


# --- configuration space (virtio 2.5, 4.1.3, 4.1.4.3)


@defect(
    "config-early-reads-0",
    "2.5.2-D-01",
    text="the configuration space reads 0 before FEATURES_OK",
)
class ConfigEarly(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        early = not self.written["device_status"] & DeviceStatus.FEATURES_OK
        return 0 if name == CONFIG and early else value


@defect(
    "config-high-half-needs-low",
    "4.1.3.2-D-01",
    text="the high half of capacity reads the same as the low half",
)
class HighHalf(AlteredPci):
    low = 0

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == CONFIG and offset == 0:
            self.low = value
        if name == CONFIG and offset == 4:
            return self.low or 0x5A5A
        return value


@defect(
    "config-generation-fixed",
    "4.1.4.3.1-D-06",
    text="the configuration generation never changes",
)
class GenerationFixed(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 0 if name == "config_generation" else value


# --- queues (virtio 2.6.1, 4.1.4.3)


@defect(
    "queue-enable-after-reset",
    "4.1.4.3.1-D-08",
    text="queue_enable still reads 1 after a reset",
)
class EnableAfterReset(AlteredPci):
    def __init__(self, real: AlteredPci) -> None:
        super().__init__(real)
        self.enabled: set[int] = set()

    def alter_write(self, name: str, value: int) -> int | None:
        if name == "queue_enable" and value:
            self.enabled.add(self.written["queue_select"])
        return value

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == "queue_enable" and self.written["queue_select"] in self.enabled:
            return 1
        return value


@defect("queue-reset-1-after-reset", "4.1.4.3.1-D-09", text="queue_reset reads 1 after a reset")
class QueueResetAfterReset(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 1 if name == "queue_reset" and not self.written["device_status"] else value


@defect(
    "queue-reset-1-for-ever",
    "4.1.4.3.1-D-10",
    "4.1.4.3.1-D-13",
    text="queue_reset always reads 1 after a queue's reset",
)
class QueueResetForEver(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 1 if name == "queue_reset" and self.written["queue_reset"] else value


@defect("queue-reset-ignored", "4.1.4.3.1-D-11", text="a write to queue_reset is ignored")
class QueueResetIgnored(AlteredPci):
    def alter_write(self, name: str, value: int) -> int | None:
        return None if name == "queue_reset" else value


@defect(
    "queue-enable-after-queue-reset",
    "4.1.4.3.1-D-13",
    text="queue_enable still reads 1 after the queue's reset",
)
class EnableAfterQueueReset(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 1 if name == "queue_enable" and self.written["queue_enable"] else value


@defect(
    "queue-size-of-absent-queue",
    "4.1.4.3.1-D-14",
    text="a queue that does not exist shows a queue_size of 256",
)
class AbsentQueueSize(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value or 256 if name == "queue_size" else value


@defect(
    "queue-size-no-power-of-2",
    "4.1.4.3.1-D-15",
    text="queue_size is one less than a power of 2",
)
class OddQueueSize(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value - 1 if name == "queue_size" and value else value


# --- ISR status (virtio 4.1.4.5)


@defect(
    "isr-without-config-bit",
    "4.1.4.5.1-D-02",
    text="ISR status never shows a configuration change",
)
class IsrNoConfig(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value & ~ISR_CONFIG if name == ISR else value


@defect(
    "isr-without-queue-bit",
    "4.1.4.5.1-D-03",
    text="ISR status never shows used buffers",
)
class IsrNoQueue(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value & ~ISR_QUEUE if name == ISR else value


@defect("isr-not-cleared", "4.1.4.5.1-D-05", text="reading ISR status does not clear it")
class IsrNotCleared(AlteredPci):
    seen = 0

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == ISR:
            self.seen |= value
            return self.seen
        return value

    def alter_write(self, name: str, value: int) -> int | None:
        if name == "device_status" and value == 0:
            self.seen = 0
        return value


# --- the legacy header (virtio 4.1.4.10)


@defect(
    "legacy-config-width",
    "4.1.4.10-L-03b",
    text="a read of 2 bytes of configuration space differs from two reads of 1 byte",
    target=LEGACY,
)
class LegacyConfigWidth(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value ^ 0x11 if name == CONFIG and width == 2 else value


@defect(
    "legacy-config-fixed-place",
    "4.1.4.10-L-05",
    text="configuration space does not move when MSI-X is enabled",
    target=LEGACY,
)
class LegacyConfigPlace(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == CONFIG and self.vectors:
            return self.real.bar_read(0, LEGACY_CONFIG_MSIX + offset + 4, width)
        return value


@defect(
    "legacy-early-config-write-lost",
    "3.1.2-L-02",
    text="a write to a configuration field before feature negotiation is lost",
    target=LEGACY,
)
class LegacyEarlyWrite(AlteredPci):
    def alter_write(self, name: str, value: int) -> int | None:
        early = not self.written["driver_features"]
        return None if name == CONFIG and early else value


@defect(
    "legacy-needs-driver-ok",
    "3.1.2-L-03",
    text="the legacy interface serves nothing before DRIVER_OK",
    target=LEGACY,
)
class LegacyNeedsDriverOk(AlteredPci):
    def alter_write(self, name: str, value: int) -> int | None:
        early = not self.written["device_status"] & DeviceStatus.DRIVER_OK
        return None if name == "queue_notify" and early else value


@defect(
    "legacy-not-served",
    "2.2.3-L-02",
    text="a driver without VERSION_1 is not served",
    target=LEGACY,
)
class LegacyNotServed(AlteredPci):
    def alter_write(self, name: str, value: int) -> int | None:
        return None if name == "queue_notify" else value


@defect(
    "legacy-any-layout-missing",
    "6.3-L-03a",
    text="ANY_LAYOUT is not offered through the legacy interface",
    target=LEGACY,
)
class LegacyNoAnyLayout(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value & ~Feature.ANY_LAYOUT.mask if name == "device_features" else value


@defect(
    "legacy-writeback-follows-features",
    "5.2.5.3-L-03",
    text="legacy: writeback changes when the driver writes its features or DRIVER_OK",
    target=LEGACY,
)
class LegacyWriteback(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == CONFIG and offset == 32:
            touched = self.written["device_status"] & DeviceStatus.DRIVER_OK
            return value ^ 1 if touched or self.written["driver_features"] else value
        return value


@defect(
    "legacy-used-ring-at-once",
    "2.7.2-L-02",
    text="the rings of a legacy device begin one page after the queue address",
    target=LEGACY,
)
class LegacyUsedRing(AlteredPci):
    def alter_write(self, name: str, value: int) -> int | None:
        return value + 1 if name == "queue_address" and value else value
