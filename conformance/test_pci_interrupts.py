"""Interrupts, power and resets of the PCI function, as PCI defines them (virtio 4.1.1)."""

import pytest

from conformance.pcispace import RESET_SETTLES, capability, reset_function
from conformance.test_msix import start, vectors_of
from conformance.waiting import eventually, let_pass
from harness.driver.errors import DriverError
from harness.driver.interface import Request
from harness.report import clause, on, reads_only
from harness.virtio.blk import RequestType, Status
from harness.virtio.pci import (
    CAP_MSIX,
    CAP_POWER,
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_MASTER,
    MSIX_ENABLE,
    MSIX_ENTRY,
    MSIX_ENTRY_MASKED,
    MSIX_FUNCTION_MASK,
    STATUS,
    STATUS_INTERRUPT,
)

pytestmark = on("pci", "modern")

READ = Request(RequestType.IN, 0, receive=512)
QUEUE_VECTOR = 1
VECTOR_CONTROL = MSIX_ENTRY.size - 4
POWER_STATE = 0x3
D3_SETTLES = 0.02
"""Seconds that PCI gives a function for a change of power."""


def reach_function(driver):
    """Skip the test where a kernel answers for the function's configuration space."""
    if not driver.owns_pci_configuration():
        bus = driver.description()["bus"]
        pytest.skip(f"{bus}: the kernel answers for configuration space")


