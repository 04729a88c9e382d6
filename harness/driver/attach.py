"""Attach a driver to a device, found by the kind of its bus and its address there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.driver.block import BlockDriver
from harness.driver.bus.base import Bus
from harness.driver.bus.linux_mmio import LinuxMmio
from harness.driver.bus.linux_pci import LinuxPci
from harness.driver.bus.linux_vfio import LinuxVfio
from harness.driver.errors import BadArgumentError
from harness.driver.interface import Driver
from harness.driver.transport.base import Transport
from harness.driver.transport.mmio import MmioModern
from harness.driver.transport.pci import PciModern
from harness.driver.transport.pci_legacy import PciLegacy

KINDS: dict[str, tuple[Callable[[str, float], Any], Callable[[Any], Transport]]] = {
    "mmio": (LinuxMmio, MmioModern),
    "pci": (LinuxPci, PciModern),
    "pci-legacy": (LinuxPci, PciLegacy),
    "pci-vfio": (LinuxVfio, PciModern),
}
"""Kind -> class of the bus (registers and memory), class of the transport (interface used)."""


def attach(kind: str, address: str, timeout: float = 5.0) -> Driver:
    """Attach a driver to a device. The device is not touched until the driver is used.

    With `kind` "pci" (through uio), "pci-legacy" (its legacy interface) or
    "pci-vfio" (through vfio, behind an IOMMU), `address` is that of a PCI
    function, like `0000:00:05.0`. With "mmio" it is the physical address of a
    register window, like `0xfeb00000`. Raises BadArgumentError for another kind,
    NoDeviceError if there is no virtio block device within `timeout` seconds.
    """
    if kind not in KINDS:
        raise BadArgumentError(f"no bus is called {kind!r}; choose one of {', '.join(KINDS)}")
    reach, interface = KINDS[kind]
    bus: Bus = reach(address, timeout)
    try:
        return BlockDriver(interface(bus))
    except BaseException:
        bus.close()
        raise
