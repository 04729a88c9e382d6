"""MSI-X capability and table of a PCI function."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.driver.bus.base import PciFunction
from harness.driver.errors import DriverError
from harness.virtio.pci import CAP_MSIX, CAPABILITIES, MSIX_ENABLE, MSIX_ENTRY, MSIX_TABLE_SIZE


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
    at = function.pci_read(CAPABILITIES, 1)[0] & ~3
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        kind, following = function.pci_read(at, 2)
        if kind == CAP_MSIX:
            control, table = struct.unpack("<HI", function.pci_read(at + 2, 6))
            return MsixTable(at + 2, (control & MSIX_TABLE_SIZE) + 1, table & 7, table & ~7)
        at = following & ~3
    raise DriverError("the device has no MSI-X capability")


def write_entry(
    function: PciFunction, table: MsixTable, vector: int, address: int, data: int
) -> None:
    """Write the message address and data of a vector into the table, and unmask the vector."""
    at = table.offset + MSIX_ENTRY.size * vector
    words = struct.unpack("<4I", MSIX_ENTRY.pack(address, data, 0))
    function.bar_accesses(
        table.bar, [(at + 4 * position, 4, word) for position, word in enumerate(words)]
    )


def set_enabled(function: PciFunction, table: MsixTable, enabled: bool) -> None:
    """Set or clear MSI-X Enable, and clear the function mask."""
    control = MSIX_ENABLE if enabled else 0
    function.pci_write(table.control, control.to_bytes(2, "little"))
