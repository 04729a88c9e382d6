"""Device status and reset (virtio 2.1, 2.4, 4.1.4.3)."""

import pytest

from conformance.data import sectors, untouched
from conformance.negotiation import told_of_resets
from conformance.raw import RawRead
from conformance.rings import areas, both_rings, plug_ring
from conformance.waiting import SOON, eventually, let_finish, let_pass, trouble
from harness.driver.interface import Request
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.ring import DESC


def shared_memory(disk, packed):
    """Return the contents of a queue's rings, and of each buffer its descriptors point to."""
    rings = areas(disk, packed, disk.queues[0])
    # Descriptors of both formats begin with address and length.
    places = [(address, length) for address, length, _, _ in DESC.iter_unpack(rings[0]) if length]
    return [*rings, *(disk.driver.memory_read(address, length) for address, length in places)]


@clause("2.4.1-D-01", "4.1.4.3.1-D-07")
@reads_only
@pytest.mark.parametrize("running", [True, False], ids=["running", "found"])
def test_status_is_zero_after_a_reset(plug, running):
    driver = plug(start=running).driver
    if not running:
        driver.set_status(DeviceStatus.ACKNOWLEDGE)
    assert driver.status() & (DeviceStatus.DRIVER_OK if running else DeviceStatus.ACKNOWLEDGE)

    driver.set_status(0)

    assert eventually(lambda: driver.status() == 0)


@clause("4.1.4.3.1-D-08")
@on("pci", "modern")
def test_no_queue_is_enabled_after_a_reset(plug):
    driver = plug(queues=3, driver_queues=3).driver

    def enabled():
        values = []
        for index in range(3):
            driver.register_write("queue_select", index)
            values.append(driver.register_read("queue_enable"))
        return values

    assert enabled() == [1, 1, 1]
    driver.reset()

    assert enabled() == [0, 0, 0]


@described("2.4-P-01")
def test_a_device_works_again_after_a_reset(plug):
    disk = plug()
    disk.needs_sectors(4)
    features = disk.driver.accepted()
    assert disk.write(3, sectors(1)).status is Status.OK

    disk.driver.reset()
    disk.start(features)
    completion = disk.read(3)

    assert completion.status is Status.OK
    assert completion.data == sectors(1)
    assert completion.damage == ()


@both_rings
@clause("2.4.1-D-02")
def test_after_a_reset_with_requests_in_flight_the_device_is_silent(plug, packed):
    disk = plug_ring(plug, packed, iops=25)
    disk.needs_descriptors(60)
    driver = disk.driver
    requests = [Request(RequestType.IN, 8 * n, receive=512) for n in range(20)]
    tokens = driver.submit(requests)
    assert eventually(lambda: bool(driver.completed())), (
        "the device has not completed any request yet"
    )
    if len(driver.completed()) == len(tokens):
        pytest.skip("all requests completed before the reset: none was in flight")

    driver.set_status(0)
    assert eventually(lambda: driver.status() == 0)
    before, interrupts = shared_memory(disk, packed), driver.interrupts()
    let_pass(disk=disk)

    assert shared_memory(disk, packed) == before
    assert driver.interrupts() == interrupts


@pytest.mark.parametrize("kick", [False, True], ids=["silent", "notified"])
@on("modern")  # a legacy driver may use the device before DRIVER_OK (3.1.2-L-03)
@clause("2.1.2-D-01")
def test_buffers_made_available_before_driver_ok_wait_for_it(plug, kick):
    disk = plug()
    driver = disk.driver
    disk.backing.write(5, sectors(1))
    agreed = driver.negotiate(driver.accepted())
    driver.queue_setup(0)
    before = driver.interrupts().queue
    request = RawRead.of(driver, sector=5)
    driver.queue_publish(0, [driver.queue_add(0, request.buffers)])
    if kick:
        driver.queue_kick(0)
    let_finish(disk)

    used_idx = driver.queue_state(0).used_idx
    assert used_idx == 0, f"before DRIVER_OK the used index is {used_idx}"
    assert request.data == untouched(512)
    assert driver.interrupts().queue == before

    driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)
    driver.queue_kick(0)
    driver.queue_poll(0)
    assert request.status == Status.OK
    assert request.data == sectors(1)


