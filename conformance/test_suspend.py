"""Suspending a device, and its behaviour while it is suspended (virtio 3.4)."""

import pytest

from conformance.data import mib, sectors, untouched
from conformance.raw import RawRead, send_reads
from conformance.waiting import SOON, eventually, let_pass, trouble
from harness.report import clause, described, on
from harness.virtio.blk import CONFIG_FIELD, STATUS_UNWRITTEN, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.ring import used_size

pytestmark = on("modern")

WRITEBACK = CONFIG_FIELD["writeback"]
RUNNING = DeviceStatus.DRIVER_OK
SUSPENDED = DeviceStatus.SUSPEND
DEAD = DeviceStatus.NEEDS_RESET


def settles(driver, wanted):
    """Wait until only `wanted` of DRIVER_OK, SUSPEND and NEEDS_RESET is set; True on success."""
    return eventually(lambda: driver.status() & (RUNNING | SUSPENDED | DEAD) == wanted)


def suspend(driver):
    """Suspend the device. Skip if that fails; the test of 3.4.2-D-06 checks it."""
    driver.set_status(driver.status() | SUSPENDED)
    if not settles(driver, SUSPENDED):
        pytest.skip(f"the device is not suspended: its status is {driver.status():#04x}")


def resume(driver):
    """Resume the device. Skip if that fails; the test of 3.4.2-D-07 checks it."""
    driver.set_status(driver.status() | RUNNING)
    if not settles(driver, RUNNING):
        pytest.skip(f"the device does not resume: its status is {driver.status():#04x}")


def check_served(read, expected):
    """Assert that a read succeeded, which shows that the device serves requests."""
    assert read.status is Status.OK
    assert read.data == expected


def used_ring(disk):
    queue = disk.queues[0]
    return disk.driver.memory_read(queue.device, used_size(queue.size))


@pytest.mark.parametrize("features_ok", [False, True], ids=["before-features-ok", "after"])
@clause("3.4.2-D-01")
def test_a_device_that_is_not_initialised_ignores_suspend(plug, features_ok):
    disk = plug(extra=[Feature.SUSPEND])
    driver = disk.driver
    features = driver.accepted()
    disk.backing.write(5, sectors(1))
    driver.reset()
    if features_ok:
        driver.negotiate(features)
    else:
        driver.set_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)

    driver.set_status(driver.status() | SUSPENDED)
    let_pass(disk=disk)
    shown = driver.status()

    assert not shown & SUSPENDED, f"before DRIVER_OK the status is {shown:#04x}"
    disk.start(features)
    check_served(disk.read(5), sectors(1))


@clause("3.4.2-D-06")
def test_the_device_suspends_or_needs_a_reset(plug):
    driver = plug(extra=[Feature.SUSPEND]).driver

    driver.set_status(driver.status() | SUSPENDED)

    ended = eventually(
        lambda: driver.status() & (RUNNING | SUSPENDED) == SUSPENDED or driver.status() & DEAD != 0
    )
    assert ended, f"the status stays {driver.status():#04x}"


@clause("3.4.2-D-07")
def test_a_device_that_is_resumed_works_again_or_needs_a_reset(plug):
    disk = plug(extra=[Feature.SUSPEND])
    driver = disk.driver
    disk.backing.write(5, sectors(2))
    assert disk.read(5).status is Status.OK
    suspend(driver)

    driver.set_status(driver.status() | RUNNING)
    ended = eventually(
        lambda: driver.status() & (RUNNING | SUSPENDED) == RUNNING or driver.status() & DEAD != 0
    )

    assert ended, f"the status stays {driver.status():#04x}"
    if not driver.status() & DEAD:
        check_served(disk.read(6), sectors(2)[512:])


@pytest.mark.parametrize("kick", [False, True], ids=["silent", "notified"])
# The driver breaks rules of 3.4.1 here: so this is no test of 3.4.2-D-03.
@described("3.4-P-01")
def test_a_suspended_device_leaves_its_queue_alone(plug, kick):
    disk = plug(extra=[Feature.SUSPEND])
    driver = disk.driver
    disk.backing.write(5, sectors(1))
    request = RawRead.of(driver, sector=5)
    head = driver.queue_add(0, request.buffers)
    suspend(driver)
    before = used_ring(disk), driver.interrupts()

    driver.queue_publish(0, [head])
    if kick:
        driver.queue_kick(0)
    let_pass(disk=disk)
    meanwhile = used_ring(disk), driver.interrupts()
    data = request.data

    assert meanwhile == before
    assert data == untouched(512)
    resume(driver)
    driver.queue_kick(0)
    driver.queue_poll(0)
    assert (request.status, request.data) == (Status.OK, sectors(1))


@clause("3.4.2-D-03")
def test_suspending_leaves_the_configuration_space_alone(plug):
    disk = plug(extra=[Feature.SUSPEND])
    driver = disk.driver
    before = driver.config()

    suspend(driver)
    let_pass(disk=disk)

    assert driver.config() == before