class Table:
    """The MSI-X table and the pending bits of a function, in their BARs."""

    def __init__(self, driver):
        self._driver = driver
        self._at = capability(driver, CAP_MSIX, "MSI-X")
        self._table = self._word(4)
        self._pending = self._word(8)

    def _word(self, offset):
        return int.from_bytes(self._driver.pci_read(self._at + offset, 4), "little")

    def set_masked(self, vector, masked):
        """Write the mask bit of one vector."""
        at = (self._table & ~7) + MSIX_ENTRY.size * vector + VECTOR_CONTROL
        control = self._driver.bar_read(self._table & 7, at, 4) & ~MSIX_ENTRY_MASKED
        self._driver.bar_write(self._table & 7, at, 4, control | (MSIX_ENTRY_MASKED * masked))

    def is_masked(self, vector):
        """Return the mask bit of one vector."""
        at = (self._table & ~7) + MSIX_ENTRY.size * vector + VECTOR_CONTROL
        return bool(self._driver.bar_read(self._table & 7, at, 4) & MSIX_ENTRY_MASKED)

    def message(self, vector):
        """Return the three words of a vector's message: address, its high half, data."""
        at = (self._table & ~7) + MSIX_ENTRY.size * vector
        return [self._driver.bar_read(self._table & 7, at + word, 4) for word in (0, 4, 8)]

    def set_message(self, vector, words):
        """Write the three words of a vector's message. The vector has to be masked."""
        at = (self._table & ~7) + MSIX_ENTRY.size * vector
        for word, value in zip((0, 4, 8), words, strict=True):
            self._driver.bar_write(self._table & 7, at + word, 4, value)

    def is_pending(self, vector):
        """Return the pending bit of one vector."""
        at = (self._pending & ~7) + 4 * (vector // 32)
        return bool(self._driver.bar_read(self._pending & 7, at, 4) >> vector % 32 & 1)

    def set_control(self, bits):
        """Write the two bits of Message Control that a driver can write."""
        self._driver.pci_write(self._at + 2, bits.to_bytes(2, "little"))

    def control(self):
        """Return Message Control."""
        return int.from_bytes(self._driver.pci_read(self._at + 2, 2), "little")


@pytest.fixture
def messages(plug):
    """A started disk whose queue has an MSI-X vector of its own, and its table."""
    disk = plug(start=False)
    driver = disk.driver
    reach_function(driver)
    if vectors_of(driver) <= QUEUE_VECTOR:
        pytest.skip("the function has one MSI-X vector")
    try:
        driver.use_msix(vectors_of(driver))
    except DriverError as error:
        pytest.skip(f"no MSI-X for this driver: {error.message}")
    assert start(disk, [QUEUE_VECTOR]) == [QUEUE_VECTOR]
    return disk, Table(driver)


def sent(driver):
    """Return the number of messages that came with the queue's vector."""
    return driver.interrupts().vectors[QUEUE_VECTOR]


def check_masking(disk, table, mask, unmask):
    """Assert that a completion between `mask` and `unmask` is pending, and interrupts after it."""
    driver = disk.driver
    before = sent(driver)
    mask()

    assert driver.request(READ).status == Status.OK
    let_pass(disk=disk)
    while_masked = sent(driver)
    pending = eventually(lambda: table.is_pending(QUEUE_VECTOR))
    unmask()

    assert while_masked == before, "a message came while its vector was masked"
    assert pending, "the pending bit of a masked vector is 0 after a completion"
    assert eventually(lambda: sent(driver) > before), "no message came after unmasking"
    assert eventually(lambda: not table.is_pending(QUEUE_VECTOR)), "the pending bit stays 1"


@clause("4.1.1-D-01")
@reads_only
def test_a_masked_vector_is_pending_until_it_is_unmasked(messages):
    disk, table = messages

    check_masking(
        disk,
        table,
        mask=lambda: table.set_masked(QUEUE_VECTOR, True),
        unmask=lambda: table.set_masked(QUEUE_VECTOR, False),
    )


@clause("4.1.1-D-01")
@reads_only
def test_the_function_mask_masks_a_vector_that_is_not_masked_itself(messages):
    disk, table = messages

    check_masking(
        disk,
        table,
        mask=lambda: table.set_control(MSIX_ENABLE | MSIX_FUNCTION_MASK),
        unmask=lambda: table.set_control(MSIX_ENABLE),
    )


@clause("4.1.1-D-01")
@reads_only
def test_a_masked_vector_leaves_the_others_alone(messages):
    disk, table = messages
    driver = disk.driver
    before = sent(driver)
    table.set_masked(0, True)

    assert driver.request(READ).status == Status.OK

    assert eventually(lambda: sent(driver) > before)
    assert not table.is_pending(QUEUE_VECTOR)


@clause("4.1.1-D-01")
@reads_only
def test_mask_bits_read_as_they_were_written(messages):
    disk, table = messages
    for vector in range(vectors_of(disk.driver)):
        table.set_masked(vector, True)
        assert table.is_masked(vector), f"vector {vector}"
        table.set_masked(vector, False)
        assert not table.is_masked(vector), f"vector {vector}"


@clause("4.1.1-D-01")
@reads_only
def test_a_message_that_is_changed_with_requests_in_flight_is_sent_as_it_is_then(plug):
    """The vector is masked while it gets the message of another one, as for another CPU."""
    other = QUEUE_VECTOR + 1
    disk = plug(start=False, queues=2, prefer={"iops": 100})
    driver = disk.driver
    reach_function(driver)
    if vectors_of(driver) <= other:
        pytest.skip(f"the function has {vectors_of(driver)} vectors, and this test uses 3")
    try:
        driver.use_msix(vectors_of(driver))
    except DriverError as error:
        pytest.skip(f"no MSI-X for this driver: {error.message}")
    assert start(disk, [QUEUE_VECTOR, other]) == [QUEUE_VECTOR, other]
    table = Table(driver)
    if table.message(QUEUE_VECTOR)[:2] == table.message(other)[:2]:
        pytest.skip("all messages go to one address, and not to memory that the driver looks at")
    tokens = driver.submit([READ] * 8)
    table.set_masked(QUEUE_VECTOR, True)
    table.set_message(QUEUE_VECTOR, table.message(other))
    before = driver.interrupts().vectors
    table.set_masked(QUEUE_VECTOR, False)

    assert {completion.status for completion in driver.complete(tokens)} == {Status.OK}
    assert driver.request(READ).status == Status.OK

    came = eventually(lambda: driver.interrupts().vectors[other] > before[other])
    assert came, "no message came after the change"
    assert sent(driver) == before[QUEUE_VECTOR], "a message as before came after the change"


@clause("4.1.1-D-01")
@reads_only
def test_a_disabled_line_interrupts_only_after_it_is_enabled(plug):
    disk = plug()
    driver = disk.driver
    reach_function(driver)
    command = int.from_bytes(driver.pci_read(COMMAND, 2), "little")
    driver.service_interrupts(False)
    let_pass(disk=disk)
    driver.isr()  # a device may announce a queue that was enabled
    before = driver.interrupts().raised
    driver.pci_write(COMMAND, (command | COMMAND_INTX_DISABLE).to_bytes(2, "little"))

    assert driver.request(READ).status == Status.OK
    let_pass(disk=disk)
    while_disabled = driver.interrupts().raised
    shown = eventually(lambda: bool(driver.pci_read(STATUS, 1)[0] & STATUS_INTERRUPT))
    driver.pci_write(COMMAND, command.to_bytes(2, "little"))

    assert while_disabled == before, "the line was raised while Interrupt Disable was 1"
    assert shown, "Interrupt Status is 0 with an interrupt pending"
    assert eventually(lambda: driver.interrupts().raised > before), "no interrupt when enabled"


@clause("4.1.1-D-01")
@reads_only
def test_nothing_is_written_to_memory_without_bus_mastering(plug):
    disk = plug()
    driver = disk.driver
    reach_function(driver)
    command = int.from_bytes(driver.pci_read(COMMAND, 2), "little")
    driver.pci_write(COMMAND, (command & ~COMMAND_MASTER).to_bytes(2, "little"))
    driver.submit([READ])
    let_pass(disk=disk)

    used = driver.queue_state(0).used_idx

    assert used == 0, "a request was used while the function was no bus master"


@clause("4.1.1-D-01")
@reads_only
def test_a_function_level_reset_resets_the_device(messages):
    disk, table = messages
    driver = disk.driver
    reset_function(driver)
    let_pass(RESET_SETTLES)

    command = int.from_bytes(driver.pci_read(COMMAND, 2), "little")
    control = table.control()

    assert command & COMMAND_MASTER == 0
    assert control & (MSIX_ENABLE | MSIX_FUNCTION_MASK) == 0
    assert driver.status() == 0
    assert driver.register_read("queue_enable") == 0
    masked = [table.is_masked(vector) for vector in range(vectors_of(driver))]
    assert all(masked), f"mask bits after a reset: {masked}"


@clause("4.1.1-D-01")
@reads_only
def test_a_function_goes_on_after_d3_if_it_says_so(plug):
    disk = plug()
    driver = disk.driver
    reach_function(driver)
    at = capability(driver, CAP_POWER, "power management")
    state = int.from_bytes(driver.pci_read(at + 4, 2), "little")
    if not state & 0x8:
        pytest.skip("the function forgets its state in D3 (No_Soft_Reset is 0)")
    status = driver.status()
    driver.pci_write(at + 4, (state | POWER_STATE).to_bytes(2, "little"))
    let_pass(D3_SETTLES)
    driver.pci_write(at + 4, (state & ~POWER_STATE).to_bytes(2, "little"))
    let_pass(D3_SETTLES)

    assert driver.status() == status
    assert driver.request(READ).status == Status.OK
