"""Defects of MSI-X (virtio 4.1.5.1.2)."""

from __future__ import annotations

from collections import Counter

from harness.defects.bus import AlteredPci
from harness.defects.registers import defect
from harness.driver.bus.base import PciFunction
from harness.driver.bus.msix import msix_table
from harness.virtio.device import DeviceStatus
from harness.virtio.pci import MSIX_ENTRY, NO_VECTOR

CONTROL = MSIX_ENTRY.size - 4
"""Offset of the word with the mask bit in an entry of the table."""

CONFIG_VECTOR, QUEUE_VECTOR = "config_msix_vector", "queue_msix_vector"
VECTORS = (CONFIG_VECTOR, QUEUE_VECTOR)


class _TableSize(AlteredPci):
    """Reports another number of vectors than the device has."""

    def reported(self, real: int) -> int:
        """Return the number of vectors to report."""
        raise NotImplementedError

    def patches(self) -> dict[int, bytes]:
        table = msix_table(self.real)
        return {table.control: (self.reported(table.size) - 1).to_bytes(2, "little")}

    def enable_msix(self, vectors: int) -> None:
        super().enable_msix(min(vectors, msix_table(self.real).size))


@defect("msix-of-1-vector", "4.1.5.1.2.1-D-01", text="MSI-X has one vector")
class OneVector(_TableSize):
    def reported(self, real: int) -> int:
        return 1


@defect(
    "msix-table-too-large",
    "4.1.5.1.2.1-D-02",
    text="MSI-X reports one vector more than the device has",
)
class TableTooLarge(_TableSize):
    def reported(self, real: int) -> int:
        return real + 1


@defect("msix-only-vector-0", "4.1.5.1.2.1-D-04", text="only vector 0 can be mapped")
class OnlyVector0(AlteredPci):
    def alter_write(self, name: str, value: int) -> int | None:
        return NO_VECTOR if name in VECTORS and value else value


@defect(
    "msix-messages-of-another-vector",
    "4.1.5.1.2.1-D-04",
    text="messages arrive with the number of the previous vector",
)
class OtherVector(AlteredPci):
    def alter_messages(self, messages: Counter[int]) -> Counter[int]:
        return Counter({max(vector - 1, 0): count for vector, count in messages.items()})


@defect("msix-cannot-unmap", "4.1.5.1.2.1-D-05", text="an event cannot be unmapped")
class CannotUnmap(AlteredPci):
    def alter_write(self, name: str, value: int) -> int | None:
        return None if name in VECTORS and value == NO_VECTOR else value


@defect("msix-vector-reads-0", "4.1.5.1.2.1-D-06", text="the vector registers read 0")
class VectorReads0(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return 0 if name in VECTORS else value


@defect(
    "msix-mapping-survives-reset",
    "4.1.5.1.2.1-D-07",
    text="the vector registers keep the old mapping after a reset",
)
class MappingSurvives(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        if name in VECTORS and not self.written["device_status"]:
            return self.written[name]
        return value


@defect(
    "msix-vectors-not-shared",
    "4.1.5.1.2.1-D-08",
    text="a vector of configuration changes cannot be shared with queues",
)
class NotShared(AlteredPci):
    def alter_write(self, name: str, value: int) -> int | None:
        taken = self.written[CONFIG_VECTOR]
        return NO_VECTOR if name == QUEUE_VECTOR and value == taken else value


@defect(
    "msix-failed-mapping-shown",
    "4.1.5.1.2.1-D-09",
    text="a vector that does not exist is shown as if it were mapped",
)
class FailedMappingShown(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return self.written[name] if name in VECTORS and self.written[name] else value


class _MapsAnyway(AlteredPci):
    """Maps an event that the driver has unmapped to vector 1, without showing it."""

    register: str

    def __init__(self, real: PciFunction) -> None:
        super().__init__(real)
        self.unmapped = False

    def alter_write(self, name: str, value: int) -> int | None:
        if name == self.register:
            self.unmapped = value == NO_VECTOR
            return 1 if self.unmapped else value
        return value

    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        return NO_VECTOR if name == self.register and self.unmapped else value


@defect(
    "msix-queue-without-vector-interrupts",
    "4.1.5.3.1-D-01",
    text="a queue without a vector sends messages of vector 1",
)
class QueueAnyway(_MapsAnyway):
    register = QUEUE_VECTOR


@defect(
    "msix-config-without-vector-interrupts",
    "4.1.5.4.1-D-01",
    text="configuration changes without a vector send messages of vector 1",
)
class ConfigAnyway(_MapsAnyway):
    register = CONFIG_VECTOR


@defect(
    "msix-message-fixed-while-running",
    "4.1.1-D-01",
    text="after DRIVER_OK, a write to the message of a vector has no effect",
)
class MessageFixed(AlteredPci):
    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        running = self.written["device_status"] & DeviceStatus.DRIVER_OK
        table = msix_table(self.real) if running else None
        at = offset - table.offset if table and table.bar == bar else -1
        if table and 0 <= at < MSIX_ENTRY.size * table.size and at % MSIX_ENTRY.size < CONTROL:
            return
        super().bar_write(bar, offset, width, value)
