"""Addresses that no driver may give to a device, or only to its own harm."""

from __future__ import annotations

import os

import pytest

from harness.driver.errors import BadArgumentError, DriverError
from harness.driver.interface import Driver
from harness.virtio.mmio import CONFIG
from harness.virtio.pci import COMMON_REGISTERS, CapType

PLACES = ("nowhere", "end-of-memory", "wrapping", "own-registers", "firmware")

FIRMWARE = 0xFFFF_0000
"""ROM of a PC."""

BAR_0 = 0x10
BAR_FLAGS = 0xF
WIDE = 0x4
"""A BAR's first register in PCI configuration space, its low bits, and the one of 64 bits."""


def place(driver: Driver, name: str) -> int:
    """An address of a kind of `PLACES`. Skips the test where there is no such place."""
    if name == "nowhere":
        return 0xF0_0000_0000
    if name == "wrapping":
        return 2**64 - 8
    if name == "end-of-memory":
        return end_of_memory(driver) - 8
    if name == "own-registers":
        return register_address(driver, CapType.COMMON_CFG)
    if "bus" not in driver.description():
        pytest.skip("there is no firmware beside a vhost-user device")
    return FIRMWARE


def register_address(driver: Driver, kind: CapType) -> int:
    """Where the device's own registers lie in memory: of PCI, a structure of this kind."""
    described = driver.description()
    if "mmio" in described.get("transport", ""):
        return int(described["address"], 0)
    try:
        structures = driver.capabilities()
    except DriverError as error:
        pytest.skip(f"no registers in memory: {error.message}")
    structure = next(one for one in structures if one.type == kind)
    raw = driver.pci_read(BAR_0 + 4 * structure.bar, 8)
    low, high = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")
    base = low & ~BAR_FLAGS
    return base + (high << 32 if low & WIDE else 0) + structure.offset


def status_register(driver: Driver) -> int:
    """The address of the device status field."""
    base = register_address(driver, CapType.COMMON_CFG)
    mmio = "mmio" in driver.description().get("transport", "")
    return base + (0x70 if mmio else COMMON_REGISTERS["device_status"][0])


def notify_register(driver: Driver) -> int:
    """The address that notifies the first queue."""
    mmio = "mmio" in driver.description().get("transport", "")
    return register_address(driver, CapType.NOTIFY_CFG) + (0x50 if mmio else 0)


def config_space(driver: Driver) -> int:
    """The address of the device configuration space."""
    mmio = "mmio" in driver.description().get("transport", "")
    return register_address(driver, CapType.DEVICE_CFG) + (CONFIG if mmio else 0)


def end_of_memory(driver: Driver) -> int:
    """The first address behind RAM, of which all is ours that lies below it."""
    if driver.description().get("pid") != os.getpid():
        pytest.skip("in a guest, memory ends with the kernel's")
    inside = driver.alloc(4096, 4096)
    step = 1 << 32
    while step >= 4096:
        try:
            driver.memory_read(inside + step, 1)
            inside += step
        except BadArgumentError:
            step //= 2
    return inside + 4096
