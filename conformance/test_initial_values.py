"""Values before the driver has written anything, and again after a reset (virtio 2.4, 4.1.4.3)."""

import pytest

from conformance.data import needed
from conformance.negotiation import told_of_resets
from conformance.rings import both_rings, plug_ring
from conformance.waiting import eventually, let_pass
from harness.driver.errors import DriverError
from harness.driver.interface import CANARY, Buffer, Request
from harness.report import clause, described, on
from harness.virtio.blk import (
    CONFIG_FIELD,
    CONFIG_FIELDS,
    REQUEST_HEADER,
    RequestType,
    Status,
)
from harness.virtio.features import Feature
from harness.virtio.pci import NO_VECTOR

SMALL = {"capacity": 64, "queues": 3}
WRITEBACK = CONFIG_FIELD["writeback"]

INITIAL = [
    pytest.param("device_status", 0, id="device_status", marks=described("2.4-P-02")),
    pytest.param("queue_enable", 0, id="queue_enable", marks=clause("4.1.4.3.1-D-08")),
    # 4.1.4.3.1-D-09 is about a device with which RING_RESET was negotiated.
    pytest.param("queue_reset", 0, id="queue_reset", marks=described("2.4-P-02")),
    pytest.param(
        "config_msix_vector",
        NO_VECTOR,
        id="config_msix_vector",
        marks=clause("4.1.5.1.2.1-D-07"),
    ),
    pytest.param(
        "queue_msix_vector", NO_VECTOR, id="queue_msix_vector", marks=clause("4.1.5.1.2.1-D-07")
    ),
]


def queues_of(driver):
    """Return the indices of the queues of a modern PCI device, at most 8."""
    return range(min(driver.register_read("num_queues"), 8))


def values(driver, register):
    """Return the values of a register: of each queue, if each queue has one."""
    if not register.startswith("queue_"):
        return [driver.register_read(register)]
    found = []
    for queue in queues_of(driver):
        driver.register_write("queue_select", queue)
        found.append(driver.register_read(register))
    return found


@pytest.mark.parametrize(("register", "value"), INITIAL)
@on("pci", "modern")
def test_a_register_has_its_initial_value_before_anything_is_written(plug, register, value):
    driver = plug(start=False, prefer=SMALL).driver
    if register == "queue_reset" and not driver.offered() & Feature.RING_RESET.mask:
        pytest.skip("the device does not offer RING_RESET")

    found = values(driver, register)

    assert set(found) == {value}, f"{register} is {[hex(n) for n in found]}, not {value:#x}"


@pytest.mark.parametrize(
    ("register", "ones"),
    [
        ("device_feature_select", (0, 1, 5, 0)),
        ("driver_feature_select", (1, 0, 1)),
        ("queue_select", (0, 1, 0)),
    ],
)
@on("pci", "modern")
@described("4.1.4.3-P-03")
def test_a_selector_reads_back(plug, register, ones):
    driver = plug(start=False, prefer=SMALL).driver

    for value in ones:
        driver.register_write(register, value)
        found = driver.register_read(register)
        assert found == value, f"{register} reads {found:#x}, and {value:#x} was written"


@on("pci", "modern")
@described("4.1.4.3-P-02")
def test_num_queues_of_the_transport_counts_every_request_queue(plug):
    """The registers know at least the queues that the configuration space counts.

    They may count more: num_queues is a maximum, and a queue with queue_size 0 is not there.
    """
    driver = plug(prefer=SMALL).driver
    count, requests = driver.register_read("num_queues"), driver.config().num_queues or 1

    assert count >= requests, f"num_queues is {count} in the registers, and {requests} in the disk"
    for queue in range(min(requests, 64)):
        driver.register_write("queue_select", queue)
        assert driver.register_read("queue_size"), f"queue {queue} of {requests} has size 0"


