"""Breaches of the configuration space and of registers over PCI (virtio 2.5, 2.6.1, 4.1)."""

from __future__ import annotations

from harness.proof.breaches.breach import (
    DEVICE,
    NOTIFY,
    NUM_QUEUES,
    REGISTER_BAR,
    V1,
    WRITEBACK,
    begin,
    breach,
    ring,
)
from harness.targets.disk import Disk
from harness.virtio.features import Feature, mask
from harness.virtio.pci import CAP, COMMON_REGISTERS, CapType


@breach("4.1.4.3.2-R-01")
def writes_a_read_only_register(disk: Disk) -> None:
    """Write num_queues."""
    disk.driver.register_write("num_queues", 1)


@breach("4.1.4.3.2-R-02")
def asks_for_an_empty_packed_queue(disk: Disk) -> None:
    """Write 0 to queue_size with RING_PACKED."""
    disk.driver.negotiate(V1 | Feature.RING_PACKED.mask)
    disk.driver.register_write("queue_size", 0)


@breach("4.1.4.3.2-R-03")
def asks_for_three_descriptors(disk: Disk) -> None:
    """Write 3 to queue_size without RING_PACKED."""
    disk.driver.negotiate(V1)
    disk.driver.register_write("queue_size", 3)


@breach("4.1.4.3.2-R-04")
def enables_a_queue_without_addresses(disk: Disk) -> None:
    """Enable a virtqueue whose addresses were not written."""
    disk.driver.negotiate(V1)
    disk.driver.register_write("queue_enable", 1)


@breach("4.1.4.3.2-R-06")
def disables_a_queue(disk: Disk) -> None:
    """Write 0 to queue_enable."""
    disk.start(V1)
    disk.driver.register_write("queue_enable", 0)


def reset_queue(disk: Disk, look: bool, addresses: bool) -> None:
    """Reset virtqueue 0 and enable it again."""
    at = ring(disk, Feature.RING_RESET)
    disk.driver.register_write("queue_reset", 1)
    if look:
        disk.driver.register_read("queue_reset")
    if addresses:
        for name in ("desc", "driver", "device"):
            disk.driver.register_write(f"queue_{name}", getattr(at, name))
    disk.driver.register_write("queue_enable", 1)


@breach("4.1.4.3.2-R-07", "2.6.1.1.2-R-01")
def does_not_wait_for_the_queue_reset(disk: Disk) -> None:
    """Enable a virtqueue after queue_reset, and do not read this register in between."""
    reset_queue(disk, look=False, addresses=True)


@breach("2.6.1.2.2-R-01")
def does_not_set_the_queue_up_again(disk: Disk) -> None:
    """Enable a virtqueue after a queue reset, and do not write its addresses."""
    reset_queue(disk, look=True, addresses=False)


@breach("4.1.3.1-R-01")
def reads_half_a_field(disk: Disk) -> None:
    """Read seg_max by 16 bits."""
    disk.driver.bar_read(REGISTER_BAR, DEVICE + 12, 2)


@breach("2.5.1-R-02")
def reads_a_field_that_is_not_there(disk: Disk) -> None:
    """Read num_queues, though BLK_MQ is not offered."""
    disk.driver.config_read(NUM_QUEUES, 2)


@breach("5.2.5.1-R-04")
def reads_writeback_early(disk: Disk) -> None:
    """Read writeback before FEATURES_OK."""
    begin(disk)
    disk.driver.config_read(WRITEBACK, 1)


@breach("2.5.1-R-01b")
def does_not_read_the_generation(disk: Disk) -> None:
    """Read the capacity without the config generation."""
    disk.start(V1)
    disk.driver.config_read(0, 8)
    disk.read(0)


@breach("2.5.1-R-01a", "2.5.1-R-01b")
def takes_two_halves_for_one(disk: Disk) -> None:
    """Read the halves of the capacity before and after a resize, and not again."""
    disk.driver.service_interrupts(False)
    disk.start(V1)
    disk.driver.config_read(0, 4)
    disk.resize(4096)
    disk.driver.config_read(4, 4)
    disk.read(0)


@breach("5.2.6.1-R-01")
def does_not_look_at_a_new_capacity(disk: Disk) -> None:
    """Send 70 requests after a configuration change, and do not read the capacity."""
    disk.driver.service_interrupts(False)
    disk.start(V1)
    disk.resize(4096)
    for _ in range(70):
        disk.read(0)


@breach("4.1.5.1.2.2-R-04")
def maps_a_vector_that_is_not_there(disk: Disk) -> None:
    """Write 500 to config_msix_vector."""
    disk.driver.register_write("config_msix_vector", 500)


