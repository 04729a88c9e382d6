"""A device while its machine is paused, saved and restored, or reset, or loses the device.

The specification says little about it. From the driver's side nothing happens at a pause, and at a
save and a restore, so the device has to go on where it was. A reset from outside is a reset.
"""

from dataclasses import asdict

import pytest

from conformance.contents import Contents
from conformance.data import mib, sectors
from conformance.pcispace import RESET_SETTLES, capabilities, capability, reset_function
from conformance.rings import areas, both_rings, plug_ring
from conformance.test_msix import start, vectors_of
from conformance.test_pci_interrupts import (
    D3_SETTLES,
    POWER_STATE,
    Table,
    reach_function,
)
from conformance.waiting import PATIENCE, eventually, let_pass, resize
from harness.driver.errors import DriverError
from harness.driver.interface import Request
from harness.report import clause, described, on
from harness.virtio.blk import CONFIG_FIELD, RequestType, Status
from harness.virtio.features import Feature
from harness.virtio.pci import (
    BAR_0,
    BARS,
    CAP_POWER,
    COMMAND,
    NO_VECTOR,
    STATUS,
    STATUS_INTERRUPT,
)
from harness.virtio.ring import DESC

IOPS = 50
COUNT = 20
SHORT = 0.05
"""Seconds in which a disk that does IOPS operations per second would do two."""

BUSY = {"capacity": 512, "iops": IOPS}
"""A disk that is slow enough for requests to be in flight."""

EXPRESS = {"express": True}
"""A function that can be reset alone, where a target has its devices elsewhere."""

NO_SOFT_RESET = 0x8
"""The bit of Power Management Control/Status for a function that forgets nothing in D3."""

FORMATS = [
    pytest.param(packed, extra, id=f"{ring}-{name}")
    for packed, ring in ((False, "split"), (True, "packed"))
    for extra, name in (([], "flags"), ([Feature.EVENT_IDX], "event"))
]
every_way = pytest.mark.parametrize(("packed", "extra"), FORMATS)
"""Decorator for both virtqueue formats, with and without EVENT_IDX, with suppression in use."""

each_once = pytest.mark.parametrize(("packed", "extra"), FORMATS[1:3])
"""Decorator for a split virtqueue with EVENT_IDX, and a packed one without it."""


class Load:
    """Writes and reads in flight on a disk, each of one sector that no other one uses."""

    def __init__(self, disk):
        """Send them. Skip the test if the disk is so fast that none is in flight."""
        disk.needs_sectors(16 * COUNT)
        disk.needs_descriptors(3 * COUNT)
        self.disk = disk
        self.driver = disk.driver
        self.contents = Contents(disk)
        requests = [
            Request(RequestType.OUT, 16 * n, sectors(1, salt=40 + n))
            if n % 2
            else Request(RequestType.IN, 16 * n + 8, receive=512)
            for n in range(COUNT)
        ]
        self.requests = dict(zip(self.driver.submit(requests), requests, strict=True))
        # The first completion shows that the device has looked at the virtqueue.
        if not eventually(lambda: bool(self.driver.completed()), PATIENCE):
            pytest.skip("no request completed before the event")
        if len(self.driver.completed()) == COUNT:
            pytest.skip("all requests completed at once: none was in flight")

    def check_completion(self, token, completion):
        """Assert that a request succeeded, and expect its data on the disk."""
        request = self.requests[token]
        number = f"request {token} (type {request.type}, sector {request.sector})"
        assert completion.status == Status.OK, f"{number} ended with {completion.status:#x}"
        assert completion.damage == (), f"{number}: {completion.damage}"
        if request.type == RequestType.OUT:
            self.contents.write(request.sector, request.data)
        else:
            expected = self.contents.read(request.sector, 1)
            assert completion.data == expected, f"{number} returned other data"

    def check_all_complete_once(self, after):
        """Assert that each request is used once and did what it asks for."""
        completions = self.driver.complete(list(self.requests))
        for token, completion in zip(self.requests, completions, strict=True):
            self.check_completion(token, completion)
        let_pass(SHORT)
        twice = self.driver.queue_poll(0, count=0)
        assert twice == [], f"after {after} chains are used that are not in flight: {twice}"
        self.contents.check(after)

    def forget_what_was_written(self):
        """Expect nothing of the sectors of writes that have no result."""
        for request in self.requests.values():
            if request.type == RequestType.OUT:
                self.contents.may_have_any_value(request.sector, 1)


