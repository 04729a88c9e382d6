"""The type of breaches, their registration, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.driver.interface import Buffer, QueueLayout
from harness.targets.disk import Disk
from harness.virtio.blk import REQUEST_HEADER, RequestType
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask
from harness.virtio.ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
)

ACKNOWLEDGE, DRIVER = DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER
DRIVER_OK, FEATURES_OK = DeviceStatus.DRIVER_OK, DeviceStatus.FEATURES_OK
SUSPEND, FAILED = DeviceStatus.SUSPEND, DeviceStatus.FAILED
CHOSEN = ACKNOWLEDGE | DRIVER | FEATURES_OK
RUNNING = CHOSEN | DRIVER_OK
V1 = Feature.VERSION_1.mask
NEXT, WRITE, INDIRECT = DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT

REGISTER_BAR = 4
NOTIFY = 0x3000
DEVICE = 0x2000
"""The BAR of the model's structures, and offsets in it."""

WRITEBACK = 32
NUM_QUEUES = 34
"""Offsets in the device configuration."""

QUEUE_SIZE = 8


@dataclass(frozen=True)
class Breach:
    """A breach: `work` breaks exactly the `rules`. `way` is the target, `spec` fields of the disk.

    `whims` are those that the device needs. `awaits` is the kind of event that the model records
    some time after the work; the disk stays until then.
    """

    work: Callable[[Disk], None]
    rules: frozenset[str]
    way: str = "model-pci"
    whims: tuple[str, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)
    awaits: str = ""

    @property
    def name(self) -> str:
        """Return the name of the breach."""
        return self.work.__name__.strip("_").replace("_", "-")

    @property
    def text(self) -> str:
        """Return what the driver does."""
        return " ".join((self.work.__doc__ or "").split())


BREACHES: list[Breach] = []

Work = Callable[[Disk], None]


def breach(
    *rules: str,
    way: str = "model-pci",
    whims: tuple[str, ...] = (),
    awaits: str = "",
    **spec: Any,
) -> Callable[[Work], Work]:
    """Register the function as a breach of these rules."""

    def decorate(work: Work) -> Work:
        BREACHES.append(Breach(work, frozenset(rules), way, whims, spec, awaits))
        return work

    return decorate


MMIO: dict[str, Any] = {"way": "qtest-mmio"}
LEGACY: dict[str, Any] = {"way": "model-pci-legacy"}
ZONES: dict[str, Any] = {
    "capacity": 16384,
    "zoned": "host-managed",
    "zone_sectors": 1024,
    "zone_capacity": 512,
    "write_granularity": 4096,
    "max_append_sectors": 64,
    "conventional_zones": 1,
    "secure_erase": True,
}


def begin(disk: Disk) -> None:
    """Reset the device, and set ACKNOWLEDGE and DRIVER."""
    disk.driver.reset()
    disk.driver.set_status(ACKNOWLEDGE)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER)


def request_buffers(disk: Disk) -> list[Buffer]:
    """Return the buffers of a read of sector 0."""
    place = disk.driver.alloc(1024)
    disk.driver.memory_write(place, REQUEST_HEADER.pack(RequestType.IN, 0, 0))
    return [
        Buffer(place, REQUEST_HEADER.size),
        Buffer(place + 16, 512, True),
        Buffer(place + 600, 1, True),
    ]


def ring(disk: Disk, *features: Feature, size: int = QUEUE_SIZE) -> QueueLayout:
    """Start the device with one virtqueue."""
    disk.start(mask(Feature.VERSION_1, *features), queue_size=size)
    return disk.queues[0]


def place_of_queue(disk: Disk, features: int = 0, desc: int = 0, driver: int = 0) -> None:
    """Set up a virtqueue whose parts are moved by some bytes, and notify it."""
    disk.driver.negotiate(V1 | features)
    place = disk.driver.alloc(4096)
    registers = {"queue_select": 0, "queue_size": QUEUE_SIZE, "queue_desc": place + desc}
    registers |= {"queue_driver": place + 1024 + driver, "queue_device": place + 2048}
    for name, value in registers.items():
        disk.driver.register_write(name, value)
    disk.driver.register_write("queue_enable", 1)
    disk.driver.set_status(RUNNING)
    disk.driver.bar_write(REGISTER_BAR, NOTIFY, 2, 0)
    disk.driver.status()
