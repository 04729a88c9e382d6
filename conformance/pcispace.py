"""Capabilities and BARs in PCI configuration space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.driver.interface import Driver

COMMAND = 0x04
COMMAND_DECODE = 0x3
"""The bits of the command register that enable decoding of I/O and memory accesses."""

STATUS = 0x06
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
REVISION = 0x08
HEADER_TYPE = 0x0E
BAR_0 = 0x10
BARS = 6
IN_PORTS = 1
SUBSYSTEM = 0x2E
CAPABILITIES = 0x34
INTERRUPT_PIN = 0x3D
FIRST_CAPABILITY = 0x40

CAP_MSIX = 0x11
CAP_EXPRESS = 0x10
EXTENDED = 0x100
EXT_CAP_SR_IOV = 0x10


def pointers(driver: Driver) -> list[int]:
    """Return the pointers of the capability list, in order; the last is 0 in a correct list.

    The result ends early at a pointer into the header or at a pointer that occurred before.
    """
    found = [driver.pci_read(CAPABILITIES, 1)[0]]
    while found[-1] >= FIRST_CAPABILITY and found[-1] not in found[:-1]:
        found.append(driver.pci_read((found[-1] & ~3) + 1, 1)[0])
    return found


def capabilities(driver: Driver) -> Iterator[tuple[int, int]]:
    """Yield the id and the offset of each capability."""
    for pointer in dict.fromkeys(pointers(driver)):
        if pointer >= FIRST_CAPABILITY:
            at = pointer & ~3
            yield driver.pci_read(at, 1)[0], at


def extended_capabilities(driver: Driver) -> Iterator[tuple[int, int]]:
    """Yield the id and the offset of each extended capability; a PCI function has none."""
    if CAP_EXPRESS not in [ident for ident, _ in capabilities(driver)]:
        return
    at, seen = EXTENDED, set[int]()
    while at >= EXTENDED and at not in seen:
        seen.add(at)
        head = driver.pci_read(at, 4)
        if len(head) < 4 or head in (
            bytes(4),
            b"\xff" * 4,
        ):  # the bus has no extended configuration space
            return
        word = int.from_bytes(head, "little")
        yield word & 0xFFFF, at
        at = word >> 20 & ~3


@dataclass(frozen=True)
class Bar:
    """A BAR: in I/O space or not, the two bits of its memory type, and its size in bytes."""

    ports: bool
    type: int
    size: int


def bars(driver: Driver) -> dict[int, Bar]:
    """Return the implemented BARs by number. Address decoding is disabled during the call."""
    command = driver.pci_read(COMMAND, 2)
    quiet = int.from_bytes(command, "little") & ~COMMAND_DECODE
    driver.pci_write(COMMAND, quiet.to_bytes(2, "little"))
    try:
        masks = [_mask(driver, BAR_0 + 4 * number) for number in range(BARS)]
    finally:
        driver.pci_write(COMMAND, command)
    found = {}
    number = 0
    while number < BARS:
        low = masks[number]
        ports = bool(low & IN_PORTS)
        kind = 0 if ports else low >> 1 & 3
        wide = kind == 2 and number + 1 < BARS
        if low:
            high = masks[number + 1] if wide else 0xFFFFFFFF
            bits = high << 32 | low & ~(0x3 if ports else 0xF)
            # The upper half of an I/O BAR may be wired to 0: its space has 64 KiB.
            size = -bits & (0xFFFF if ports else (1 << 64) - 1)
            found[number] = Bar(ports, kind, size)
        number += 2 if wide else 1
    return found


def _mask(driver: Driver, at: int) -> int:
    """Return the value of a BAR register after a write of all ones, and restore the register."""
    before = driver.pci_read(at, 4)
    driver.pci_write(at, b"\xff" * 4)
    try:
        return int.from_bytes(driver.pci_read(at, 4), "little")
    finally:
        driver.pci_write(at, before)
