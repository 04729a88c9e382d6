"""The PCI transport: capabilities, registers, INTx, the configuration window (virtio 4.1)."""

import pytest

from conformance.waiting import eventually
from harness.report import clause, on
from harness.virtio.blk import Status
from harness.virtio.features import Feature
from harness.virtio.pci import (
    COMMON_REGISTERS,
    ISR_CONFIG,
    ISR_QUEUE,
    MODERN_DEVICE_ID,
    TRANSITIONAL_DEVICE_ID,
    VENDOR_ID,
    CapType,
)

PCI_STATUS = 6
INTERRUPT_STATUS = 1 << 3


def capability(driver, kind):
    return next(one for one in driver.capabilities() if one.type == kind)


def interrupt_pending(driver):
    """The interrupt status bit of PCI's status register."""
    return bool(driver.pci_read(PCI_STATUS, 1)[0] & INTERRUPT_STATUS)


@clause("4.1.2.1-D-01", "4.1.2.1-D-02")
@on("pci")
def test_pci_ids(plug):
    identity = plug(start=False).driver.pci_read(0, 4)

    assert int.from_bytes(identity[:2], "little") == VENDOR_ID
    assert int.from_bytes(identity[2:], "little") in (MODERN_DEVICE_ID, TRANSITIONAL_DEVICE_ID)


@clause("4.1.4.3.1-D-02", "4.1.4.4.1-D-01", "4.1.4.5.1-D-01", "4.1.4.9.1-D-01")
@on("pci")
def test_the_structures_that_every_device_has_are_there(plug):
    found = {one.type for one in plug(start=False).driver.capabilities()}

    assert found >= {
        CapType.COMMON_CFG,
        CapType.NOTIFY_CFG,
        CapType.ISR_CFG,
        CapType.PCI_CFG,
    }


@clause("4.1.4.3.1-D-01", "4.1.4.6.1-D-01")
@on("pci")
def test_structures_are_aligned(plug):
    driver = plug(start=False).driver

    assert capability(driver, CapType.COMMON_CFG).offset % 4 == 0
    assert capability(driver, CapType.DEVICE_CFG).offset % 4 == 0


@pytest.mark.parametrize("indices", [(2, 3, 64, 1023), (1024, 0xFFFF)], ids=["near", "far"])
@clause("4.1.4.3.1-D-14")
@on("pci", "modern")
def test_queue_size_is_zero_for_a_queue_that_does_not_exist(plug, indices):
    driver = plug(start=False, queues=2).driver
    driver.reset()
    assert driver.register_read("num_queues") == 2

    for index in indices:
        driver.register_write("queue_select", 0)
        assert driver.register_read("queue_size") > 0
        driver.register_write("queue_select", index)
        size = driver.register_read("queue_size")
        assert size == 0, f"queue {index} shows a queue_size of {size}"


@pytest.mark.parametrize("size", [4, 256, 1024])
@clause("4.1.4.3.1-D-15")
@on("pci", "modern")
def test_queue_size_is_a_power_of_two(plug, size):
    driver = plug(start=False, queues=2, queue_size=size, seg_max_adjust=True).driver
    driver.reset()

    for index in range(driver.register_read("num_queues")):
        driver.register_write("queue_select", index)
        shown = driver.register_read("queue_size")
        assert shown & (shown - 1) == 0
        assert shown == size


@clause("4.1.4.5.1-D-03", "4.1.4.5.1-D-04", "4.1.4.5.1-D-05")
@on("pci")
def test_a_completion_sets_isr_and_reading_it_clears_it(plug):
    disk = plug()
    driver = disk.driver
    driver.service_interrupts(False)
    assert (driver.isr(), interrupt_pending(driver)) == (0, False)

    assert disk.read(0).status is Status.OK
    pending = interrupt_pending(driver)
    isr = driver.isr()

    assert pending
    assert isr & ISR_QUEUE
    assert (driver.isr(), interrupt_pending(driver)) == (0, False)


@clause("4.1.4.5.1-D-02", "4.1.4.5.1-D-04", "4.1.4.5.1-D-05")
@on("pci")
def test_a_resize_sets_isr_and_reading_it_clears_it(plug):
    disk = plug()
    driver = disk.driver
    driver.service_interrupts(False)
    raised = driver.interrupts().raised

    disk.resize(disk.spec.capacity * 2)
    assert eventually(lambda: driver.interrupts().raised > raised)
    pending = interrupt_pending(driver)
    isr = driver.isr()

    assert pending
    assert isr & ISR_CONFIG
    assert (driver.isr(), interrupt_pending(driver)) == (0, False)


def aim(driver, register):
    """Point the window at a register of the common configuration; its length, the data's place."""
    window = capability(driver, CapType.PCI_CFG)
    common = capability(driver, CapType.COMMON_CFG)
    offset, length = COMMON_REGISTERS[register]
    driver.pci_write(window.at + 4, bytes([common.bar]))
    driver.pci_write(window.at + 8, (common.offset + offset).to_bytes(4, "little"))
    driver.pci_write(window.at + 12, length.to_bytes(4, "little"))
    return length, window.at + 16


@clause("4.1.4.9.1-D-03")
@on("pci", "modern")
def test_reading_the_window_reads_the_bar(plug):
    driver = plug().driver

    for register in ("device_status", "num_queues", "queue_size", "device_feature"):
        expected = driver.register_read(register)
        assert expected != 0
        length, place = aim(driver, register)
        value = int.from_bytes(driver.pci_read(place, length), "little")
        assert value == expected, register


@clause("4.1.4.9.1-D-02")
@on("pci", "modern")
def test_writing_the_window_writes_the_bar(plug):
    driver = plug(start=False, queues=2).driver
    driver.reset()

    for register, value in (
        ("device_status", 1),
        ("queue_select", 1),
        ("driver_feature_select", 1),
    ):
        assert driver.register_read(register) != value
        length, place = aim(driver, register)
        driver.pci_write(place, value.to_bytes(length, "little"))
        assert driver.register_read(register) == value, register


@on("pci", "modern")
@clause("4.1.4.3.1-D-10", "4.1.4.3.1-D-11", "4.1.4.3.1-D-13")
def test_queue_reset_and_queue_enable_show_a_queues_reset(plug):
    driver = plug(extra=[Feature.RING_RESET]).driver
    driver.register_write("queue_select", 0)
    assert (driver.register_read("queue_reset"), driver.register_read("queue_enable")) == (0, 1)

    driver.queue_reset(0)
    after = driver.register_read("queue_reset"), driver.register_read("queue_enable")
    driver.queue_setup(0)
    anew = driver.register_read("queue_reset"), driver.register_read("queue_enable")

    assert after == (0, 0)
    assert anew == (0, 1)
