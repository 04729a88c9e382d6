"""Two devices on one interrupt line: each shows only its own interrupts (virtio 4.1.4.5)."""

import pytest

from conformance.waiting import eventually, let_pass, resize
from harness.report import clause, on
from harness.virtio.blk import Status
from harness.virtio.pci import INTERRUPT_LINE, ISR_CONFIG, ISR_QUEUE, STATUS, STATUS_INTERRUPT

MOST = 5
"""The number of disks to search for a shared line. PCI has four lines, some boards have more."""


@pytest.fixture
def neighbours(plug):
    """Two started disks on one interrupt line, without a pending interrupt."""
    by_line = {}
    for _ in range(MOST):
        disk = plug()
        line = disk.driver.pci_read(INTERRUPT_LINE, 1)[0]
        if line in by_line:
            pair = by_line[line], disk
            let_pass(disk=disk)
            for neighbour in pair:
                neighbour.driver.interrupts()  # a device may raise an interrupt for a new queue
            return pair
        by_line[line] = disk
    pytest.skip(f"no two of {MOST} disks share an interrupt line")


def pending(disk):
    return bool(disk.driver.pci_read(STATUS, 1)[0] & STATUS_INTERRUPT)


@clause("4.1.4.5.1-D-03", "4.1.4.5.1-D-04")
@on("guest", "pci")
def test_a_completion_shows_in_the_isr_of_its_own_device(neighbours):
    busy, idle = neighbours
    for disk in neighbours:
        disk.driver.service_interrupts(False)

    assert busy.read(0).status is Status.OK
    shown = pending(busy), pending(idle)
    isr = busy.driver.isr(), idle.driver.isr()

    assert shown == (True, False)
    assert (isr[0] & ISR_QUEUE, isr[1]) == (ISR_QUEUE, 0)


@clause("4.1.4.5.1-D-02", "4.1.4.5.1-D-04")
@on("guest", "pci")
def test_a_resize_shows_in_the_isr_of_its_own_device(neighbours):
    changed, other = neighbours
    for disk in neighbours:
        disk.driver.service_interrupts(False)

    resize(changed, 2 * changed.spec.capacity)
    assert eventually(lambda: pending(changed))
    shown = pending(other)
    isr = changed.driver.isr(), other.driver.isr()

    assert not shown
    assert (isr[0] & ISR_CONFIG, isr[1]) == (ISR_CONFIG, 0)


@clause("4.1.4.5.1-D-03", "4.1.4.5.1-D-04")
@on("guest", "pci")
def test_both_devices_are_served_and_neither_gets_the_interrupt_of_the_other(neighbours):
    before = [disk.driver.interrupts() for disk in neighbours]

    for n in range(10):
        for disk, counts in zip(neighbours, before, strict=True):
            assert disk.read(n).status is Status.OK
            disk.driver.wait_interrupt("queue", above=counts.queue + n)

    for disk, counts in zip(neighbours, before, strict=True):
        assert disk.driver.interrupts().unexplained == counts.unexplained
