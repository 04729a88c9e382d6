"""The target `pci:ADDRESS`: a PCI function of this machine, driven from this process."""

from __future__ import annotations

import re

from harness.diskspec import DiskSpec
from harness.driver.bus import linux_pci, linux_sysfs, linux_vfio
from harness.driver.bus.base import PciFunction
from harness.driver.errors import DriverError
from harness.driver.transport.base import Transport
from harness.driver.transport.pci import PciModern
from harness.targets.base import TargetError
from harness.targets.external import HostSide, OwnedTarget
from harness.virtio.pci import MODERN_DEVICE_ID, TRANSITIONAL_DEVICE_ID, VENDOR_ID

ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")

DEVICES = (MODERN_DEVICE_ID, TRANSITIONAL_DEVICE_ID)

GONE = b"\xff\xff"
"""Vendor id that is read if there is no function."""


def checked_address(text: str) -> str:
    """Return a valid address of a PCI function unchanged. Raise TargetError for any other text."""
    if not ADDRESS.fullmatch(text):
        raise TargetError(
            f"{text!r} is not an address of a PCI function; an example is 0000:00:05.0"
        )
    return text


class HostPci(OwnedTarget):
    """A virtio block function of this machine, through vfio or uio.

    The driver uses whichever of the two the function is bound to. If it is bound to no driver, vfio
    is used if there is an IOMMU and uio otherwise. A function that another kernel driver uses is
    refused: to take it could take the machine's own disk.
    """

    description = "a PCI function of this machine, through vfio or uio, driven from the host"
    alike = "guest-pci"
    traits = frozenset({"pci", "modern"})
    owner = "this machine's PCI function"

    def __init__(
        self,
        address: str,
        destructive: bool = False,
        host: HostSide = HostSide(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(f"pci:{address}", destructive, host)
        self._address = address
        self._function: PciFunction | None = None

    def _reach(self, spec: DiskSpec) -> Transport:
        del spec  # the driver chooses a queue's size when it sets the queue up
        self._must_be_virtio_block()
        function = self._take()
        try:
            transport = PciModern(function)
        except BaseException:
            function.close()
            raise
        self._function = function
        return transport

    def _look(self, spec: DiskSpec) -> None:
        """As for any device of somebody's, without taking it."""
        del spec
        self._must_be_virtio_block()

    def _must_be_virtio_block(self) -> None:
        path = linux_sysfs.SYSFS / "devices" / self._address
        if not path.exists():
            there = ", ".join(sorted(entry.name for entry in path.parent.glob("*")))
            raise TargetError(
                f"this machine has no PCI function {self._address}; it has: {there or 'none'}"
            )
        vendor, device = (int((path / name).read_text(), 16) for name in ("vendor", "device"))
        if vendor != VENDOR_ID or device not in DEVICES:
            raise TargetError(
                f"{self._address} is {vendor:04x}:{device:04x}, not a virtio block device"
            )

    def _take(self) -> PciFunction:
        bound = linux_sysfs.kernel_driver(self._address)
        grouped = (linux_sysfs.SYSFS / "devices" / self._address / "iommu_group").exists()
        if bound == linux_vfio.DRIVER or (bound is None and grouped):
            return linux_vfio.LinuxVfio(self._address)
        return linux_pci.LinuxPci(self._address)

    def facts(self) -> dict[str, str]:
        """Return the function's address and id, and the way it is reached."""
        if not self._function:
            return {"function": self._address}
        shown = self._function.description()
        return {"function": self._address, "id": shown["id"], "reached-by": shown["bus"]}

    def check(self) -> None:
        """Raise TargetError if the function in use no longer answers."""
        if self._disk and self._disk.plugged and self._function:
            try:
                vendor = self._function.pci_read(0, 2)
            except (DriverError, OSError) as error:
                raise TargetError(f"{self._address} is gone: {error}") from None
            if vendor == GONE:
                raise TargetError(f"{self._address} is gone: it no longer answers")
