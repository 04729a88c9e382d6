"""The targets without a guest, on the QEMU that is installed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.diskspec import DiskSpec
from harness.driver.errors import BadArgumentError, DeviceTimeoutError, DriverError
from harness.driver.interface import Request
from harness.targets import LacksError, TargetError
from harness.targets.qtest import VARIANTS, QtestTarget
from harness.virtio.blk import RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.ring import USED_F_NO_NOTIFY

DATA = bytes(range(1, 65)) * 8


@pytest.fixture(params=[name for name in VARIANTS if name != "qtest-vhost-user"])
def target(request: pytest.FixtureRequest) -> Iterator[QtestTarget]:
    target = QtestTarget(request.param)
    yield target
    target.close()


@pytest.fixture
def modern() -> Iterator[QtestTarget]:
    target = QtestTarget("qtest-pci")
    yield target
    target.close()


def test_a_disk_is_written_read_and_resized(target: QtestTarget) -> None:
    disk = target.plug(DiskSpec(capacity=64, serial="qtest"))
    driver = disk.driver
    driver.start()

    written = driver.request(Request(RequestType.OUT, 63, DATA))
    disk.resize(128)
    changes = driver.wait_config_change(above=0)
    read = driver.request(Request(RequestType.IN, 63, receive=1024))
    named = driver.request(Request(RequestType.GET_ID, receive=20))

    assert written.status == read.status == named.status == Status.OK
    assert disk.backing.read(63, 1) == DATA
    assert read.data == DATA + bytes(512)
    assert named.data.startswith(b"qtest")
    assert [change.capacity for change in changes] == [128]
    assert (written.damage, read.damage) == ((), ())


def test_the_size_of_a_disks_queues_is_what_was_asked_for_or_lacking(target: QtestTarget) -> None:
    if "mmio" in target.traits:
        with pytest.raises(LacksError, match="queue size of 1024"):
            target.plug(DiskSpec(queue_size=16))
    else:
        driver = target.plug(DiskSpec(queue_size=16)).driver
        driver.start()
        assert driver.queue_state(0).size == 16


@pytest.mark.parametrize("name", ["qtest-pci", "qtest-vhost-user"])
@pytest.mark.parametrize(
    ("fields", "lacking"),
    [
        ({"zoned": "host-managed", "zone_sectors": 2048}, "disk's zoned, zone_sectors$"),
        ({"zones_offline": (3,)}, "disk's zones_offline$"),
        ({"lifetime": (1, 0, 0)}, "disk's lifetime$"),
    ],
)
def test_what_only_other_devices_have_is_lacking(
    name: str, fields: dict[str, Any], lacking: str
) -> None:
    target = QtestTarget(name)
    try:
        with pytest.raises(LacksError, match=lacking):
            target.plug(DiskSpec(**fields))
    finally:
        target.close()


def test_a_device_keeps_the_order_of_buffers_or_lacks_the_property(target: QtestTarget) -> None:
    # QEMU's devices have it from 9.2 on; its legacy interfaces never have this bit.
    if target.identities()[0].version < (9, 2):
        with pytest.raises(LacksError, match=r"this QEMU's virtio-blk.* has no property in_order$"):
            target.plug(DiskSpec(in_order=True))
    else:
        offered = target.plug(DiskSpec(in_order=True)).driver.offered()
        assert bool(offered & Feature.IN_ORDER.mask) == ("modern" in target.traits)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_request_that_cannot_be_laid_out_takes_those_before_it_back(packed: bool) -> None:
    target = QtestTarget("qtest-pci")
    try:
        driver = target.plug(DiskSpec(packed=packed)).driver
        driver.start(
            driver.offered() & (Feature.VERSION_1.mask | Feature.RING_PACKED.mask), queue_size=8
        )
        good = Request(RequestType.IN, 0, receive=512)
        for _ in range(20):
            with pytest.raises(BadArgumentError, match="but the pieces"):
                driver.submit([good, good, Request(RequestType.IN, receive=512, writable=(9,))])
            assert driver.request(good).status == Status.OK
    finally:
        target.close()


def test_each_completion_is_one_interrupt(target: QtestTarget) -> None:
    driver = target.plug(DiskSpec()).driver
    driver.start()

    for count in range(5):
        driver.request(Request(RequestType.IN, 0, receive=512))
        assert driver.wait_interrupt("queue", above=count).queue == count + 1
    assert driver.interrupts().raised == 5
    assert driver.interrupts().unexplained == 0


@pytest.mark.parametrize("suppressing", [False, True])
def test_the_driver_asks_for_the_next_interrupt_if_configured(
    modern: QtestTarget, suppressing: bool
) -> None:
    driver = modern.plug(DiskSpec()).driver
    driver.suppress_notifications(suppressing)
    driver.start(driver.offered() & (Feature.VERSION_1.mask | Feature.EVENT_IDX.mask))

    for count in range(5):
        driver.request(Request(RequestType.IN, 0, receive=512))
        driver.wait_interrupt("queue", above=count if suppressing else 0)

    assert driver.interrupts().queue == (5 if suppressing else 1)


def test_the_driver_does_not_notify_a_device_that_suppresses_it_if_configured(
    modern: QtestTarget,
) -> None:
    driver = modern.plug(DiskSpec()).driver
    driver.start(Feature.VERSION_1.mask)
    device_area = driver.queue_setup(0).device
    read = Request(RequestType.IN, 0, receive=512)
    driver.request(read)

    driver.memory_write(device_area, USED_F_NO_NOTIFY.to_bytes(2, "little"))
    driver.suppress_notifications(True)
    tokens = driver.submit([read])
    time.sleep(0.1)
    assert driver.completed() == []
    driver.suppress_notifications(False)
    tokens += driver.submit([read])

    assert [completion.status for completion in driver.complete(tokens)] == [Status.OK] * 2


def test_the_driver_goes_through_the_interface_that_the_traits_declare(
    target: QtestTarget,
) -> None:
    driver = target.plug(DiskSpec()).driver
    bus, *legacy = driver.transport_kind().split("-")

    assert target.traits == {bus, *(legacy or ["modern"])}
    assert bool(driver.offered() & Feature.VERSION_1.mask) == ("modern" in target.traits)
    assert driver.owns_pci_configuration() == ("pci" in target.traits)


def test_traits_do_not_depend_on_the_name_or_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = replace(VARIANTS["qtest-pci"], board="q35")
    for name in ("qtest-pci-q35", "qtest-q35-not-legacy"):
        monkeypatch.setitem(VARIANTS, name, variant)

        assert QtestTarget(name).traits == {"pci", "modern"}


@pytest.mark.parametrize("name", ["qtest-pci", "qtest-mmio"])
def test_a_packed_virtqueue_goes_round_many_times(name: str) -> None:
    target = QtestTarget(name)
    try:
        driver = target.plug(DiskSpec(packed=True)).driver
        offered = driver.offered()
        driver.start(offered & (Feature.VERSION_1.mask | Feature.RING_PACKED.mask), queue_size=7)
        outcome = driver.repeat(Request(RequestType.IN, 0, receive=512), 1000)
        assert outcome.statuses == {Status.OK: 1000}
    finally:
        target.close()


def test_two_disks_share_nothing(modern: QtestTarget) -> None:
    first, second = modern.plug(DiskSpec()), modern.plug(DiskSpec())
    for disk in (first, second):
        disk.driver.start()

    assert first.driver.request(Request(RequestType.OUT, 0, DATA)).status == Status.OK

    assert first.backing.read(0, 1) == DATA
    assert second.backing.read(0, 1) == bytes(512)


def processes() -> set[int]:
    """Return the ids of QEMU processes that this process has started."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == os.getpid() and b"qemu-system" in command:
                found.add(int(entry.name))
    return found