def check_served(disk):
    """Write and read eight sectors, one request at a time, with an interrupt for each write.

    Each interrupt is awaited first: with EVENT_IDX a look at the completion asks for the next one.
    """
    driver, data = disk.driver, sectors(8, salt=90)
    before = driver.interrupts().queue
    for n in range(8):
        tokens = driver.submit([Request(RequestType.OUT, n, data[512 * n :][:512])])
        driver.wait_interrupt("queue", above=before + n, timeout=PATIENCE)
        (completion,) = driver.complete(tokens, timeout=PATIENCE)
        assert completion.status == Status.OK, f"write {n} ended with {completion.status:#x}"
    found = disk.read(0, 8)
    assert found.status is Status.OK
    assert found.data == data
    assert disk.backing.read(0, 8) == data


class SharedMemory:
    """All memory of a queue that a device may write, as the driver that set it up sees it."""

    def __init__(self, disk, packed):
        self._read = disk.driver.memory_read
        rings = areas(disk, packed, disk.queues[0])
        queue = disk.queues[0]
        places = zip((queue.desc, queue.driver, queue.device), map(len, rings), strict=True)
        # Descriptors of both formats begin with address and length.
        buffers = [(address, size) for address, size, _, _ in DESC.iter_unpack(rings[0]) if size]
        self._areas = [*places, *buffers]

    def check_silent(self, after):
        """Assert that nothing changes within SHORT seconds."""
        before = self._all()
        let_pass(SHORT)
        changed = [
            f"{length} bytes at {address:#x}"
            for (address, length), then, now in zip(self._areas, before, self._all(), strict=True)
            if then != now
        ]
        assert not changed, f"after {after} the device changed {changed}"

    def _all(self):
        return [self._read(*area) for area in self._areas]


def plug_busy(plug, packed, extra, **fields):
    """Return a slow disk whose driver uses notification suppression."""
    disk = plug_ring(plug, packed, extra=extra, **{**BUSY, **fields})
    disk.driver.suppress_notifications(True)
    return disk


@every_way
@described("2.4-P-03")
def test_requests_in_flight_at_a_pause_complete_once(plug, packed, extra):
    disk = plug_busy(plug, packed, extra)
    load = Load(disk)

    with disk.paused():
        SharedMemory(disk, packed).check_silent("a pause had begun")

    load.check_all_complete_once("a pause")
    check_served(disk)


@each_once
@described("2.4-P-04")
def test_requests_in_flight_at_a_save_and_restore_complete_once(plug, packed, extra):
    disk = plug_busy(plug, packed, extra)
    load = Load(disk)

    disk.move()

    load.check_all_complete_once("a save and a restore")
    check_served(disk)


def common_registers(driver, queues):
    """Return the registers of the transport and of each queue that only the driver may change."""
    found = {"num_queues": driver.register_read("num_queues")}
    found["config_msix_vector"] = driver.register_read("config_msix_vector")
    for queue in range(queues):
        driver.register_write("queue_select", queue)
        for name in ("size", "enable", "msix_vector", "notify_off", "desc", "driver", "device"):
            found[f"queue_{name} of queue {queue}"] = driver.register_read(f"queue_{name}")
    return found


def device_state(disk, table, vectors):
    """Return all that a driver can read of a device and that it alone changes, by name."""
    driver = disk.driver
    return {
        **common_registers(driver, 2),
        "device_status": driver.status(),
        "offered features": driver.offered(),
        "accepted features": driver.accepted(),
        **asdict(driver.config()),
        "PCI header": driver.pci_read(0, 64).hex(),
        "MSI-X control": table.control(),
        "MSI-X masks": [table.is_masked(vector) for vector in range(vectors)],
        "MSI-X pending bits": [table.is_pending(vector) for vector in range(vectors)],
        **{
            f"capability {kind:#x} at {at:#x}": driver.pci_read(at, 2).hex()
            for kind, at in capabilities(driver)
        },
    }


def differences(before, after):
    """Return the names whose values differ, with both values."""
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