def pending(driver):
    """Return what the device shows as pending; on PCI, reading it clears it."""
    kind = driver.transport_kind()
    return driver.isr() if kind.startswith("pci") else driver.register_read("InterruptStatus")


@pytest.mark.parametrize(
    "transport",
    [
        pytest.param("pci", marks=[on("pci"), described("4.1.4.5-P-01")]),
        pytest.param("mmio", marks=[on("mmio"), clause("4.2.2.1-D-04")]),
    ],
)
def test_nothing_is_pending_before_anything_has_happened(plug, transport):
    driver = plug(start=False).driver

    shown = pending(driver)

    assert shown == 0, f"{transport}: {shown:#x} is pending in a device that was not used"


@on("pci")
@described("4.1.4.5-P-01")
def test_nothing_is_pending_after_a_reset(plug):
    """The driver had not read the ISR status of a completion."""
    disk = plug()
    driver = disk.driver
    driver.service_interrupts(False)
    assert disk.read(0).status is Status.OK
    let_pass(disk=disk)

    driver.set_status(0)
    assert eventually(lambda: driver.status() == 0)

    shown = driver.isr()
    assert shown == 0, f"ISR status is {shown:#x} after a reset"


REGISTERS = {
    "pci": (
        "device_status",
        "config_msix_vector",
        "num_queues",
        "queue_size",
        "queue_msix_vector",
        "queue_enable",
        "queue_notify_off",
    ),
    "mmio": ("Status", "QueueSizeMax", "QueueReady", "InterruptStatus"),
}
"""Registers that are the same after every reset. What is not described after a reset is left out:
the selectors, the addresses of queues, and driver_feature."""


def registers(driver):
    """Return all values of these registers; none on a transport without registers."""
    kind = driver.transport_kind()
    if kind == "pci":
        return {name: values(driver, name) for name in REGISTERS["pci"]}
    if kind == "mmio":
        shown = {}
        for queue in range(4):
            driver.register_write("QueueSel", queue)
            for name in REGISTERS["mmio"]:
                shown[name, queue] = driver.register_read(name)
        return shown
    return {}


def fields(driver):
    """Return all fields of the configuration space that a driver may read now."""
    offered = driver.offered()
    return {
        field.name: driver.config_read(field.offset, field.size)
        for field in CONFIG_FIELDS
        if field.offset + field.size <= driver.config_size()
        and (field.feature is None or offered & field.feature.mask)
        and field is not WRITEBACK  # it has a meaning after FEATURES_OK only
    }


@on("modern")
@described("2.4-P-01")
def test_after_a_reset_every_register_and_field_is_as_at_first(plug):
    """Everything that a driver can set is changed before: features, sizes, vectors, writeback.

    The cache mode after a reset is the device's choice (virtio 5.2.5): it is not compared.
    """
    disk = plug(start=False, prefer=SMALL)
    driver = disk.driver
    driver.reset()
    first = registers(driver), fields(driver)
    accepted = driver.negotiate().accepted
    several = min(driver.config().num_queues or 1, 3)
    wce = bool(accepted & Feature.BLK_CONFIG_WCE.mask) and told_of_resets(driver)

    disk.start(accepted, several)
    largest = disk.queues[0].size
    indirect = bool(accepted & Feature.INDIRECT_DESC.mask)
    if not indirect:
        disk.needs_descriptors(4)

    for turn, most in enumerate((largest, 4, 2 if indirect else 4)):
        size = min(most, largest)
        with_msix(driver, turn)
        disk.start(accepted, several, size)
        if wce:
            driver.config_write(WRITEBACK.offset, bytes([1 - driver.config().writeback]))
        for queue in range(several):
            # A chain has no more descriptors than the queue (virtio 2.7.5.3.1).
            together = (512 + 1,) if size < 3 else ()
            read = Request(RequestType.IN, queue, receive=512, writable=together)
            needed(driver.request(read, queue), f"a read on queue {queue}")
        driver.reset()
        assert registers(driver) == first[0], f"after reset {turn + 1}"
        assert fields(driver) == first[1], f"after reset {turn + 1}"