def test_nothing_is_left_after_unplug(modern: QtestTarget) -> None:
    before = processes()
    disk = modern.plug(DiskSpec())
    assert len(processes() - before) == 1

    disk.unplug()

    assert processes() - before == set()


@pytest.mark.parametrize("name", ["qtest-pci", "qtest-pci-legacy", "qtest-vhost-user"])
def test_disks_in_machines_started_ahead_are_like_any(name: str) -> None:
    before = processes()
    target = QtestTarget(name, ahead=True)
    try:
        for capacity in (64, 128, 256):
            disk = target.plug(DiskSpec(capacity=capacity))
            disk.driver.start()
            assert disk.driver.config().capacity == capacity
            assert disk.driver.request(Request(RequestType.OUT, 0, DATA)).status == Status.OK
            assert disk.backing.read(0, 1) == DATA
            target.check()
            disk.unplug()
            target.check()
        with pytest.raises(TargetError):
            target.plug(DiskSpec(logical_block_size=513))
        left = target.plug(DiskSpec())
        left.driver.start()
    finally:
        target.close()
    assert processes() - before == set()


def test_the_end_of_qemu_is_reported_at_once(modern: QtestTarget) -> None:
    before = processes()
    disk = modern.plug(DiskSpec())
    disk.driver.start()
    (pid,) = processes() - before
    os.kill(pid, signal.SIGKILL)

    deadline = time.monotonic() + 60
    with pytest.raises(DriverError, match=r"QEMU (ended|closed)"):
        # A killed process may answer once more before it is gone.
        while time.monotonic() < deadline:
            disk.driver.status()
    with pytest.raises(TargetError, match="SIGKILL"):
        while time.monotonic() < deadline:
            modern.check()


