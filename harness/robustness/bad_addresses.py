"""Addresses that a driver must not give to a device."""

from __future__ import annotations

import os

import pytest

from harness.driver.errors import BadArgumentError, DriverError
from harness.driver.interface import Driver
from harness.virtio.mmio import CONFIG, REGISTERS
from harness.virtio.pci import (
    BAR_0,
    BAR_64,
    BAR_MEMORY_FLAGS,
    BAR_TYPE,
    COMMON_REGISTERS,
    CapType,
)

PLACES = ("nowhere", "end-of-memory", "wrapping", "own-registers", "firmware")

FIRMWARE = 0xFFFF_0000
"""ROM of a PC."""


def place(driver: Driver, name: str) -> int:
    """Return an address of one of the kinds in `PLACES`.

    Skip the test if there is no such address.
    """
    if name == "nowhere":
        return 0xF0_0000_0000
    if name == "wrapping":
        return 2**64 - 8
    if name == "end-of-memory":
        return end_of_memory(driver) - 8
    if name == "own-registers":
        return register_address(driver, CapType.COMMON_CFG)
    if driver.transport_kind() == "vhost-user":
        pytest.skip("a vhost-user device has no firmware in its memory")
    return FIRMWARE


def has_window(driver: Driver) -> bool:
    """Return True on virtio-mmio, where all registers are in one window (virtio 4.2.2)."""
    return driver.transport_kind() in ("mmio", "mmio-legacy")


def register_address(driver: Driver, kind: CapType) -> int:
    """Return the memory address of the device's registers; on PCI, of the structure `kind`.

    Skip the test if the device has none.
    """
    try:
        return find_registers(driver, kind)
    except DriverError as error:
        pytest.skip(f"the device has no registers in memory: {error.message}")


def find_registers(driver: Driver, kind: CapType) -> int:
    """Return the memory address of the device's registers; on PCI, of the structure `kind`.

    Raises DriverError if the device has none.
    """
    if has_window(driver):
        return int(driver.description()["address"], 0)
    structures = [
        structure
        for structure in driver.capabilities()
        if structure.type == kind and not structure.reserved
    ]
    if not structures:
        raise DriverError(f"the function has no structure {kind.name}")
    raw = driver.pci_read(BAR_0 + 4 * structures[0].bar, 8)
    low, high = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")
    base = low & ~BAR_MEMORY_FLAGS
    return base + (high << 32 if low & BAR_TYPE == BAR_64 else 0) + structures[0].offset


def status_register(driver: Driver) -> int:
    """Return the address of the device status field."""
    offset = REGISTERS["Status"] if has_window(driver) else COMMON_REGISTERS["device_status"][0]
    return register_address(driver, CapType.COMMON_CFG) + offset


def notify_register(driver: Driver) -> int:
    """Return the address that notifies the first queue."""
    offset = REGISTERS["QueueNotify"] if has_window(driver) else 0
    return register_address(driver, CapType.NOTIFY_CFG) + offset


def config_space(driver: Driver) -> int:
    """Return the address of the device configuration space."""
    return register_address(driver, CapType.DEVICE_CFG) + (CONFIG if has_window(driver) else 0)


def end_of_memory(driver: Driver) -> int:
    """Return the first address after RAM. All memory below it belongs to the driver."""
    if driver.description().get("pid") != os.getpid():
        pytest.skip("in a guest, the end of memory belongs to the kernel")
    inside = driver.alloc(4096, 4096)
    step = 1 << 32
    while step >= 4096:
        try:
            driver.memory_read(inside + step, 1)
            inside += step
        except BadArgumentError:
            step //= 2
    return inside + 4096
