"""MSI-X: vectors, their mapping, and their messages (virtio 4.1.5.1.2, 4.1.5.3, 4.1.5.4)."""

import pytest

from conformance.pcispace import capabilities
from conformance.waiting import let_pass, resize
from harness.driver.errors import DriverError
from harness.driver.interface import Request
from harness.report import clause, on, reads_only
from harness.virtio.blk import SECTOR, RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.pci import CAP_MSIX, MSIX_TABLE_SIZE, NO_VECTOR, STATUS, STATUS_INTERRUPT

pytestmark = on("pci")

QUEUES = 2
READ = Request(RequestType.IN, 0, receive=SECTOR)


def vectors_of(driver):
    """Return the number of MSI-X vectors; skip a device without MSI-X."""
    for kind, at in capabilities(driver):
        if kind == CAP_MSIX:
            return (int.from_bytes(driver.pci_read(at + 2, 2), "little") & MSIX_TABLE_SIZE) + 1
    return pytest.skip("the device has no MSI-X capability")


@pytest.fixture
def msix(plug):
    """A disk with two queues and all vectors enabled; the driver is not started."""
    disk = plug(start=False, queues=QUEUES)
    try:
        disk.driver.use_msix(vectors_of(disk.driver))
    except DriverError as error:
        pytest.skip(f"no MSI-X for this driver: {error.message}")
    return disk


def another_vector(driver):
    """Return vector 1, or 0 of a device with one vector."""
    return min(1, vectors_of(driver) - 1)


def map_config(driver, vector):
    """Map configuration changes to a vector, and return the register's value after that."""
    driver.register_write("config_msix_vector", vector)
    return driver.register_read("config_msix_vector")


def map_queue(driver, index, vector):
    """Map a queue that is not enabled to a vector, and return the register's value."""
    driver.register_write("queue_select", index)
    driver.register_write("queue_msix_vector", vector)
    return driver.register_read("queue_msix_vector")


def start(disk, vectors):
    """Start the device again with its queues mapped to `vectors`; return the registers' values.

    A vector is written before its queue is enabled, as 4.1.4.3.2 asks: a device may take it then.
    """
    driver = disk.driver
    agreed = driver.negotiate()
    shown = []
    for index, vector in enumerate(vectors):
        driver.queue_setup(index, vector=vector)
        shown.append(driver.register_read("queue_msix_vector"))
    driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)
    let_pass(disk=disk)  # a device may announce a queue that was enabled
    return shown


def line_raised(driver):
    return bool(driver.pci_read(STATUS, 1)[0] & STATUS_INTERRUPT)


def gained(before, after):
    """Return the vectors whose message count grew between two values of `Interrupts.vectors`."""
    pairs = enumerate(zip(before, after, strict=True))
    return [vector for vector, (then, now) in pairs if now > then]


@clause("4.1.5.1.2.1-D-01")
@reads_only
def test_msix_has_two_vectors_or_more(plug):
    driver = plug(start=False).driver

    assert 2 <= vectors_of(driver) <= 0x800


@clause("4.1.5.1.2.1-D-02", "4.1.5.1.2.1-D-04", "4.1.5.1.2.1-D-06")
def test_a_queue_can_be_mapped_to_every_vector_and_its_messages_go_there(msix):
    driver = msix.driver

    for vector in range(vectors_of(driver)):
        assert start(msix, [0, vector])[1] == vector
        before = driver.interrupts()
        assert driver.request(READ, queue=1).status == Status.OK
        after = driver.wait_interrupt("raised", above=before.raised)
        assert gained(before.vectors, after.vectors) == [vector]


@clause("4.1.5.1.2.1-D-02", "4.1.5.1.2.1-D-04", "4.1.5.1.2.1-D-06")
def test_config_changes_can_be_mapped_to_every_vector_and_their_messages_go_there(msix):
    driver = msix.driver
    start(msix, [NO_VECTOR] * QUEUES)

    for vector in range(vectors_of(driver)):
        assert map_config(driver, vector) == vector
        before = driver.interrupts()
        resize(msix, msix.spec.capacity + 8 * (vector + 1))
        after = driver.wait_interrupt("raised", above=before.raised)
        assert gained(before.vectors, after.vectors) == [vector]


