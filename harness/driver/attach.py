"""How a driver comes to a device: by the kind of bus, and an address on it."""

from __future__ import annotations

from collections.abc import Callable

from .block import BlockDriver
from .bus.base import PciFunction
from .bus.linux_pci import LinuxPci
from .bus.linux_vfio import LinuxVfio
from .errors import BadArgumentError
from .interface import Driver
from .transport.pci import PciModern, PciTransport
from .transport.pci_legacy import PciLegacy

KINDS: dict[
    str, tuple[Callable[[str, float], PciFunction], Callable[[PciFunction], PciTransport]]
] = {
    "pci": (LinuxPci, PciModern),
    "pci-legacy": (LinuxPci, PciLegacy),
    "pci-vfio": (LinuxVfio, PciModern),
}
"""By name: how registers and memory are reached, and through which interface of the device."""


def attach(kind: str, address: str, timeout: float = 5.0) -> Driver:
    """Take a device over; it stays as it is until the driver is told to do something.

    `kind` "pci" (through uio), "pci-legacy" (its legacy interface) or "pci-vfio"
    (through vfio, behind an IOMMU): a function by its address, like
    `0000:00:05.0`. NoDeviceError if there is no virtio block device within
    `timeout` seconds.
    """
    if kind not in KINDS:
        raise BadArgumentError(f"no bus called {kind!r}: there are {', '.join(KINDS)}")
    reach, interface = KINDS[kind]
    function = reach(address, timeout)
    try:
        return BlockDriver(interface(function))
    except BaseException:
        function.close()
        raise
