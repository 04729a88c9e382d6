"""Data of a notification, on each transport that sends more than a queue's index."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from harness.driver.bus.base import MmioWindow, PciFunction
from harness.driver.device import DeviceDriver
from harness.driver.interface import Buffer
from harness.driver.memory import DmaMemory, Region
from harness.driver.transport.mmio import MmioModern
from harness.driver.transport.pci import PciModern
from harness.virtio.features import Feature, mask
from harness.virtio.mmio import REGISTERS
from harness.virtio.pci import CAP, COMMON_REGISTERS, CapType

NOTIFY_AT = 0x3000
IDENTIFIER = 0xABC
QUEUE = 3


def memory() -> DmaMemory:
    return DmaMemory([Region(0x10000, memoryview(bytearray(1 << 16)))])


class FakePci(PciFunction):
    """Configuration space with four capabilities, and a common configuration in memory."""

    def __init__(self) -> None:
        self.memory = memory()
        self.space = bytearray(256)
        self.space[:8] = bytes.fromhex("f41a421000001000")
        self.space[0x34] = 0x40
        kinds = [CapType.COMMON_CFG, CapType.NOTIFY_CFG, CapType.ISR_CFG, CapType.DEVICE_CFG]
        for number, kind in enumerate(kinds):
            at = 0x40 + 0x20 * number
            following = at + 0x20 if kind is not CapType.DEVICE_CFG else 0
            CAP.pack_into(self.space, at, 9, following, 20, kind, 4, 0, 0x1000 * (kind - 1), 0x1000)
            self.space[at + 16 : at + 20] = (4).to_bytes(4, "little")
        notify = 0x40 + 0x20
        self.space[notify + 8 : notify + 12] = NOTIFY_AT.to_bytes(4, "little")
        self.bar = bytearray(0x5000)
        self.written: list[tuple[int, int, int]] = []
        self.features = 0

    def description(self) -> dict[str, Any]:
        return {}

    def pci_read(self, offset: int, length: int) -> bytes:
        return bytes(self.space[offset : offset + length])

    def pci_write(self, offset: int, data: bytes) -> None:
        self.space[offset : offset + len(data)] = data

    def bar_size(self, bar: int) -> int:
        return len(self.bar) if bar == 4 else 0

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        name = {at: name for name, (at, _) in COMMON_REGISTERS.items()}.get(offset)
        if name == "driver_feature":
            select = self.bar[COMMON_REGISTERS["driver_feature_select"][0]]
            return self.features >> 32 * select & 0xFFFFFFFF
        answers = {"queue_size": 8, "queue_notify_off": 5, "queue_notif_config_data": IDENTIFIER}
        return answers.get(name or "", int.from_bytes(self.bar[offset : offset + width], "little"))

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.written.append((offset, width, value))
        self.bar[offset : offset + width] = value.to_bytes(width, "little")

    def enable_msix(self, vectors: int) -> None: ...

    def take_messages(self, timeout: float) -> Counter[int]:
        return Counter()

    def fileno(self) -> int | None:
        return None

    def take_interrupts(self, timeout: float) -> int:
        return 0

    def unmask_interrupts(self) -> None: ...

    def close(self) -> None: ...


class Driver(DeviceDriver):
    """A driver without a device type: notifications need only the transport's methods."""


Driver.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


def kicks(driver: DeviceDriver) -> None:
    """Notify twice: without an available chain, then with two chains."""
    driver.queue_setup(QUEUE)
    driver.queue_kick(QUEUE)
    heads = [driver.queue_add(QUEUE, [Buffer(0x10000, 16)]) for _ in range(2)]
    driver.queue_publish(QUEUE, heads)
    driver.queue_kick(QUEUE)


@pytest.mark.parametrize(
    ("accepted", "width", "values"),
    [
        ([], 2, [QUEUE, QUEUE]),
        ([Feature.NOTIF_CONFIG_DATA], 2, [IDENTIFIER, IDENTIFIER]),
        ([Feature.NOTIFICATION_DATA], 4, [QUEUE, QUEUE | 2 << 16]),
        (
            [Feature.NOTIFICATION_DATA, Feature.RING_PACKED],
            4,
            [QUEUE | 1 << 31, QUEUE | 2 << 16 | 1 << 31],
        ),
        (
            [Feature.NOTIFICATION_DATA, Feature.NOTIF_CONFIG_DATA],
            4,
            [IDENTIFIER, IDENTIFIER | 2 << 16],
        ),
    ],
)
def test_a_pci_notification(accepted: list[Feature], width: int, values: list[int]) -> None:
    function = FakePci()
    function.features = mask(Feature.VERSION_1, *accepted)

    kicks(Driver(PciModern(function)))

    address = NOTIFY_AT + 5 * 4
    assert [entry for entry in function.written if entry[0] >= NOTIFY_AT] == [
        (address, width, value) for value in values
    ]


class FakeMmio(MmioWindow):
    """A window whose registers hold the written values, except the identity registers."""

    size = 0x200

    def __init__(self) -> None:
        self.memory = memory()
        self.registers = {
            REGISTERS["MagicValue"]: 0x74726976,
            REGISTERS["Version"]: 2,
            REGISTERS["DeviceID"]: 2,
            REGISTERS["QueueSizeMax"]: 8,
        }
        self.notified: list[int] = []

    def description(self) -> dict[str, Any]:
        return {}

    def read(self, offset: int, width: int) -> int:
        return self.registers.get(offset, 0)

    def write(self, offset: int, width: int, value: int) -> None:
        if offset == REGISTERS["QueueNotify"]:
            self.notified.append(value)
        self.registers[offset] = value

    def fileno(self) -> int | None:
        return None

    def take_interrupts(self, timeout: float) -> int:
        return 0

    def unmask_interrupts(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("accepted", "values"),
    [([], [QUEUE, QUEUE]), ([Feature.NOTIFICATION_DATA], [QUEUE, QUEUE | 2 << 16])],
)
def test_an_mmio_notification(accepted: list[Feature], values: list[int]) -> None:
    window = FakeMmio()
    transport = MmioModern(window)
    transport.accept(mask(Feature.VERSION_1, *accepted))

    kicks(Driver(transport))

    assert window.notified == values
