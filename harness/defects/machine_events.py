"""Defects of a device whose machine is paused, moved or reset, or loses the device."""

from __future__ import annotations

from threading import Timer

from harness.defects.bus import ISR, NOTIFY, AlteredPci, MachineEvent
from harness.defects.registers import defect
from harness.driver.bus.base import PciFunction
from harness.virtio.pci import NO_VECTOR

PERIOD = 0.01
TIMES = 20


class _NotificationsLost(AlteredPci):
    """Loses every notification after an event."""

    event: MachineEvent

    def alter_write(self, name: str, value: int) -> int | None:
        return None if name == NOTIFY and self.events[self.event] else value


@defect(
    "notifications-lost-after-a-pause",
    "2.4-P-03",
    text="notifications have no effect after the machine was paused",
)
class LostAfterPause(_NotificationsLost):
    event = "paused"


@defect(
    "notifications-lost-after-a-restore",
    "2.4-P-04",
    text="notifications have no effect after the machine was saved and restored",
)
class LostAfterRestore(_NotificationsLost):
    event = "moved"


@defect(
    "vectors-lost-in-a-restore",
    "2.4-P-04",
    text="no virtqueue is mapped to a vector after the machine was saved and restored",
)
class VectorsLost(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return NO_VECTOR if name == "queue_msix_vector" and self.events["moved"] else value


@defect(
    "isr-lost-in-a-restore",
    "2.4-P-04",
    text="ISR status is 0 after the machine was saved and restored",
)
class IsrLost(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name == ISR and self.events["moved"]:
            self.events["moved"] = 0
            return 0
        return value


@defect(
    "removed-device-answers",
    "2.4-P-06",
    text="PCI configuration space of a removed device still reads as before",
)
class Answers(AlteredPci):
    def __init__(self, real: PciFunction) -> None:
        super().__init__(real)
        self._header = real.pci_read(0, 64)

    def alter_pci_read(self, offset: int, data: bytes) -> bytes:
        if self.events["removed"] and offset + len(data) <= len(self._header):
            return self._header[offset : offset + len(data)]
        return data


@defect(
    "queues-enabled-after-a-system-reset",
    "2.4-P-05",
    text="queue_enable reads 1 after a reset of the machine",
)
class QueuesEnabled(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 1 if name == "queue_enable" and self.events["system reset"] else value


@defect(
    "used-after-a-system-reset",
    "2.4.1-D-02",
    text="requests in flight at a reset of the machine are used after it",
)
class UsedAfterReset(AlteredPci):
    def __init__(self, real: PciFunction) -> None:
        super().__init__(real)
        self._used_ring = 0

    def alter_write(self, name: str, value: int) -> int | None:
        if name == "queue_device":
            self._used_ring = self._used_ring or value  # the low half is written first
        return value

    def happened(self, event: MachineEvent) -> None:
        super().happened(event)
        if event == "system reset" and self._used_ring:
            for turn in range(TIMES):
                timer = Timer(PERIOD * turn, self._use)
                timer.daemon = True
                timer.start()

    def _use(self) -> None:
        index = self.real.memory.view(self._used_ring + 2, 1)
        index[0] = (index[0] + 1) & 0xFF
