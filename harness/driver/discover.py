"""The virtio block devices of this machine, on PCI and on virtio-mmio.

Windows of virtio-mmio devices are named on the kernel's command line
(`virtio_mmio.device=4K@0xd0000000:5`). If the kernel found them in ACPI or in a device tree,
/proc/iomem names them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from harness.driver.bus.linux_mmio import LinuxMmio
from harness.driver.errors import DriverError
from harness.virtio.mmio import MAGIC, REGISTERS, VERSION

PCI_DEVICES = Path("/sys/bus/pci/devices")
COMMAND_LINE = Path("/proc/cmdline")
RESOURCES = Path("/proc/iomem")

VENDOR = "0x1af4"
BLOCK = {"0x1001", "0x1042"}
"""PCI device IDs of a block device: transitional and modern (virtio 4.1.2.1)."""

BLOCK_DEVICE = 2
"""Device ID of a block device (virtio 5)."""

_ON_COMMAND_LINE = re.compile(r"virtio_mmio\.device=\S*?@(0x[0-9a-fA-F]+|\d+):")
_RESOURCE = re.compile(r"^\s*([0-9a-f]+)-[0-9a-f]+ : .*(?:LNRO0005|virtio[_-]mmio)", re.MULTILINE)


def disks() -> list[tuple[str, str]]:
    """Return kind and address of each virtio block device, as `attach` takes them.

    A window with the legacy interface has the kind "mmio-legacy", for which there is no driver.
    """
    return [*_functions(), *_windows()]


def _functions() -> Iterator[tuple[str, str]]:
    for function in sorted(PCI_DEVICES.glob("*")):
        with suppress(OSError):  # it is being unplugged
            vendor = (function / "vendor").read_text().strip()
            device = (function / "device").read_text().strip()
            if vendor == VENDOR and device in BLOCK:
                kind = "pci-vfio" if (function / "iommu_group").exists() else "pci"
                yield kind, function.name


def addresses(command_line: str, resources: str) -> list[int]:
    """Return the physical addresses of virtio-mmio windows in these two texts of the kernel."""
    named = [int(text, 0) for text in _ON_COMMAND_LINE.findall(command_line)]
    listed = [int(text, 16) for text in _RESOURCE.findall(resources)]
    return sorted({*named, *listed} - {0})


def _windows() -> Iterator[tuple[str, str]]:
    for address in addresses(COMMAND_LINE.read_text(), RESOURCES.read_text()):
        with suppress(DriverError):  # nothing answers at an address that a text names
            window = LinuxMmio(hex(address))
            try:
                magic, version, device = (
                    window.read(REGISTERS[name], 4)
                    for name in ("MagicValue", "Version", "DeviceID")
                )
            finally:
                window.close()
            if (magic, device) == (MAGIC, BLOCK_DEVICE):
                yield "mmio" if version == VERSION else "mmio-legacy", hex(address)