@on("pci", "modern")
@described("2.4-P-04")
def test_every_register_is_as_before_after_a_save_and_restore(plug):
    """Vectors, a mask and a pending message of the second queue are set before."""
    disk = plug(start=False, queues=2, capacity=256)
    driver = disk.driver
    reach_function(driver)
    vectors = vectors_of(driver)
    if vectors < 3:
        pytest.skip(f"the device has {vectors} vectors; this test uses 3")
    try:
        driver.use_msix(vectors)
    except DriverError as error:
        pytest.skip(f"no MSI-X for this driver: {error.message}")
    assert start(disk, [1, 2]) == [1, 2]
    table = Table(driver)
    table.set_masked(2, True)
    assert driver.request(Request(RequestType.IN, 0, receive=512), queue=1).status == Status.OK
    if not eventually(lambda: table.is_pending(2)):
        pytest.skip("no message is pending for a masked vector")
    before, heard = device_state(disk, table, vectors), driver.interrupts().vectors[2]

    disk.move()

    assert differences(before, device_state(disk, table, vectors)) == {}
    table.set_masked(2, False)
    sent = eventually(lambda: driver.interrupts().vectors[2] > heard)
    assert sent, "no message came after unmasking"
    for queue in range(2):
        completion = driver.request(Request(RequestType.IN, 0, receive=512), queue, PATIENCE)
        assert completion.status == Status.OK, f"queue {queue}"


@described("5.2.5-P-12", "2.4-P-04")
def test_the_cache_mode_is_as_written_after_a_save_and_restore(plug):
    disk = plug(capacity=256, config_wce=True, needs=[Feature.BLK_CONFIG_WCE])
    driver = disk.driver
    written = 1 - (driver.config().writeback or 0)
    driver.config_write(CONFIG_FIELD["writeback"].offset, bytes([written]))
    if driver.config().writeback != written:
        pytest.skip("writeback does not read as it was written")

    disk.move()

    found = driver.config().writeback
    assert found == written, f"writeback is {found} after a save and a restore, and was {written}"


@pytest.mark.parametrize("fields", [{}, {"msix": False}], ids=["msix", "no-msix"])
@on("pci", "modern")
@described("2.4-P-04")
def test_a_pending_interrupt_is_still_pending_after_a_save_and_restore(plug, fields):
    disk = plug(capacity=256, **fields)
    driver = disk.driver
    reach_function(driver)
    driver.service_interrupts(False)
    let_pass(SHORT)
    driver.isr()  # a device may announce a queue that was enabled
    assert disk.read(0).status is Status.OK
    if not eventually(lambda: bool(driver.pci_read(STATUS, 1)[0] & STATUS_INTERRUPT)):
        pytest.skip("no interrupt is pending")

    disk.move()

    assert driver.pci_read(STATUS, 1)[0] & STATUS_INTERRUPT, "PCI's Interrupt Status is 0"
    shown = eventually(lambda: bool(driver.isr() & 1))
    assert shown, "ISR status does not show the used buffer"
    assert driver.isr() == 0, "reading ISR status does not clear it"
    driver.service_interrupts(True)
    check_served(disk)


@on("pci", "modern")
@clause("4.1.4.3.1-D-06")
def test_the_generation_differs_if_the_disk_grew_before_and_after_a_save_and_restore(plug):
    """A driver that has read the first capacity can tell that it has changed."""
    disk = plug(capacity=mib(1))
    driver = disk.driver
    resize(disk, mib(2))
    before = driver.config_generation()
    assert driver.config().capacity == mib(2)

    disk.move()
    resize(disk, mib(3))

    after = driver.config_generation()
    assert after != before, (
        f"the config generation is {after} for {mib(2)} sectors and for {mib(3)} sectors"
    )


@both_rings
@on("pci")
@described("2.4-P-06")
def test_a_device_that_is_unplugged_with_requests_in_flight_is_silent(plug, packed):
    disk = plug_busy(plug, packed, [])
    load = Load(disk)
    shared = SharedMemory(disk, packed)

    disk.remove()

    shared.check_silent("it was removed")
    absent = disk.driver.pci_read(0, 4)
    assert absent == b"\xff" * 4, f"the slot of the removed device reads {absent.hex()}"
    load.forget_what_was_written()
    done = disk.driver.completed()
    for token, completion in zip(done, disk.driver.complete(done), strict=True):
        if completion.status != Status.IOERR:  # a device may fail what it does not do any more
            load.check_completion(token, completion)
    if not disk.through_device:  # otherwise nobody sees the disk any more
        load.contents.check("the removal of the device")
    ended = [process.name for process in disk.processes() if not process.alive()]
    assert not ended, f"{ended} did not survive the removal of a device"


@both_rings
@on("modern")
@clause("2.4.1-D-02")
def test_after_a_system_reset_with_requests_in_flight_the_device_is_silent(plug, packed):
    disk = plug_busy(plug, packed, [])
    Load(disk)
    shared = SharedMemory(disk, packed)

    disk.system_reset()
    if disk.driver.status() != 0:
        pytest.skip("the status is not 0 after the reset, which other tests judge")

    shared.check_silent("a reset of its machine")