def test_a_qemu_that_dies_ends_a_wait_for_its_interrupts(modern: QtestTarget) -> None:
    before = processes()
    disk = modern.plug(DiskSpec())
    disk.driver.start()
    (pid,) = processes() - before

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(DriverError, match="QEMU is gone: it closed the qtest socket"):
        disk.driver.wait_interrupt("queue", above=0)


def test_a_machine_can_be_moved_twice_and_goes_on(target: QtestTarget) -> None:
    disk = target.plug(DiskSpec(capacity=64))
    disk.driver.start()
    pids = [process.pid for process in disk.processes()]

    for sector in range(2):
        disk.move()
        pids += [process.pid for process in disk.processes()]
        written = disk.driver.request(Request(RequestType.OUT, sector, DATA))
        assert written.status == Status.OK
    disk.unplug()

    assert len(set(pids)) == 3


def test_a_device_is_removed_where_the_board_can_do_that(target: QtestTarget) -> None:
    disk = target.plug(DiskSpec(capacity=64))
    disk.driver.start()

    if target.variant.board != "pc":
        with pytest.raises(LacksError, match="without a guest"):
            disk.remove()
        return
    disk.remove()

    assert disk.driver.pci_read(0, 2) == b"\xff\xff"
    disk.unplug()


def test_the_driver_has_memory_above_4_gib(modern: QtestTarget) -> None:
    driver = modern.plug(DiskSpec(capacity=64)).driver

    driver.allocate_from(1 << 32)
    above = driver.alloc(512)
    driver.allocate_from(None)

    assert above == 1 << 32
    assert driver.alloc(512) < 1 << 32
    with pytest.raises(BadArgumentError, match="0xfffff000"):
        driver.allocate_from((1 << 32) - 4096)


def test_a_missing_qemu_is_one_line() -> None:
    with pytest.raises(TargetError, match="no-such-qemu"):
        QtestTarget("qtest-pci", "/no-such-qemu").plug(DiskSpec())


def test_a_legacy_queue_has_the_size_it_has() -> None:
    target = QtestTarget("qtest-pci-legacy")
    try:
        driver = target.plug(DiskSpec()).driver
        with pytest.raises(BadArgumentError, match="the device's size, 256"):
            driver.start(queue_size=8)
    finally:
        target.close()


@pytest.mark.parametrize("name", ["qtest-pci", "qtest-mmio", "qtest-pci-iothreads"])
def test_a_disk_is_idle_when_qemu_has_completed_its_requests(name: str) -> None:
    target = QtestTarget(name)
    knows = name != "qtest-pci-iothreads"
    try:
        disk = target.plug(DiskSpec(iops=50))
        disk.driver.start()
        tokens = disk.driver.submit(
            [Request(RequestType.IN, 9 * n, receive=512) for n in range(16)]
        )

        assert disk.idle(0.01) is False
        assert disk.idle(10) is knows
        if knows:
            assert sorted(disk.driver.completed()) == tokens
    finally:
        target.close()


def test_a_disk_whose_qemu_has_ended_is_not_idle(modern: QtestTarget) -> None:
    disk = modern.plug(DiskSpec())
    disk.kill()

    assert disk.idle(10) is False


def test_a_disk_is_not_called_idle_before_its_queues_are_set_up(modern: QtestTarget) -> None:
    disk = modern.plug(DiskSpec(queues=2))

    disk.driver.start(queues=1)
    half = disk.idle(10)
    disk.driver.start(queues=2)
    whole = disk.idle(10)
    disk.driver.reset()

    assert (half, whole, disk.idle(10)) == (False, True, False)