@breach("4.1.5.1.2.2-R-05")
def does_not_read_a_vector_back(disk: Disk) -> None:
    """Map a virtqueue to a vector, and do not read the register."""
    disk.driver.register_write("queue_msix_vector", 1)
    disk.driver.register_write("queue_select", 0)


@breach("4.1.4.5.2-R-01")
def reads_isr_status_with_msix(disk: Disk) -> None:
    """Read ISR status after an interrupt of a virtqueue that came by MSI-X."""
    disk.driver.use_msix(2)
    disk.start(V1)
    disk.read(0)
    disk.driver.isr()


def notify_by(disk: Disk, features: int, width: int, value: int) -> None:
    """Start the device with these features, and write to the notification structure."""
    disk.start(V1 | features)
    disk.driver.bar_write(REGISTER_BAR, NOTIFY, width, value)


@breach("4.1.5.2.1-R-01")
def notifies_by_32_bits(disk: Disk) -> None:
    """Notify by 32 bits without NOTIFICATION_DATA."""
    notify_by(disk, 0, 4, 0)


@breach("4.1.5.2.1-R-02")
def notifies_by_16_bits(disk: Disk) -> None:
    """Notify by 16 bits with NOTIFICATION_DATA."""
    notify_by(disk, Feature.NOTIFICATION_DATA.mask, 2, 0)


@breach("4.1.5.2.1-R-03")
def notifies_by_another_index(disk: Disk) -> None:
    """Notify virtqueue 0 by the index 1."""
    notify_by(disk, 0, 2, 1)


@breach("4.1.5.2.1-R-04")
def notifies_by_another_index_with_data(disk: Disk) -> None:
    """Notify virtqueue 0 by the index 1 with NOTIFICATION_DATA."""
    notify_by(disk, Feature.NOTIFICATION_DATA.mask, 4, 1)


@breach("4.1.5.2.1-R-05")
def notifies_without_its_own_data(disk: Disk) -> None:
    """Notify by the index with NOTIF_CONFIG_DATA."""
    notify_by(disk, Feature.NOTIF_CONFIG_DATA.mask, 2, 0)


@breach("4.1.5.2.1-R-06")
def notifies_without_its_own_data_in_the_field(disk: Disk) -> None:
    """Notify by the index with NOTIF_CONFIG_DATA and NOTIFICATION_DATA."""
    notify_by(disk, mask(Feature.NOTIF_CONFIG_DATA, Feature.NOTIFICATION_DATA), 4, 0)


def capability(disk: Disk, kind: CapType) -> int:
    """Return where a capability is in PCI configuration space."""
    return next(known.at for known in disk.driver.capabilities() if known.type == kind)


@breach("4.1.4.1-R-07")
def writes_a_capability(disk: Disk) -> None:
    """Write to the capability of the common configuration."""
    disk.driver.pci_write(capability(disk, CapType.COMMON_CFG) + 4, b"\4")


ODD = ("odd-capabilities",)
REPEATED = 0x800
"""Offset of the second common configuration of that device."""


@breach("4.1.4.1-R-02", whims=ODD)
def uses_the_second_structure(disk: Disk) -> None:
    """Read the device status in the second structure of the common configuration."""
    disk.driver.bar_read(REGISTER_BAR, REPEATED + COMMON_REGISTERS["device_status"][0], 1)


@breach("4.1.4.8.2-R-01", "4.1.4.1-R-07", whims=ODD)
def writes_vendor_data(disk: Disk) -> None:
    """Write to the capability with vendor data."""
    disk.driver.pci_write(capability(disk, CapType.VENDOR_CFG) + 8, b"x")


def use_window(disk: Disk, offset: int, length: int, width: int) -> None:
    """Read by the PCI configuration window."""
    at = capability(disk, CapType.PCI_CFG)
    disk.driver.pci_write(at + 4, bytes([REGISTER_BAR]))
    disk.driver.pci_write(at + 8, offset.to_bytes(4, "little"))
    disk.driver.pci_write(at + 12, length.to_bytes(4, "little"))
    disk.driver.pci_read(at + CAP.size, width)


@breach("4.1.4.9.2-R-01a")
def misaligns_the_window(disk: Disk) -> None:
    """Read by the PCI configuration window at an offset that is no multiple of the length."""
    use_window(disk, 2, 4, 4)


@breach("4.1.4.9.2-R-01b")
def reads_more_than_the_window(disk: Disk) -> None:
    """Read 4 bytes of pci_cfg_data though the length is 1."""
    use_window(disk, 0x14, 1, 4)


@breach("4.1.4.9.2-R-02")
def points_the_window_elsewhere(disk: Disk) -> None:
    """Read by the PCI configuration window where no structure is."""
    use_window(disk, 0x800, 4, 4)