@on("pci", "modern")
@described("2.4-P-05")
def test_after_a_system_reset_the_device_is_as_after_a_reset_by_its_driver(plug):
    disk = plug(queues=2, driver_queues=2, **BUSY, prefer={"config_wce": True})
    features = disk.driver.accepted()
    disk.driver.reset()
    expected = reset_state(disk.driver, 2)
    disk.start(features, 2)
    if features & Feature.BLK_CONFIG_WCE.mask:
        disk.driver.config_write(CONFIG_FIELD["writeback"].offset, b"\0")
    load = Load(disk)

    disk.system_reset()

    assert differences(expected, reset_state(disk.driver, 2)) == {}
    load.forget_what_was_written()
    disk.start(features)
    check_served(disk)


ADDRESSES = ("queue_desc", "queue_driver", "queue_device")


def reset_state(driver, queues):
    """Return all that a driver can read of a device after a reset, by name."""
    found = {"device_status": driver.status(), "accepted features": driver.accepted()}
    # The addresses of a queue have no values that a reset gives them.
    registers = common_registers(driver, queues).items()
    found |= {name: value for name, value in registers if not name.startswith(ADDRESSES)}
    found["offered features"] = driver.offered()
    # Without accepted features only the capacity is valid.
    found["capacity"] = driver.config().capacity
    found["ISR status"] = driver.isr()
    return found


@on("pci", "modern")
@clause("4.1.1-D-01")
def test_every_register_is_as_before_after_d3_if_the_function_says_so(plug):
    disk = plug(start=False, queues=2, capacity=256, prefer=EXPRESS)
    driver = disk.driver
    reach_function(driver)
    at = capability(driver, CAP_POWER, "power management")
    state = int.from_bytes(driver.pci_read(at + 4, 2), "little")
    if not state & NO_SOFT_RESET:
        pytest.skip("the function forgets its state in D3 (No_Soft_Reset is 0)")
    vectors = vectors_of(driver)
    try:
        driver.use_msix(vectors)
    except DriverError as error:
        pytest.skip(f"no MSI-X for this driver: {error.message}")
    if vectors < 2:
        pytest.skip(f"the function has {vectors} MSI-X vectors")
    start(disk, [1, min(2, vectors - 1)])
    table = Table(driver)
    table.set_masked(1, True)
    before = device_state(disk, table, vectors)

    for power in (state | POWER_STATE, state & ~POWER_STATE):
        driver.pci_write(at + 4, power.to_bytes(2, "little"))
        let_pass(D3_SETTLES)

    assert differences(before, device_state(disk, table, vectors)) == {}
    for queue in range(2):
        completion = driver.request(Request(RequestType.IN, 0, receive=512), queue, PATIENCE)
        assert completion.status == Status.OK, f"queue {queue}"


def function_reset(disk):
    """Reset the function by the bit of PCI Express. Skip the test if it has none."""
    reset_function(disk.driver)


def bus_reset(disk):
    """Reset the bus that the function is on."""
    disk.bus_reset()


@both_rings
@pytest.mark.parametrize("act", [function_reset, bus_reset], ids=["function", "bus"])
@on("pci", "modern")
@described("2.4-P-05")
def test_a_function_that_is_reset_with_requests_in_flight_is_silent_and_works_again(
    plug, act, packed
):
    disk = plug_busy(plug, packed, [], prefer=EXPRESS)
    driver = disk.driver
    reach_function(driver)
    features = driver.accepted()
    command = driver.pci_read(COMMAND, 2)
    bars = [driver.pci_read(BAR_0 + 4 * number, 4) for number in range(BARS)]
    load = Load(disk)
    shared = SharedMemory(disk, packed)

    act(disk)
    let_pass(RESET_SETTLES)
    shared.check_silent("a reset of the function")
    for number, value in enumerate(bars):
        driver.pci_write(BAR_0 + 4 * number, value)
    driver.pci_write(COMMAND, command)

    assert eventually(lambda: driver.status() == 0)
    assert driver.register_read("config_msix_vector") == NO_VECTOR
    assert driver.isr() == 0
    shared.check_silent("a reset of the function and a new COMMAND")
    load.forget_what_was_written()
    load.contents.check("a reset of the function")
    disk.start(features)
    check_served(disk)