@pytest.mark.parametrize("name", ["qtest-pci-legacy", "qtest-mmio-legacy"])
def test_a_legacy_interface_has_32_feature_bits(name: str) -> None:
    target = QtestTarget(name)
    try:
        driver = target.plug(DiskSpec()).driver
        with pytest.raises(BadArgumentError, match="0 to 31"):
            driver.negotiate(Feature.VERSION_1.mask)
    finally:
        target.close()


@pytest.mark.parametrize("name", ["qtest-pci", "qtest-pci-legacy"])
def test_msix_messages_come_on_the_vectors_they_are_mapped_to(name: str) -> None:
    target = QtestTarget(name)
    try:
        disk = target.plug(DiskSpec(queues=2))
        driver = disk.driver
        driver.use_msix(3)
        wanted = Feature.VERSION_1.mask | Feature.BLK_MQ.mask
        driver.start(driver.offered() & wanted, queues=2)
        for queue, expected in ((0, (0, 1, 0)), (1, (0, 1, 1)), (1, (0, 1, 2))):
            driver.request(Request(RequestType.IN, 0, receive=512), queue=queue)
            driver.wait_interrupt("queue", above=sum(expected) - 1)
            assert driver.interrupts().vectors == expected

        disk.resize(20000)
        assert [change.capacity for change in driver.wait_config_change(0)] == [20000]
        assert driver.interrupts().vectors == (1, 1, 2)
    finally:
        target.close()


@pytest.mark.parametrize("name", ["qtest-pci", "qtest-mmio"])
def test_a_wait_for_a_queue_ends_soon_if_the_device_needs_a_reset(name: str) -> None:
    target = QtestTarget(name)
    try:
        driver = target.plug(DiskSpec()).driver
        driver.negotiate(Feature.VERSION_1.mask)
        avail_idx = driver.queue_setup(0).driver + 2
        driver.set_status(driver.status() | DeviceStatus.DRIVER_OK)
        driver.memory_write(avail_idx, (2000).to_bytes(2, "little"))
        driver.queue_kick(0)
        with pytest.raises(DeviceTimeoutError, match=r"chains on queue 0, but .* needs a reset"):
            driver.queue_poll(0)
    finally:
        target.close()


def test_more_vectors_than_there_are_is_refused(modern: QtestTarget) -> None:
    driver = modern.plug(DiskSpec()).driver
    with pytest.raises(DriverError, match="MSI-X vectors, not 100"):
        driver.use_msix(100)


def test_mmio_has_no_msix() -> None:
    target = QtestTarget("qtest-mmio")
    try:
        with pytest.raises(DriverError, match="no MSI-X"):
            target.plug(DiskSpec()).driver.use_msix(1)
    finally:
        target.close()


def test_a_queue_is_reset_alone(modern: QtestTarget) -> None:
    disk = modern.plug(DiskSpec(iops=10))
    driver = disk.driver
    driver.start(driver.offered() & (Feature.VERSION_1.mask | Feature.RING_RESET.mask))
    tokens = driver.submit([Request(RequestType.IN, n, receive=512) for n in range(20)])

    driver.queue_reset(0)

    with pytest.raises(BadArgumentError, match="queue 0 was not set up"):
        driver.queue_state(0)
    with pytest.raises(BadArgumentError, match="no such requests"):
        driver.complete(tokens)
    driver.queue_setup(0, 8)
    assert driver.request(Request(RequestType.IN, 0, receive=512)).status == Status.OK
    assert driver.queue_state(0).used_idx == 1


def test_a_queue_of_a_legacy_device_cannot_be_reset_alone() -> None:
    target = QtestTarget("qtest-pci-legacy")
    try:
        driver = target.plug(DiskSpec()).driver
        driver.start()
        with pytest.raises(DriverError, match="cannot be reset alone"):
            driver.queue_reset(0)
    finally:
        target.close()


def test_a_back_end_outside_qemu_serves_the_disk() -> None:
    target = QtestTarget("qtest-vhost-user")
    try:
        before = processes()
        disk = target.plug(DiskSpec(capacity=64))
        disk.driver.start()

        written = disk.driver.request(Request(RequestType.OUT, 63, DATA))

        assert written.status == Status.OK
        assert disk.backing.read(63, 1) == DATA
        assert [identity.implementation for identity in target.identities()] == [
            "qemu",
            "qemu-storage-daemon",
        ]
        with pytest.raises(LacksError, match="serial"):
            target.plug(DiskSpec(serial="a"))
        disk.unplug()
        assert processes() - before == set()
    finally:
        target.close()
