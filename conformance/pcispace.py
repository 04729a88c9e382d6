"""Capabilities and BARs in PCI configuration space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.driver.interface import Driver
from harness.virtio.pci import (
    BAR_0,
    BAR_64,
    BAR_IO,
    BAR_IO_FLAGS,
    BAR_MEMORY_FLAGS,
    BAR_TYPE,
    BARS,
    CAP_EXPRESS,
    CAPABILITIES,
    COMMAND,
    COMMAND_DECODE,
    EXPRESS_RESET,
    EXTENDED,
    HEADER_SIZE,
)

CAN_FUNCTION_RESET = 1 << 28
"""The bit of PCI Express Device Capabilities that says: function level reset."""

RESET_SETTLES = 0.1
"""Seconds that PCI gives a function for a reset."""


def pointers(driver: Driver) -> list[int]:
    """Return the pointers of the capability list, in order; the last is 0 in a correct list.

    The result ends early at a pointer into the header or at a pointer that occurred before.
    """
    found = [driver.pci_read(CAPABILITIES, 1)[0]]
    while found[-1] >= HEADER_SIZE and found[-1] not in found[:-1]:
        found.append(driver.pci_read((found[-1] & ~3) + 1, 1)[0])
    return found


def capabilities(driver: Driver) -> Iterator[tuple[int, int]]:
    """Yield the id and the offset of each capability."""
    for pointer in dict.fromkeys(pointers(driver)):
        if pointer >= HEADER_SIZE:
            at = pointer & ~3
            yield driver.pci_read(at, 1)[0], at


def capability(driver: Driver, ident: int, name: str) -> int:
    """Return the offset of a PCI capability; skip a function without it."""
    for kind, at in capabilities(driver):
        if kind == ident:
            return at
    pytest.skip(f"the function has no {name} capability")


def reset_function(driver: Driver) -> None:
    """Begin a function level reset, which takes RESET_SETTLES; skip a function that has none."""
    at = capability(driver, CAP_EXPRESS, "PCI Express")
    if not int.from_bytes(driver.pci_read(at + 4, 4), "little") & CAN_FUNCTION_RESET:
        pytest.skip("the function has no function level reset")
    driver.pci_write(at + 8, EXPRESS_RESET.to_bytes(2, "little"))


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
    """A BAR: in I/O space or not, its BAR_TYPE (0 in I/O space), and its size in bytes."""

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
        ports = bool(low & BAR_IO)
        kind = 0 if ports else low & BAR_TYPE
        wide = kind == BAR_64 and number + 1 < BARS
        if low:
            high = masks[number + 1] if wide else 0xFFFFFFFF
            bits = high << 32 | low & ~(BAR_IO_FLAGS if ports else BAR_MEMORY_FLAGS)
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
