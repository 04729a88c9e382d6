"""Defects of virtio-mmio (virtio 4.2.2)."""

from __future__ import annotations

from harness.defects.bus import AlteredMmio
from harness.defects.registers import defect
from harness.driver.bus.base import MmioWindow
from harness.virtio.mmio import INTERRUPT_CONFIG

MODERN = "qtest-mmio"


@defect(
    "mmio-magic-value",
    "4.2.2.1-D-01",
    text="MagicValue is wrong",
    target=MODERN,
    unusable=True,
)
class Magic(AlteredMmio):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value + 1 if name == "MagicValue" else value


@defect("mmio-version-3", "4.2.2.1-D-02", text="Version is 3", target=MODERN, unusable=True)
class Version3(AlteredMmio):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 3 if name == "Version" else value


@defect(
    "mmio-interrupt-status-empty",
    "4.2.2.1-D-03",
    text="InterruptStatus shows no event",
    target=MODERN,
)
class StatusEmpty(AlteredMmio):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 0 if name == "InterruptStatus" else value


@defect(
    "mmio-acknowledge-clears-all",
    "4.2.2.1-D-03",
    text="any acknowledgement clears all bits of InterruptStatus",
    target=MODERN,
)
class AcknowledgesAll(AlteredMmio):
    def alter_write(self, name: str, value: int) -> int | None:
        return 3 if name == "InterruptACK" else value


@defect(
    "mmio-interrupt-status-config",
    "4.2.2.1-D-04",
    text="InterruptStatus shows a configuration change with every event",
    target=MODERN,
)
class StatusConfig(AlteredMmio):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return value | INTERRUPT_CONFIG if name == "InterruptStatus" and value else value


class _SurvivesReset(AlteredMmio):
    """A register that keeps its last value through a reset."""

    register: str

    def __init__(self, real: MmioWindow) -> None:
        super().__init__(real)
        self.last: dict[int, int] = {}

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name != self.register:
            return value
        queue = self.written["QueueSel"]
        if self.written["Status"]:
            self.last[queue] = value
        return self.last.get(queue, value)


@defect(
    "mmio-interrupt-survives-reset",
    "4.2.2.1-D-05",
    text="a reset does not clear InterruptStatus",
    target=MODERN,
)
class InterruptSurvives(_SurvivesReset):
    register = "InterruptStatus"

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == self.register and self.written["Status"]:
            self.last[0] = self.last.get(0, 0) | value
            return value
        return self.last.get(0, value) if name == self.register else value

    def alter_write(self, name: str, value: int) -> int | None:
        if name == "InterruptACK":
            self.last[0] = self.last.get(0, 0) & ~value
        return value


@defect(
    "mmio-queue-ready-survives-reset",
    "4.2.2.1-D-05",
    text="a reset does not clear QueueReady",
    target=MODERN,
)
class ReadySurvives(_SurvivesReset):
    register = "QueueReady"


@defect(
    "mmio-generation-fixed",
    "4.2.2.1-D-06",
    text="ConfigGeneration never changes",
    target=MODERN,
)
class GenerationFixed(AlteredMmio):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 0 if name == "ConfigGeneration" else value


@defect(
    "mmio-queue-reset-1-after-reset",
    "4.2.2.1-D-08",
    text="QueueReset reads 1 after a reset",
    target=MODERN,
)
class QueueReset1(AlteredMmio):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 1 if name == "QueueReset" and not self.written["Status"] else value


@defect(
    "mmio-queue-reset-1-when-ready",
    "4.2.2.1-D-09",
    text="QueueReset reads 1 for a queue that is ready",
    target=MODERN,
)
class QueueReset1Ready(AlteredMmio):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 1 if name == "QueueReset" and self.written["QueueReady"] else value
