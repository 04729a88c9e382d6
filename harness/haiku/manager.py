"""The parts of Haiku's device manager that a disk driver uses: nodes, ids, published devices."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from harness.driver.interface import Driver
from harness.haiku.constants import StatusT
from harness.haiku.device import DriverInfo
from harness.haiku.handle import Handle

MAX_ID = 64
"""Most ids of a generator that can be in use at the same time."""


@dataclass
class DeviceNode:
    """A node of the device tree: its attributes, and the driver that the bus attached to it."""

    attributes: dict[str, str | int] = field(default_factory=dict)
    parent: DeviceNode | None = None
    driver: Driver | None = None
    module: str | None = None

    def attribute(self, name: str, recursive: bool = False) -> str | int | None:
        """Return an attribute of this node or, if `recursive`, of the nearest parent with it."""
        if name in self.attributes:
            return self.attributes[name]
        if recursive and self.parent is not None:
            return self.parent.attribute(name, recursive)
        return None


class PublishedDevice:
    """A disk with a name in devfs; its device is started while a handle is open."""

    def __init__(self, info: DriverInfo, module: str) -> None:
        self.info = info
        self.module = module
        self._users = 0
        self._lock = threading.Lock()

    def open(self) -> Handle | StatusT:
        """Return a handle, or the status of a failed start of the device."""
        with self._lock:
            if not self._users:
                status = self.info.init_device()
                if status is not StatusT.B_OK:
                    return status
            self._users += 1
            return Handle(self.info, self._freed)

    def _freed(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self.info.uninit_device()


class DeviceManager:
    """Registry of ids, by generator, and of published devices, by name."""

    def __init__(self) -> None:
        self.devices: dict[str, PublishedDevice] = {}
        self._ids: dict[str, set[int]] = {}
        self._lock = threading.Lock()

    def create_id(self, generator: str) -> int:
        """Return the lowest free id of a generator, B_ERROR if all are in use."""
        with self._lock:
            taken = self._ids.setdefault(generator, set())
            for number in range(MAX_ID):
                if number not in taken:
                    taken.add(number)
                    return number
        return StatusT.B_ERROR

    def free_id(self, generator: str, number: int) -> StatusT:
        """Free an id. Returns B_NAME_NOT_FOUND, or B_BAD_VALUE for an id that is not in use."""
        with self._lock:
            if generator not in self._ids:
                return StatusT.B_NAME_NOT_FOUND
            if number not in self._ids[generator]:
                return StatusT.B_BAD_VALUE
            self._ids[generator].remove(number)
        return StatusT.B_OK

    def publish_device(self, name: str, info: DriverInfo, module: str) -> StatusT:
        """Publish a disk under a name. Returns B_NAME_IN_USE if the name is taken."""
        with self._lock:
            if name in self.devices:
                return StatusT.B_NAME_IN_USE
            self.devices[name] = PublishedDevice(info, module)
        return StatusT.B_OK

    def unpublish_device(self, name: str) -> StatusT:
        """Remove a name; open handles stay open. Returns B_NAME_NOT_FOUND for an unknown name."""
        with self._lock:
            if self.devices.pop(name, None) is None:
                return StatusT.B_NAME_NOT_FOUND
        return StatusT.B_OK

    def open(self, name: str) -> Handle | StatusT:
        """Open a published disk. Returns B_NAME_NOT_FOUND, or an error of `init_device`."""
        device = self.devices.get(name)
        return StatusT.B_NAME_NOT_FOUND if device is None else device.open()
