"""Member functions of the model, each on a socket of its own in addition to that of their owner."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.administration import Members, start
from conformance.data import sectors
from conformance.legacymember import LegacyMember
from harness.diskspec import DiskSpec
from harness.driver.errors import DriverError
from harness.driver.interface import Driver, Request
from harness.targets.base import TargetError
from harness.targets.disk import Disk
from harness.targets.model import Model
from harness.virtio.blk import RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.pci import BAR_0, DEVICE, MODERN_DEVICE_ID, SUBSYSTEM

READ = Request(RequestType.IN, 5, receive=512)


@pytest.fixture
def target() -> Iterator[Model]:
    target = Model(name="model-pci")
    yield target
    target.close()


@pytest.fixture
def disk(target: Model) -> Iterator[Disk]:
    """A disk with two members, which no driver has started."""
    disk = Disk(target.plug(DiskSpec(capacity=64, members=2)))
    yield disk
    disk.unplug()


@pytest.fixture
def members(disk: Disk) -> Members:
    """The first member enabled, with all commands in use."""
    found = Members(disk, start(disk))
    LegacyMember(found)
    return found


def test_a_member_serves_its_own_client(disk: Disk, members: Members) -> None:
    disk.backing.write(5, sectors(1))
    driver = disk.member(1)

    driver.start()
    before = driver.interrupts()
    completion = driver.request(READ)
    driver.wait_interrupt("queue", above=before.queue)

    assert (completion.status, completion.data) == (Status.OK, sectors(1))
    assert disk.read(5).data == sectors(1), "the owner still serves its own driver"


def test_a_member_has_the_header_of_a_modern_function_without_bar_0(
    disk: Disk, members: Members
) -> None:
    driver = disk.member(1)

    assert int.from_bytes(driver.pci_read(DEVICE, 2), "little") == MODERN_DEVICE_ID
    assert int.from_bytes(driver.pci_read(SUBSYSTEM, 2), "little") == MODERN_DEVICE_ID
    assert driver.pci_read(BAR_0, 4) == bytes(4)


def test_the_commands_of_the_owner_and_the_bus_of_the_member_reach_the_same_registers(
    disk: Disk, members: Members
) -> None:
    driver = disk.member(1)
    legacy = LegacyMember(members)
    driver.start()
    running = driver.status()

    assert legacy.read("device_status") == running
    legacy.write("queue_select", 1)
    assert driver.register_read("queue_select") == 1
    legacy.write("device_status", 0)
    assert driver.status() == 0
    driver.set_status(DeviceStatus.ACKNOWLEDGE)
    assert legacy.read("device_status") == DeviceStatus.ACKNOWLEDGE


def test_two_members_and_their_owner_are_served_at_once(disk: Disk) -> None:
    members = Members(disk, start(disk), count=2)
    LegacyMember(members)
    drivers = [disk.driver, disk.member(1), disk.member(2)]
    for driver in drivers[1:]:
        driver.start()
    disk.backing.write(5, sectors(1))

    tokens = [driver.submit([READ]) for driver in drivers]
    completions = [driver.complete(taken)[0] for driver, taken in zip(drivers, tokens, strict=True)]

    assert [completion.data for completion in completions] == [sectors(1)] * 3


def test_a_member_without_a_client_uses_the_memory_of_the_driver_of_its_owner(
    disk: Disk, members: Members
) -> None:
    driver = disk.member(1)
    driver.start()
    assert driver.request(READ).status == Status.OK

    driver.close()
    legacy = LegacyMember(members)
    legacy.start()
    (place,) = legacy.publish([5])
    legacy.notify()

    assert legacy.wait_used(1)
    assert legacy.status(place) == Status.OK


def test_a_member_that_is_not_enabled_has_no_client(disk: Disk, members: Members) -> None:
    with pytest.raises(TargetError, match="the vfio-user server"):
        disk.member(2)


def test_a_member_that_is_disabled_hangs_up(disk: Disk, members: Members) -> None:
    driver = disk.member(1)
    driver.start()

    members.capability.disable()

    with pytest.raises(DriverError):
        driver.status()


def test_a_reset_of_the_owner_by_its_bus_hangs_up_on_the_members(
    disk: Disk, members: Members
) -> None:
    driver: Driver = disk.member(1)

    disk.bus_reset()

    with pytest.raises(DriverError):
        driver.status()
    Members(disk, start(disk))
    assert disk.member(1).status() == 0