@clause("3.4.2-D-02")
def test_a_suspended_device_ignores_writes_to_its_configuration_space(plug):
    disk = plug(extra=[Feature.SUSPEND, Feature.BLK_CONFIG_WCE], config_wce=True)
    driver = disk.driver
    before = driver.config().writeback
    suspend(driver)

    driver.config_write(WRITEBACK.offset, bytes([1 - before]))
    meanwhile = driver.config_read(WRITEBACK.offset, 1)[0]
    resume(driver)

    assert meanwhile == before
    assert driver.config().writeback == before


@clause("3.4.2-D-04")
def test_a_suspended_device_announces_no_resize(plug):
    disk = plug(capacity=mib(8), extra=[Feature.SUSPEND])
    driver = disk.driver
    suspend(driver)
    before = driver.interrupts()

    disk.resize(mib(16))
    let_pass(disk=disk)

    assert driver.interrupts() == before


@clause("3.4.2-D-05")
def test_a_resize_meanwhile_is_announced_when_the_device_resumes(plug):
    disk = plug(capacity=mib(8), extra=[Feature.SUSPEND])
    disk.needs_announcements()
    driver = disk.driver
    suspend(driver)
    heard = len(driver.config_changes())

    disk.resize(mib(16))
    let_pass(disk=disk)
    resume(driver)
    changes = driver.wait_config_change(above=heard, timeout=SOON)

    assert changes[-1].capacity == mib(16)


def suspended_under_load(disk):
    """Suspend the device while it executes twelve reads, and return the reads."""
    driver = disk.driver
    raised = driver.interrupts().raised
    requests = send_reads(disk, 12)
    if trouble(lambda: driver.wait_interrupt("raised", above=raised, timeout=SOON)):
        pytest.skip("the device completed none of the requests before it was suspended")
    suspend(driver)
    return requests


def begun(request):
    return request.data != untouched(512) or request.status != STATUS_UNWRITTEN


@clause("3.4.2-D-08")
def test_what_the_device_has_begun_is_used_and_announced_before_it_is_suspended(plug):
    disk = plug(extra=[Feature.SUSPEND], iops=10)
    before = disk.driver.interrupts().queue

    requests = suspended_under_load(disk)
    used = disk.driver.queue_state(0).used_idx
    interrupts = disk.driver.interrupts().queue

    assert sum(map(begun, requests)) == used
    assert interrupts > before


@clause("3.4.2-D-03")
def test_a_device_that_was_suspended_at_work_is_silent(plug):
    disk = plug(extra=[Feature.SUSPEND], iops=10)
    driver = disk.driver
    driver.service_interrupts(False)

    suspended_under_load(disk)
    before = used_ring(disk), driver.interrupts().raised
    let_pass(0.5, disk=disk)
    after = used_ring(disk), driver.interrupts().raised

    assert after == before


@clause("3.4.2-D-07")
def test_what_was_left_at_the_suspension_is_served_once_the_device_has_resumed(plug):
    disk = plug(extra=[Feature.SUSPEND], iops=10)
    requests = suspended_under_load(disk)

    resume(disk.driver)
    disk.driver.queue_kick(0)
    disk.driver.queue_poll(0, count=12)

    assert {request.status for request in requests} == {Status.OK}


# --- SUSPEND where it means nothing, twice, and before a reset


@described("3.4-P-02")
def test_suspend_without_the_feature_leaves_a_device_that_serves_or_says_that_it_does_not(plug):
    disk = plug(needs=[Feature.SUSPEND], without=[Feature.SUSPEND])
    disk.backing.write(5, sectors(1))
    driver = disk.driver

    driver.set_status(driver.status() | SUSPENDED)
    let_pass(disk=disk)
    shown = driver.status()

    if shown & (SUSPENDED | DEAD) or not shown & RUNNING:
        pytest.skip(f"the device does not claim to run: its status is {shown:#04x}")
    check_served(disk.read(5), sectors(1))


@clause("3.4.2-D-06", "3.4.2-D-07")
def test_a_device_that_is_suspended_twice_resumes_once(plug):
    disk = plug(extra=[Feature.SUSPEND])
    disk.backing.write(5, sectors(1))
    driver = disk.driver
    suspend(driver)

    driver.set_status(driver.status() | SUSPENDED)
    let_pass(disk=disk)
    shown = driver.status()

    assert shown & DEAD or shown & (RUNNING | SUSPENDED) == SUSPENDED, f"status {shown:#04x}"
    if not shown & DEAD:
        resume(driver)
        check_served(disk.read(5), sectors(1))


@clause("2.4.1-D-01")
def test_the_status_of_a_suspended_device_is_zero_after_a_reset(plug):
    driver = plug(extra=[Feature.SUSPEND]).driver
    suspend(driver)

    driver.set_status(0)

    assert eventually(lambda: driver.status() == 0), f"the status stays {driver.status():#04x}"


@described("2.4-P-01")
def test_a_device_that_was_reset_while_suspended_works_again(plug):
    disk = plug(extra=[Feature.SUSPEND])
    disk.backing.write(5, sectors(1))
    features = disk.driver.accepted()
    suspend(disk.driver)

    disk.driver.reset()
    disk.start(features)

    check_served(disk.read(5), sectors(1))
