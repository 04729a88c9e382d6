"""The targets `guest-pci-...`: one boot each, and their differences to `guest-pci`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.diskspec import DiskSpec
from harness.driver.errors import BadArgumentError, DriverError, NoDeviceError
from harness.driver.interface import Buffer, Request
from harness.targets import GuestTarget
from harness.targets.guest.variants import VARIANTS
from harness.virtio.blk import RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature

DATA = bytes(range(1, 65)) * 8
READ = Request(RequestType.IN, 5, receive=512)


@pytest.fixture(scope="module", params=[name for name in VARIANTS if name.startswith("guest-pci-")])
def target(request: pytest.FixtureRequest) -> Iterator[GuestTarget]:
    target = GuestTarget(name=request.param, boot_timeout=120.0)
    yield target
    target.close()


only_q35 = pytest.mark.parametrize("target", ["guest-pci-q35"], indirect=True)
through_uio = pytest.mark.parametrize(
    "target", ["guest-pci-legacy", "guest-pci-transitional"], indirect=True
)


def test_a_disk_is_written_read_and_resized(target: GuestTarget) -> None:
    disk = target.plug(DiskSpec(capacity=64))
    driver = disk.driver
    driver.start()

    written = driver.request(Request(RequestType.OUT, 63, DATA))
    disk.resize(128)
    changes = driver.wait_config_change(above=0)
    read = driver.request(Request(RequestType.IN, 63, receive=1024))

    assert written.status == read.status == Status.OK
    assert disk.backing.read(63, 1) == DATA
    assert read.data == DATA + bytes(512)
    assert [change.capacity for change in changes] == [128]
    assert (written.damage, read.damage) == ((), ())
    disk.unplug()


def test_each_completion_is_one_interrupt(target: GuestTarget) -> None:
    disk = target.plug(DiskSpec())
    disk.driver.start()

    for count in range(5):
        disk.driver.request(READ)
        assert disk.driver.wait_interrupt("queue", above=count).queue == count + 1
    counted = disk.driver.interrupts()
    assert (counted.config, counted.raised) == (0, 5)
    disk.resize(50_000)
    counted = disk.driver.wait_interrupt("config", above=0)
    assert (counted.config, counted.raised) == (1, 6)
    assert (counted.unexplained, counted.vectors) == (0, ())
    disk.unplug()


def test_what_is_driven_shows(target: GuestTarget) -> None:
    disk = target.plug(DiskSpec())
    shown = disk.driver.description()
    legacy = "legacy" in target.traits
    q35 = target.name.endswith("q35")

    agreed = disk.driver.start()

    assert disk.driver.transport_kind() == ("pci-legacy" if legacy else "pci")
    assert not disk.driver.owns_pci_configuration()
    assert shown["address"] == ("0000:01:00.0" if q35 else "0000:00:04.0")
    # A transitional device has its own PCI device id.
    assert shown["id"] == ("1af4:1042" if q35 else "1af4:1001")
    assert bool(agreed.accepted & Feature.VERSION_1.mask) == (not legacy)
    assert bool(agreed.accepted & Feature.ACCESS_PLATFORM.mask) == q35
    disk.unplug()


def test_disks_share_nothing_and_come_and_go(target: GuestTarget) -> None:
    for _ in range(3):
        disks = [target.plug(DiskSpec()) for _ in range(2)]
        for number, disk in enumerate(disks):
            disk.driver.start()
            outcome = disk.driver.request(Request(RequestType.OUT, number, DATA))
            assert outcome.status == Status.OK
        assert disks[0].backing.read(0, 2) == DATA + bytes(512)
        assert disks[1].backing.read(0, 2) == bytes(512) + DATA
        for disk in disks:
            disk.unplug()


def test_a_function_has_one_driver_at_a_time(target: GuestTarget) -> None:
    disk = target.plug(DiskSpec())
    assert target.guest
    kind, address = target.variant.kind, disk.driver.description()["address"]

    with pytest.raises(NoDeviceError, match="already driven"):
        target.guest.agent.attach(kind, address)
    disk.driver.close()
    target.guest.agent.attach(kind, address).close()

    disk.unplug()


@pytest.mark.parametrize("target", ["guest-pci-q35", "guest-pci-transitional"], indirect=True)
def test_a_packed_virtqueue_goes_round_many_times(target: GuestTarget) -> None:
    disk = target.plug(DiskSpec(packed=True))
    needed = Feature.VERSION_1.mask | Feature.RING_PACKED.mask | Feature.ACCESS_PLATFORM.mask
    disk.driver.start(disk.driver.offered() & needed, queue_size=7)
    assert disk.driver.accepted() & Feature.RING_PACKED.mask

    assert disk.driver.repeat(READ, 1000).statuses == {Status.OK: 1000}

    disk.unplug()


@through_uio
def test_uio_has_no_messages(target: GuestTarget) -> None:
    disk = target.plug(DiskSpec())
    with pytest.raises(DriverError, match="uio_pci_generic passes INTx only"):
        disk.driver.use_msix(1)
    disk.unplug()


@pytest.mark.parametrize("target", ["guest-pci-legacy"], indirect=True)
def test_a_legacy_interface_has_32_feature_bits(target: GuestTarget) -> None:
    disk = target.plug(DiskSpec())
    with pytest.raises(BadArgumentError, match="0 to 31"):
        disk.driver.negotiate(Feature.VERSION_1.mask)
    disk.unplug()


@only_q35
def test_messages_are_counted_by_vector(target: GuestTarget) -> None:
    disk = target.plug(DiskSpec(queues=2))
    driver = disk.driver
    driver.use_msix(3)
    driver.start(queues=2)

    for queue, expected in ((0, (0, 1, 0)), (1, (0, 1, 1)), (1, (0, 1, 2))):
        driver.request(READ, queue=queue)
        driver.wait_interrupt("queue", above=sum(expected) - 1)
        assert driver.interrupts().vectors == expected
    disk.resize(20_000)
    assert [change.capacity for change in driver.wait_config_change(0)] == [20_000]
    assert driver.interrupts().vectors == (1, 1, 2)
    assert "3 vectors" in driver.description()["interrupt"]

    # Back to the interrupt line only.
    driver.reset()
    driver.use_msix(0)
    driver.start()
    before = driver.interrupts().raised
    driver.request(READ)
    after = driver.wait_interrupt("queue", above=3)
    assert (after.raised - before, after.vectors) == (1, ())
    disk.unplug()


@only_q35
def test_more_vectors_than_there_are_is_refused(target: GuestTarget) -> None:
    disk = target.plug(DiskSpec())
    with pytest.raises(DriverError, match="MSI-X vectors, not 100"):
        disk.driver.use_msix(100)
    disk.driver.start()
    assert disk.driver.request(READ).status == Status.OK
    disk.unplug()


@only_q35
def test_the_device_goes_by_the_iommu(target: GuestTarget) -> None:
    """Check that the device cannot reach a buffer that the IOMMU does not map."""
    disk = target.plug(DiskSpec())
    driver = disk.driver
    driver.start()

    nowhere = 1 << 30  # an address below all mappings of the driver
    head = driver.queue_add(0, [Buffer(nowhere, 16), Buffer(nowhere + 16, 1, writable=True)])
    driver.queue_publish(0, [head])
    driver.queue_kick(0)
    driver.wait_interrupt("raised", above=0)

    assert driver.status() & DeviceStatus.NEEDS_RESET
    driver.start()
    assert driver.request(READ).status == Status.OK
    disk.unplug()
