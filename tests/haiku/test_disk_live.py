"""Behaviour in docs/haiku.md that does not depend on the device, checked on a real device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.diskspec import DiskSpec
from harness.driver.interface import Driver
from harness.haiku.constants import (
    B_DEVICE_BUS,
    B_DEVICE_PRETTY_NAME,
    VIRTIO_DEVICE_TYPE_ITEM,
    Ioctl,
    StatusT,
)
from harness.haiku.icon import DEVICE_ICON_SIZE, DRIVE_ICON, DeviceIcon
from harness.haiku.manager import DeviceManager, DeviceNode
from harness.haiku.module import VirtioBlock, open_disk, register_device, supports_device
from harness.targets import GuestTarget, Target
from harness.targets.qtest import QtestTarget
from harness.virtio.device import BLOCK_DEVICE


@pytest.fixture(scope="module", params=["guest-pci", "qtest-pci"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    name = request.param
    target: Target = GuestTarget(boot_timeout=120.0) if name == "guest-pci" else QtestTarget(name)
    yield target
    target.close()


@pytest.fixture
def driver(target: Target) -> Iterator[Driver]:
    disk = target.plug(DiskSpec())
    yield disk.driver
    disk.unplug()


def test_a_node_is_supported_registered_and_published(driver: Driver) -> None:
    attributes: dict[str, str | int] = {
        B_DEVICE_BUS: "virtio",
        VIRTIO_DEVICE_TYPE_ITEM: BLOCK_DEVICE,
    }
    parent = DeviceNode(attributes, driver=driver)
    manager = DeviceManager()
    module = VirtioBlock(manager)
    node = register_device(parent)

    assert supports_device(parent) == 0.6
    assert node.attribute(B_DEVICE_PRETTY_NAME) == "Virtio Block"
    assert module.init_driver(node) is StatusT.B_OK
    assert module.register_child_devices() is StatusT.B_OK
    assert module.name == "disk/virtual/virtio_block/0/raw"
    module.uninit_driver()
    assert driver.status() == 0
    assert manager.open("disk/virtual/virtio_block/0/raw") is not StatusT.B_OK


def test_what_ioctl_answers_by_itself(driver: Driver) -> None:
    with open_disk(driver) as disk:
        name = bytearray(256)
        icon = DeviceIcon(270, bytearray(270))

        assert disk.ioctl(Ioctl.B_GET_ICON_NAME, name) is StatusT.B_OK
        assert name.startswith(b"devices/drive-harddisk\0")
        assert disk.ioctl(Ioctl.B_GET_VECTOR_ICON, icon, DEVICE_ICON_SIZE) is StatusT.B_OK
        assert icon.icon_data == DRIVE_ICON
        assert disk.ioctl(9999, bytearray(4)) is StatusT.B_DEV_INVALID_IOCTL


def test_a_freed_handle_does_nothing_more(driver: Driver) -> None:
    with open_disk(driver) as disk:
        assert disk.read(0, 512)[0] is StatusT.B_OK
        disk.free()
        status, data = disk.read(0, 512)
        assert status is not StatusT.B_OK
        assert data == b""
