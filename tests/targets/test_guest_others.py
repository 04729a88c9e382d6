"""The targets `guest-mmio` and `guest-vhost-user`: their differences to `guest-pci`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.diskspec import DiskSpec
from harness.driver.interface import Request
from harness.targets import GuestTarget, LacksError
from harness.virtio.blk import RequestType, Status

DATA = bytes(range(1, 65)) * 8
PLAIN = DiskSpec(capacity=64)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[GuestTarget]:
    name, _, how = request.param.partition(" ")
    target = GuestTarget(name=name, boot_timeout=120.0, clones=how != "booted")
    yield target
    target.close()


mmio = pytest.mark.parametrize("target", ["guest-mmio"], indirect=True)
vhost_user = pytest.mark.parametrize("target", ["guest-vhost-user"], indirect=True)


@pytest.mark.parametrize("target", ["guest-mmio booted"], indirect=True)
def test_a_window_is_driven_and_its_guest_serves_again(target: GuestTarget) -> None:
    first = target.plug(PLAIN)
    guest = target.guest
    first.driver.start()
    assert first.driver.transport_kind() == "mmio"
    assert target.traits == {"guest", "mmio", "modern"}
    assert not first.driver.owns_pci_configuration()
    assert first.driver.request(Request(RequestType.OUT, 63, DATA)).status == Status.OK
    assert first.backing.read(63, 1) == DATA
    assert first.driver.wait_interrupt("queue", above=0).unexplained == 0
    first.unplug()

    again = target.plug(PLAIN)
    again.driver.start()
    assert target.guest is guest
    read = again.driver.request(Request(RequestType.IN, 63, receive=512))
    assert (read.status, read.data) == (Status.OK, bytes(512))
    again.resize(128)
    assert [change.capacity for change in again.driver.wait_config_change(0)] == [128]
    again.unplug()

    # Its size has changed, so a request for the first size gets another disk.
    another = target.plug(PLAIN)
    assert target.guest is not guest
    assert another.driver.config().capacity == 64
    assert guest and not guest.machine.alive()


@mmio
def test_every_window_has_a_clone_of_its_own(target: GuestTarget) -> None:
    disks = []
    for number in range(2):
        disks.append(target.plug(PLAIN))
        assert target.guest and target.guest.cloned
        disks[number].driver.start()
        written = disks[number].driver.request(Request(RequestType.OUT, number, DATA))
        assert written.status == Status.OK
    machines = [disk.guest.machine for disk in disks]
    assert [disk.backing.read(0, 2) for disk in disks] == [DATA + bytes(512), bytes(512) + DATA]

    for disk in disks:
        disk.leave()
    target.release()

    assert not any(machine.alive() for machine in machines)


def test_a_window_is_not_reached_over_ssh() -> None:
    target = GuestTarget("ssh", name="guest-mmio")
    with pytest.raises(LacksError, match="guest-mmio has no network card"):
        target.plug(PLAIN)
    target.close()


def test_a_window_has_no_queue_size_of_its_own() -> None:
    target = GuestTarget(name="guest-mmio")
    with pytest.raises(LacksError, match="queue size of 1024"):
        target.plug(DiskSpec(queue_size=16))
    target.close()


@vhost_user
def test_a_back_end_outside_qemu_serves_a_guest(target: GuestTarget) -> None:
    for number in range(2):
        disk = target.plug(PLAIN)
        disk.driver.start()
        assert disk.driver.request(Request(RequestType.OUT, number, DATA)).status == Status.OK
        assert disk.backing.read(0, 2) == [DATA + bytes(512), bytes(512) + DATA][number]
        disk.unplug()
    assert [identity.implementation for identity in target.identities()] == [
        "qemu",
        "qemu-storage-daemon",
    ]
    with pytest.raises(LacksError, match="serial"):
        target.plug(DiskSpec(serial="a"))
