# Derived from Haiku's virtio_block driver:
# Copyright 2013, Jérôme Duval, korli@users.berlios.de.
# Distributed under the terms of the MIT License.
"""The driver as a Haiku module: from a node on the virtio bus to a name in devfs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.driver.errors import DriverError
from harness.driver.interface import REQUEST_TIMEOUT, Driver
from harness.haiku.constants import (
    B_DEVICE_BUS,
    B_DEVICE_PRETTY_NAME,
    DEVICE_ID_GENERATOR,
    DEVICE_MODULE_NAME,
    DRIVER_MODULE_NAME,
    VIRTIO_DEVICE_TYPE_ITEM,
    StatusT,
)
from harness.haiku.device import DriverInfo
from harness.haiku.handle import Handle
from harness.haiku.manager import DeviceManager, DeviceNode
from harness.virtio.device import BLOCK_DEVICE


def supports_device(parent: DeviceNode) -> float:
    """Return how well this driver fits a node: 0.6 for a virtio block device, else 0.0.

    Returns -1.0, an error, for a node without a bus.
    """
    bus = parent.attribute(B_DEVICE_BUS)
    if bus is None:
        return -1.0
    if bus != "virtio" or parent.attribute(VIRTIO_DEVICE_TYPE_ITEM, recursive=True) != BLOCK_DEVICE:
        return 0.0
    return 0.6


def register_device(parent: DeviceNode) -> DeviceNode:
    """Return the driver's own node below the node of a device."""
    attributes: dict[str, str | int] = {B_DEVICE_PRETTY_NAME: "Virtio Block"}
    return DeviceNode(attributes, parent, module=DRIVER_MODULE_NAME)


class VirtioBlock:
    """The driver on a node: the hooks of driver_module_info and their state."""

    def __init__(self, manager: DeviceManager) -> None:
        self.manager = manager
        self.info: DriverInfo | None = None
        self.id: int | None = None

    @property
    def name(self) -> str:
        """The disk's name in devfs, once it has an id."""
        return f"disk/virtual/virtio_block/{self.id}/raw"

    def init_driver(self, node: DeviceNode, timeout: float = REQUEST_TIMEOUT) -> StatusT:
        """Use a node of `register_device`. Returns B_NO_INIT if the parent node has no driver."""
        driver = node.parent.driver if node.parent is not None else None
        if driver is None:
            return StatusT.B_NO_INIT
        self.info = DriverInfo(driver, timeout)
        return StatusT.B_OK

    def register_child_devices(self) -> StatusT:
        """Publish the disk under its own id; the id is released if that fails."""
        if self.info is None:
            return StatusT.B_NO_INIT
        number = self.manager.create_id(DEVICE_ID_GENERATOR)
        if number < 0:
            return StatusT(number)
        self.id = number
        status = self.manager.publish_device(self.name, self.info, DEVICE_MODULE_NAME)
        if status is not StatusT.B_OK:
            self._release_id()
        return status

    def uninit_driver(self) -> None:
        """Remove the disk's name, free its id, and stop its device."""
        if self.id is not None:
            self.manager.unpublish_device(self.name)
            self._release_id()
        if self.info is not None:
            info, self.info = self.info, None
            info.uninit_device()

    def _release_id(self) -> None:
        if self.id is not None:
            self.manager.free_id(DEVICE_ID_GENERATOR, self.id)
            self.id = None


@contextmanager
def open_disk(
    driver: Driver, timeout: float = REQUEST_TIMEOUT, manager: DeviceManager | None = None
) -> Iterator[Handle]:
    """Open a block device in all steps (node, driver, publish, open), and undo them afterwards.

    Disks with the same `manager` get different names. Raises DriverError if the
    device cannot be started.
    """
    manager = DeviceManager() if manager is None else manager
    attributes: dict[str, str | int] = {
        B_DEVICE_BUS: "virtio",
        VIRTIO_DEVICE_TYPE_ITEM: BLOCK_DEVICE,
    }
    node = register_device(DeviceNode(attributes, driver=driver))
    module = VirtioBlock(manager)
    try:
        status = module.init_driver(node, timeout)
        if status is StatusT.B_OK:
            status = module.register_child_devices()
        opened = manager.open(module.name) if status is StatusT.B_OK else status
        if not isinstance(opened, Handle):
            raise DriverError(f"the disk could not be opened: {opened.name}")
        yield opened
        opened.free()
    finally:
        module.uninit_driver()
