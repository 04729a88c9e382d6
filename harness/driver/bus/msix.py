"""MSI-X capability and table of a PCI function."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.driver.bus.base import PciFunction
from harness.driver.errors import DriverError

CAP_POINTER = 0x34
CAP_MSIX = 0x11
MSIX_ENABLE = 1 << 15

MSIX_ENTRY = struct.Struct("<QII")
"""A table entry: message address, message data, vector control (0: not masked)."""


@dataclass(frozen=True)
class MsixTable:
    """Offset of Message Control in configuration space, and place of the table in a BAR.

    `size` is in vectors.
    """

    control: int
    size: int
    bar: int
    offset: int


def msix_table(function: PciFunction) -> MsixTable:
    """Decode the function's MSI-X capability. Raises DriverError if it has none."""
    at = function.pci_read(CAP_POINTER, 1)[0] & ~3
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        kind, following = function.pci_read(at, 2)
        if kind == CAP_MSIX:
            control, table = struct.unpack("<HI", function.pci_read(at + 2, 6))
            return MsixTable(at + 2, (control & 0x7FF) + 1, table & 7, table & ~7)
        at = following & ~3
    raise DriverError("the device has no MSI-X capability")
