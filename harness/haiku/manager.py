"""As much of Haiku's device manager as a disk driver meets: nodes, ids, published devices."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from harness.driver.interface import Driver
from harness.haiku.constants import StatusT
from harness.haiku.device import DriverInfo
from harness.haiku.handle import Handle

MAX_ID = 64
"""Ids that a generator can have given out at a time."""


@dataclass
class DeviceNode:
    """A node of the device tree: its attributes, and the driver that the bus attached to it."""

    attributes: dict[str, str | int] = field(default_factory=dict)
    parent: DeviceNode | None = None
    driver: Driver | None = None
    module: str | None = None

    def attribute(self, name: str, recursive: bool = False) -> str | int | None:
        """An attribute of this node or, if `recursive`, of the nearest one above that has it."""
        if name in self.attributes:
            return self.attributes[name]
        if recursive and self.parent is not None:
            return self.parent.attribute(name, recursive)
        return None


class PublishedDevice:
    """A disk under its name in devfs; its device is up while anybody has it open."""

    def __init__(self, info: DriverInfo, module: str) -> None:
        self.info = info
        self.module = module
        self._users = 0
        self._lock = threading.Lock()

    def open(self) -> Handle | StatusT:
        """A handle, or the status that the device could not be brought up with."""
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
    """Gives out ids by generator, and names to devices."""

    def __init__(self) -> None:
        self.devices: dict[str, PublishedDevice] = {}
        self._ids: dict[str, set[int]] = {}
        self._lock = threading.Lock()

    def create_id(self, generator: str) -> int:
        """The lowest free id of a generator; B_ERROR when all are taken."""
        with self._lock:
            taken = self._ids.setdefault(generator, set())
            for number in range(MAX_ID):
                if number not in taken:
                    taken.add(number)
                    return number
        return StatusT.B_ERROR

    def free_id(self, generator: str, number: int) -> StatusT:
        """Take an id back. B_NAME_NOT_FOUND, or B_BAD_VALUE for an id not given out."""
        with self._lock:
            if generator not in self._ids:
                return StatusT.B_NAME_NOT_FOUND
            if number not in self._ids[generator]:
                return StatusT.B_BAD_VALUE
            self._ids[generator].remove(number)
        return StatusT.B_OK

    def publish_device(self, name: str, info: DriverInfo, module: str) -> StatusT:
        """Make a disk known under a name. B_NAME_IN_USE."""
        with self._lock:
            if name in self.devices:
                return StatusT.B_NAME_IN_USE
            self.devices[name] = PublishedDevice(info, module)
        return StatusT.B_OK

    def unpublish_device(self, name: str) -> StatusT:
        """Forget a name; handles that are open stay so. B_NAME_NOT_FOUND."""
        with self._lock:
            if self.devices.pop(name, None) is None:
                return StatusT.B_NAME_NOT_FOUND
        return StatusT.B_OK

    def open(self, name: str) -> Handle | StatusT:
        """Open a published disk. B_NAME_NOT_FOUND, or what its `init_device` gives."""
        device = self.devices.get(name)
        return StatusT.B_NAME_NOT_FOUND if device is None else device.open()
