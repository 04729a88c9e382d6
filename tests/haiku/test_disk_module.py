"""From a node on the virtio bus to a name in devfs, and its removal."""

import pytest
from device_model import DeviceModel

from harness.driver.errors import DriverError
from harness.haiku.constants import (
    B_DEVICE_BUS,
    B_DEVICE_PRETTY_NAME,
    DEVICE_ID_GENERATOR,
    DEVICE_MODULE_NAME,
    DRIVER_MODULE_NAME,
    VIRTIO_DEVICE_TYPE_ITEM,
    StatusT,
)
from harness.haiku.handle import Handle
from harness.haiku.manager import MAX_ID, DeviceManager, DeviceNode
from harness.haiku.module import VirtioBlock, open_disk, register_device, supports_device


def node(driver=None, **attributes):
    named = {"bus": B_DEVICE_BUS, "type": VIRTIO_DEVICE_TYPE_ITEM}
    return DeviceNode({named[name]: value for name, value in attributes.items()}, driver=driver)


@pytest.mark.parametrize("other", [*(n for n in range(44) if n != 2), None])
def test_any_other_virtio_device_is_not_supported(other):
    attributes = {} if other is None else {"type": other}
    assert supports_device(node(bus="virtio", **attributes)) == 0.0


def test_a_virtio_block_device_is_supported():
    assert supports_device(node(bus="virtio", type=2)) == 0.6


def test_the_type_may_stand_further_up_but_the_bus_may_not():
    parent = node(bus="virtio", type=2)
    assert supports_device(DeviceNode({B_DEVICE_BUS: "virtio"}, parent)) == 0.6
    assert supports_device(DeviceNode({VIRTIO_DEVICE_TYPE_ITEM: 2}, parent)) == -1.0


def test_another_bus_is_not_supported():
    assert supports_device(node(bus="pci", type=2)) == 0.0


def test_a_node_without_a_bus_is_an_error():
    assert supports_device(node(type=2)) == -1.0


def test_the_drivers_node_has_its_attributes():
    parent = node(bus="virtio", type=2)
    child = register_device(parent)
    assert child.attributes == {B_DEVICE_PRETTY_NAME: "Virtio Block"}
    assert (child.parent, child.module) == (parent, DRIVER_MODULE_NAME)


def drive(manager, device):
    module = VirtioBlock(manager)
    assert module.init_driver(register_device(node(device, bus="virtio", type=2))) is StatusT.B_OK
    assert module.register_child_devices() is StatusT.B_OK
    return module


def test_disks_get_their_own_names_and_are_used_at_the_same_time():
    manager = DeviceManager()
    devices = [DeviceModel() for _ in range(3)]
    modules = [drive(manager, device) for device in devices]

    assert list(manager.devices) == [f"disk/virtual/virtio_block/{n}/raw" for n in range(3)]
    assert {device.module for device in manager.devices.values()} == {DEVICE_MODULE_NAME}
    handles = [manager.open(module.name) for module in modules]
    for n, handle in enumerate(handles):
        assert handle.write(0, bytes([n]) * 512) == (StatusT.B_OK, 512)
    assert [device.read_contents(0, 1) for device in devices] == [b"\0", b"\1", b"\2"]

    modules[1].uninit_driver()
    assert devices[1].status_field == 0
    assert handles[1].read(0, 512) == (StatusT.B_FILE_ERROR, b"")
    assert handles[2].read(0, 512)[0] is StatusT.B_OK


def test_an_id_is_used_again_when_it_is_free():
    manager = DeviceManager()
    modules = [drive(manager, DeviceModel()) for _ in range(3)]
    modules[1].uninit_driver()
    modules[1].uninit_driver()
    assert list(manager.devices) == [
        "disk/virtual/virtio_block/0/raw",
        "disk/virtual/virtio_block/2/raw",
    ]
    assert drive(manager, DeviceModel()).name == "disk/virtual/virtio_block/1/raw"


def test_ids_run_out_and_nothing_is_published_then():
    manager = DeviceManager()
    assert [manager.create_id(DEVICE_ID_GENERATOR) for _ in range(MAX_ID)] == list(range(MAX_ID))
    module = VirtioBlock(manager)
    module.init_driver(register_device(node(DeviceModel())))
    assert module.register_child_devices() is StatusT.B_ERROR
    assert manager.devices == {}


def test_an_id_whose_name_is_taken_is_given_back():
    """Give the id back; Haiku's driver keeps it."""
    manager = DeviceManager()
    other = drive(DeviceManager(), DeviceModel())
    manager.publish_device("disk/virtual/virtio_block/0/raw", other.info, "another driver")
    module = VirtioBlock(manager)
    module.init_driver(register_device(node(DeviceModel())))
    assert module.register_child_devices() is StatusT.B_NAME_IN_USE
    assert manager.create_id(DEVICE_ID_GENERATOR) == 0
    module.uninit_driver()
    assert list(manager.devices) == ["disk/virtual/virtio_block/0/raw"]


def test_generators_do_not_share_ids_and_remember_allocated_ids():
    manager = DeviceManager()
    assert (manager.create_id("a"), manager.create_id("b"), manager.create_id("a")) == (0, 0, 1)
    assert manager.free_id("a", 2) is StatusT.B_BAD_VALUE
    assert manager.free_id("c", 0) is StatusT.B_NAME_NOT_FOUND
    assert manager.free_id("a", 0) is StatusT.B_OK
    assert manager.create_id("a") == 0


def test_a_node_without_a_bus_driver_cannot_be_driven():
    module = VirtioBlock(DeviceManager())
    assert module.init_driver(register_device(node(bus="virtio"))) is StatusT.B_NO_INIT
    assert module.init_driver(DeviceNode()) is StatusT.B_NO_INIT
    assert module.register_child_devices() is StatusT.B_NO_INIT
    module.uninit_driver()


def test_names_that_are_not_published():
    manager = DeviceManager()
    assert manager.open("disk/virtual/virtio_block/0/raw") is StatusT.B_NAME_NOT_FOUND
    assert manager.unpublish_device("nothing") is StatusT.B_NAME_NOT_FOUND


def test_a_disk_that_did_not_come_up_can_be_opened_later():
    manager = DeviceManager()
    device = DeviceModel(refuse_features=True)
    module = drive(manager, device)
    assert manager.open(module.name) is StatusT.B_BAD_VALUE
    device.refuse_features = False
    assert isinstance(manager.open(module.name), Handle)


def test_open_disk_says_why_it_cannot():
    manager = DeviceManager()
    with (
        pytest.raises(DriverError, match="could not be opened: B_BAD_VALUE"),
        open_disk(DeviceModel(blk_size=7), manager=manager),
    ):
        raise AssertionError("it was opened")
    assert manager.devices == {}


def test_open_disk_takes_the_device_down_when_its_user_fails():
    device = DeviceModel()
    with pytest.raises(ZeroDivisionError), open_disk(device):
        raise ZeroDivisionError
    assert device.status_field == 0
