"""How a driver comes to a device: by the kind of bus, and an address on it."""

from __future__ import annotations

from .block import BlockDriver
from .bus.linux_pci import LinuxPci
from .errors import BadArgumentError
from .interface import Driver
from .transport.pci import PciModern


def attach(kind: str, address: str, timeout: float = 5.0) -> Driver:
    """Take a device over; it stays as it is until the driver is told to do something.

    `kind` "pci": a function by its address, like `0000:00:05.0`. NoDeviceError
    if there is no virtio block device within `timeout` seconds.
    """
    if kind != "pci":
        raise BadArgumentError(f"no bus called {kind!r}: pci is the one there is")
    function = LinuxPci(address, timeout)
    try:
        return BlockDriver(PciModern(function))
    except BaseException:
        function.close()
        raise
