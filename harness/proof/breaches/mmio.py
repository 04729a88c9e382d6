"""Breaches of virtio-mmio (virtio 4.2)."""

from __future__ import annotations

from harness.driver.device import DeviceDriver
from harness.driver.transport.mmio import MmioModern
from harness.proof.breaches.breach import MMIO, V1, breach
from harness.targets.disk import Disk
from harness.virtio.features import Feature, mask
from harness.virtio.mmio import MAGIC, REGISTERS

WINDOW = 0x200
"""Bytes from one window of registers to the next on QEMU's microvm."""


@breach("4.2.2.2-R-01a", **MMIO)
def writes_where_no_register_is(disk: Disk) -> None:
    """Write to the offset 0x28, where no register is."""
    assert isinstance(disk.driver, DeviceDriver)
    assert isinstance(disk.driver.transport, MmioModern)
    disk.driver.transport.window.write(0x28, 4, 0)


@breach("4.2.2.2-R-01b", **MMIO)
def writes_the_version(disk: Disk) -> None:
    """Write Version, which is read-only."""
    disk.driver.register_write("Version", 2)


@breach("4.2.2.2-R-01c", **MMIO)
def reads_a_selector(disk: Disk) -> None:
    """Read QueueSel, which is write-only."""
    disk.driver.register_read("QueueSel")


@breach("4.2.2.2-R-02", **MMIO)
def reads_the_status_by_8_bits(disk: Disk) -> None:
    """Read Status by 8 bits."""
    disk.driver.register_read("Status", 1)


@breach("4.2.2.2-R-03", **MMIO)
def writes_half_a_field(disk: Disk) -> None:
    """Write 16 bits of seg_max."""
    disk.driver.negotiate(V1)
    disk.driver.config_write(12, bytes(2))


@breach("4.2.2.2-R-07", **MMIO)
def reads_features_without_a_selector(disk: Disk) -> None:
    """Read DeviceFeatures after a reset, and do not write DeviceFeaturesSel."""
    disk.driver.reset()
    disk.driver.register_read("DeviceFeatures")


@breach("4.2.2.2-R-08", **MMIO)
def writes_features_without_a_selector(disk: Disk) -> None:
    """Write DriverFeatures after a reset, and do not write DriverFeaturesSel."""
    disk.driver.reset()
    disk.driver.register_write("DriverFeatures", 0)


@breach("4.2.2.2-R-09", **MMIO)
def asks_for_a_larger_queue(disk: Disk) -> None:
    """Write more than QueueSizeMax to QueueSize."""
    disk.driver.negotiate(V1)
    disk.driver.register_write("QueueSel", 0)
    disk.driver.register_write("QueueSize", 2 * disk.driver.register_read("QueueSizeMax"))


@breach("4.2.2.2-R-10", **MMIO)
def moves_a_queue_that_is_ready(disk: Disk) -> None:
    """Write an address of a virtqueue while QueueReady is 1."""
    disk.start(V1)
    disk.driver.register_write("QueueDescLow", disk.queues[0].desc)


@breach("4.2.2.2-R-11b", **MMIO)
def does_not_read_queue_ready_back(disk: Disk) -> None:
    """Write 0 to QueueReady, and do not read it back."""
    disk.start(V1)
    disk.driver.register_write("QueueReady", 0)
    disk.driver.register_write("QueueSel", 0)


@breach("4.2.2.2-R-13a", **MMIO)
def acknowledges_too_much(disk: Disk) -> None:
    """Acknowledge a configuration change that InterruptStatus does not show."""
    disk.driver.service_interrupts(False)
    disk.start(V1)
    disk.read(0)
    disk.driver.register_read("InterruptStatus")
    disk.driver.register_write("InterruptACK", 3)


@breach("4.2.2.2-R-13b", **MMIO)
def acknowledges_another_bit(disk: Disk) -> None:
    """Write bit 2 to InterruptACK."""
    disk.driver.service_interrupts(False)
    disk.start(V1)
    disk.read(0)
    disk.driver.register_write("InterruptACK", disk.driver.register_read("InterruptStatus") | 4)


@breach("4.2.3.4.1-R-01", **MMIO)
def acknowledges_without_a_look(disk: Disk) -> None:
    """Write InterruptACK after an interrupt, and do not read InterruptStatus."""
    disk.driver.service_interrupts(False)
    disk.start(V1)
    disk.read(0)
    disk.driver.register_write("InterruptACK", 1)


@breach("4.2.2.2-R-14", **MMIO)
def makes_a_queue_ready_too_early(disk: Disk) -> None:
    """Write 1 to QueueReset and to QueueReady, and do not read QueueReset."""
    disk.start(mask(Feature.VERSION_1, Feature.RING_RESET))
    disk.driver.register_write("QueueReset", 1)
    disk.driver.register_write("QueueReady", 1)


@breach("4.2.3.1.1-R-03", **MMIO)
def selects_shared_memory(disk: Disk) -> None:
    """Write SHMSel."""
    disk.driver.register_write("SHMSel", 0)


def neighbour(disk: Disk, *accesses: str) -> None:
    """Access registers of a window next to that of the device; it has no device of its own.

    Each name is read; one with "=" in front of it is written as 0.
    """
    assert isinstance(disk.driver, DeviceDriver)
    assert isinstance(disk.driver.transport, MmioModern)
    window = disk.driver.transport.window
    magic = REGISTERS["MagicValue"]
    start = next(at for at in (-WINDOW, WINDOW) if window.read(at + magic, 4) == MAGIC)
    for name in accesses:
        at = start + REGISTERS[name.removeprefix("=")]
        if name.startswith("="):
            window.write(at, 4, 0)
        else:
            window.read(at, 4)


@breach("4.2.2.2-R-06a", "4.2.3.1.1-R-02b", "4.2.3.1.1-R-02c", **MMIO)
def writes_to_a_placeholder(disk: Disk) -> None:
    """Write a register of a window whose DeviceID is 0."""
    neighbour(disk, "Version", "DeviceID", "=QueueSel")


@breach("4.2.3.1.1-R-02c", **MMIO)
def reads_more_of_a_placeholder(disk: Disk) -> None:
    """Read another register of a window whose DeviceID is 0."""
    neighbour(disk, "Version", "DeviceID", "Status")


@breach("4.2.3.1.1-R-01", **MMIO)
def begins_with_the_device_id(disk: Disk) -> None:
    """Read MagicValue and DeviceID of a window, then Version."""
    neighbour(disk, "DeviceID", "Version")


@breach("4.2.3.1.1-R-02a", **MMIO)
def does_not_read_the_device_id(disk: Disk) -> None:
    """Write a register of a window after MagicValue and Version."""
    neighbour(disk, "Version", "=QueueSel")
