"""How a driver comes to a device: by the kind of bus, and an address on it."""

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
"""By name: how registers and memory are reached, and through which interface of the device."""


def attach(kind: str, address: str, timeout: float = 5.0) -> Driver:
    """Take a device over; it stays as it is until the driver is told to do something.

    `kind` "pci" (through uio), "pci-legacy" (its legacy interface) or "pci-vfio"
    (through vfio, behind an IOMMU): a function by its address, like
    `0000:00:05.0`; "mmio": a window by its physical address, like `0xfeb00000`.
    NoDeviceError if there is no virtio block device within `timeout` seconds.
    """
    if kind not in KINDS:
        raise BadArgumentError(f"no bus called {kind!r}: there are {', '.join(KINDS)}")
    reach, interface = KINDS[kind]
    bus: Bus = reach(address, timeout)
    try:
        return BlockDriver(interface(bus))
    except BaseException:
        bus.close()
        raise
