"""Breaches of the legacy interface."""

from __future__ import annotations

from harness.proof.breaches.breach import LEGACY, REGISTER_BAR, RUNNING, begin, breach
from harness.targets.disk import Disk
from harness.virtio.features import Feature


@breach("4.1.4.10-L-02", **LEGACY)
def mixes_the_interfaces(disk: Disk) -> None:
    """Write to the common configuration while the legacy interface is in use."""
    disk.start()
    disk.driver.bar_write(REGISTER_BAR, 0, 4, 0)


@breach("4.1.4.10-L-04", **LEGACY)
def reads_vectors_as_configuration(disk: Disk) -> None:
    """Read 32 bits of the configuration where the vectors are with MSI-X."""
    disk.driver.use_msix(2)
    disk.start()
    disk.driver.bar_read(0, 0x14, 4)


@breach("2.5.4-L-01", **LEGACY)
def reads_a_legacy_capacity_once(disk: Disk) -> None:
    """Read the capacity once, and send a request."""
    disk.start()
    disk.driver.config_read(0, 8)
    disk.read(0)


@breach("2.7.2-L-01a", **LEGACY)
def does_not_read_the_size(disk: Disk) -> None:
    """Write the address of a virtqueue, and do not read its size."""
    disk.driver.negotiate()
    disk.driver.register_write("queue_select", 0)
    disk.driver.register_write("queue_address", disk.driver.alloc(16384, 4096) // 4096)


@breach("3.1.2-L-01", **LEGACY)
def sets_features_ok(disk: Disk) -> None:
    """Set FEATURES_OK on the legacy interface."""
    begin(disk)
    disk.driver.accept(Feature.ANY_LAYOUT.mask)
    disk.driver.set_status(RUNNING)


@breach("5.2.6.4-L-01", "6.3-L-03b", **LEGACY)
def cuts_the_header(disk: Disk) -> None:
    """Use two descriptors for the header without ANY_LAYOUT."""
    disk.start(0)
    disk.read(0, readable=(8, 8))