def with_msix(driver, turn):
    """Use MSI-X in every second turn, where there is any."""
    driver.reset()
    if driver.transport_kind() == "pci":
        try:
            driver.use_msix(2 if turn % 2 else 0)
        except DriverError:
            return


ROUNDS = 5


def in_flight(disk, turn, type, length, fill):
    """Fill the queue with requests, reset the device soon after, and return their areas.

    The areas hold `fill`. `turn` chooses the time of the reset. The status bytes follow the last
    area.
    """
    driver = disk.driver
    count = min(disk.queues[0].size // 3, 16) or 1  # a driver in a guest has 2 MiB of memory
    areas = driver.alloc(count * (length + 1))
    driver.memory_write(areas, fill * (count * length))
    heads = []
    for number in range(count):
        header = driver.alloc(REQUEST_HEADER.size)
        driver.memory_write(header, REQUEST_HEADER.pack(type, 0, 0))
        buffers = [
            Buffer(header, REQUEST_HEADER.size),
            Buffer(areas + number * length, length, type == RequestType.IN),
            Buffer(areas + count * length + number, 1, True),
        ]
        heads.append(driver.queue_add(0, buffers))
    driver.queue_publish(0, heads)
    driver.queue_kick(0)
    let_pass(0.0003 * turn)
    driver.set_status(0)
    assert eventually(lambda: driver.status() == 0), "the device does not end its reset"
    return areas, count


def longest(config):
    """Return the bytes of a long segment that the device takes: 64 KiB, or its limits.

    Skip the test if no segment holds a sector.
    """
    length = min(config.size_max or 2**16, 2**16, config.capacity * 512)
    if length < 512:
        pytest.skip(f"a segment has at most {length} bytes, and a sector has 512")
    return length - length % 512


@both_rings
@clause("2.4.1-D-02")
def test_nothing_in_flight_touches_memory_after_a_reset(plug, packed):
    """The queue is full of large reads, and the reset comes at another time in each round."""
    disk = plug_ring(plug, packed, prefer={"capacity": 4096})
    driver, features = disk.driver, disk.driver.accepted()
    if disk.queues[0].size < 3:
        pytest.skip("a request does not fit into the queue")
    length, canary = longest(driver.config()), bytes([CANARY])

    for turn in range(ROUNDS):
        disk.start(features)
        areas, count = in_flight(disk, turn, RequestType.IN, length, canary)
        used = driver.memory_read(disk.queues[0].device, 4)
        untouched = canary * (count * (length + 1))
        driver.memory_write(areas, untouched)
        let_pass(0.05, disk=disk)

        changed = driver.memory_read(areas, len(untouched)) != untouched
        when = f"round {turn}, {count} reads of {length} bytes in flight"
        assert not changed, f"{when}: the device wrote into their buffers after the reset"
        assert driver.memory_read(disk.queues[0].device, 4) == used, f"{when}: it used buffers"


@both_rings
@clause("2.4.1-D-02")
def test_no_write_in_flight_takes_its_data_after_a_reset(plug, packed):
    """The buffers have other data after the reset, which must not come to the disk."""
    disk = plug_ring(plug, packed, prefer={"capacity": 1024})
    driver, features = disk.driver, disk.driver.accepted()
    if disk.queues[0].size < 3:
        pytest.skip("a request does not fit into the queue")
    length = longest(driver.config())
    disk.backing.write(0, bytes(length))  # the first reset may come before any write

    for turn in range(ROUNDS):
        disk.start(features)
        areas, count = in_flight(disk, turn, RequestType.OUT, length, b"\x11")
        driver.memory_write(areas, b"\x22" * (count * length))
        let_pass(0.05, disk=disk)

        found = disk.backing.read(0, length // 512)
        late = found.count(b"\x22")
        assert not late, f"round {turn}: {late} bytes on the disk are from after the reset"