@clause("4.1.5.1.2.1-D-04")
def test_the_messages_of_each_queue_go_to_its_own_vector(msix):
    driver = msix.driver
    if vectors_of(driver) < 3:
        pytest.skip(f"the device has {vectors_of(driver)} vectors; this test uses 3")
    assert start(msix, [2, 1]) == [2, 1]

    for queue, vector in ((0, 2), (1, 1), (0, 2)):
        before = driver.interrupts()
        assert driver.request(READ, queue=queue).status == Status.OK
        after = driver.wait_interrupt("raised", above=before.raised)
        assert gained(before.vectors, after.vectors) == [vector], f"queue {queue}"


@clause("4.1.5.1.2.1-D-05", "4.1.5.1.2.1-D-06")
@reads_only
def test_every_event_can_be_unmapped(msix):
    driver = msix.driver
    driver.negotiate()
    vector = another_vector(driver)
    assert map_config(driver, vector) == vector
    assert [map_queue(driver, index, vector) for index in range(QUEUES)] == [vector] * QUEUES

    config = map_config(driver, NO_VECTOR)
    queues = [map_queue(driver, index, NO_VECTOR) for index in range(QUEUES)]

    assert config == NO_VECTOR
    assert queues == [NO_VECTOR] * QUEUES


@clause("4.1.5.1.2.1-D-07")
def test_no_event_is_mapped_after_a_reset(msix):
    driver = msix.driver
    vector = another_vector(driver)
    assert start(msix, [vector] * QUEUES) == [vector] * QUEUES
    assert map_config(driver, vector) == vector

    driver.reset()

    queues = []
    for index in range(QUEUES):
        driver.register_write("queue_select", index)
        queues.append(driver.register_read("queue_msix_vector"))
    assert driver.register_read("config_msix_vector") == NO_VECTOR
    assert queues == [NO_VECTOR] * QUEUES


@clause("4.1.5.1.2.1-D-08")
@reads_only
def test_all_events_can_share_each_vector(msix):
    driver = msix.driver
    driver.negotiate()

    for vector in range(vectors_of(driver)):
        shown = [map_config(driver, vector)]
        shown += [map_queue(driver, index, vector) for index in range(QUEUES)]
        assert shown == [vector] * (1 + QUEUES)


@clause("4.1.5.1.2.1-D-09")
@reads_only
def test_a_mapping_to_a_vector_that_does_not_exist_shows_no_vector(msix):
    driver = msix.driver
    driver.negotiate()

    for vector in (vectors_of(driver), 0x7FF, 0xFFFE):
        assert map_config(driver, vector) == NO_VECTOR, vector
        assert map_queue(driver, 0, vector) == NO_VECTOR, vector


@clause("4.1.5.3.1-D-01")
def test_a_queue_without_a_vector_raises_no_interrupt(msix):
    driver = msix.driver
    # Neither has one: a device may announce the other queue at any time on a vector of that queue.
    assert start(msix, [NO_VECTOR, NO_VECTOR]) == [NO_VECTOR, NO_VECTOR]
    before = driver.interrupts()

    assert [driver.request(READ).status for _ in range(3)] == [Status.OK] * 3
    let_pass(disk=msix)

    assert driver.interrupts() == before
    assert not line_raised(driver)


@clause("4.1.5.4.1-D-01")
def test_config_changes_without_a_vector_raise_no_interrupt(msix):
    driver = msix.driver
    start(msix, [1, 1])
    assert map_config(driver, NO_VECTOR) == NO_VECTOR
    before = driver.interrupts()

    resize(msix, msix.spec.capacity * 2)
    let_pass(disk=msix)

    assert driver.interrupts() == before
    assert not line_raised(driver)