def break_the_ring(disk):
    """Set an available index that announces more chains than the queue can hold."""
    queue = disk.queues[0]
    disk.driver.memory_write(queue.driver + 2, (queue.size + 1).to_bytes(2, "little"))
    disk.driver.queue_kick(0)


@clause("2.1.2-D-02")
def test_an_impossible_available_index_ends_in_needs_reset(plug):
    disk = plug()

    break_the_ring(disk)
    if eventually(lambda: disk.driver.status() & DeviceStatus.NEEDS_RESET != 0):
        return

    # A device that ignores such an index is in no error state: it serves what is right again.
    disk.driver.memory_write(disk.queues[0].driver + 2, bytes(2))
    error = trouble(
        lambda: disk.driver.request(Request(RequestType.IN, 0, receive=512), timeout=SOON)
    )
    if disk.driver.status() & DeviceStatus.NEEDS_RESET:
        return  # it has looked at the index only now
    assert error is None, f"the device neither needs a reset nor serves a request: {error}"
    pytest.skip("the device ignores the index: it is in no error state")


@clause("2.1.2-D-03")
def test_needs_reset_is_announced_as_a_configuration_change(plug):
    disk = plug()
    break_the_ring(disk)
    if not eventually(lambda: disk.driver.status() & DeviceStatus.NEEDS_RESET != 0):
        pytest.skip("the device does not show NEEDS_RESET")

    announced = eventually(lambda: disk.driver.interrupts().config > 0)
    assert announced, f"NEEDS_RESET is set, and no configuration interrupt comes in {SOON:g} s"


@described("2.4-P-01")
def test_a_reset_brings_a_device_back_that_needs_it(plug):
    disk = plug()
    if not told_of_resets(disk.driver):
        pytest.skip("the back-end has no STATUS and no RESET_DEVICE, so it is told of no reset")
    break_the_ring(disk)
    let_pass(disk=disk)  # lets the device see the bad index before the reset

    disk.driver.reset()
    disk.start()

    assert disk.driver.status() & (DeviceStatus.DRIVER_OK | DeviceStatus.NEEDS_RESET) == (
        DeviceStatus.DRIVER_OK
    )
    assert disk.write(0, sectors(1)).status is Status.OK
    assert disk.backing.read(0, 1) == sectors(1)


@described("2.1-P-01")
def test_the_driver_may_take_its_time_to_initialise_the_device(plug):
    disk = plug()
    driver = disk.driver
    features = driver.accepted()
    disk.backing.write(0, sectors(1))
    driver.reset()
    legacy = driver.transport_kind().endswith("legacy")

    let_pass(0.05)
    driver.set_status(DeviceStatus.ACKNOWLEDGE)
    let_pass(0.05)
    # From here on the driver's own steps, with the same pauses in between.
    agreed = driver.negotiate(features)
    let_pass(0.05)
    driver.queue_setup(0)
    let_pass(0.05)
    driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)
    let_pass(0.05)
    completion = disk.read(0)

    assert legacy or agreed.status & DeviceStatus.FEATURES_OK
    assert completion.status is Status.OK
    assert completion.data == sectors(1)


@described("2.1-P-02")
def test_a_status_that_is_written_again_changes_nothing(plug):
    """A driver that sets a bit writes the others again, too."""
    disk = plug()
    disk.backing.write(0, sectors(20))
    driver = disk.driver
    agreed = driver.negotiate(driver.accepted())
    driver.set_status(agreed.status)
    driver.queue_setup(0)
    driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)

    for sector in range(20):
        completion = disk.read(sector)
        assert completion.status is Status.OK, f"a read after the status was written {sector} times"
        assert completion.data == sectors(20)[512 * sector :][:512]
        driver.set_status(driver.status())
    assert driver.status() & DeviceStatus.DRIVER_OK
    assert driver.accepted() == agreed.accepted
