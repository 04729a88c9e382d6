"""Guarded memory: writes outside the buffers of a device are detected."""

from __future__ import annotations

from typing import cast

import pytest

from harness.driver.interface import CANARY, Driver
from harness.driver.memory import DmaMemory, Region
from harness.robustness.guarded_memory import GuardedMemory

BASE = 0x10000


class Memory:
    """The memory methods of a driver."""

    def __init__(self) -> None:
        self.dma = DmaMemory([Region(BASE, memoryview(bytearray(4096)))])

    def alloc(self, length: int, align: int = 16) -> int:
        return self.dma.alloc(length, align)

    def memory_read(self, address: int, length: int) -> bytes:
        return bytes(self.dma.view(address, length))

    def memory_write(self, address: int, data: bytes) -> None:
        self.dma.view(address, len(data))[:] = data


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def canaries(memory: Memory) -> GuardedMemory:
    return GuardedMemory(cast(Driver, memory))


def test_a_fence_holds_until_a_byte_of_it_changes(memory: Memory, canaries: GuardedMemory) -> None:
    address = canaries.fence("the fence", 128)
    whole = canaries.damage()

    memory.memory_write(address + 5, b"\0\1")

    assert whole == ""
    assert canaries.damage() == (
        "2 bytes of the fence changed, the first at +0x5 from 0xc5 to 0x00"
    )


def test_what_the_driver_writes_is_no_damage(memory: Memory, canaries: GuardedMemory) -> None:
    address = canaries.fence("the fence", 128)

    canaries.write(address - 0, b"abc")
    canaries.write(address + 126, b"xy")

    assert canaries.damage() == ""
    assert memory.memory_read(address, 3) == b"abc"


def test_what_was_given_is_the_devices_and_no_more(memory: Memory, canaries: GuardedMemory) -> None:
    address = canaries.fence("the fence", 128)
    canaries.give(address + 32, 16)

    memory.memory_write(address + 32, bytes(16))
    within = canaries.damage()
    memory.memory_write(address + 48, b"\0")

    assert within == ""
    assert "the first at +0x30" in canaries.damage()


def test_a_gift_over_the_end_of_a_region_counts_within_it(
    memory: Memory, canaries: GuardedMemory
) -> None:
    first = canaries.fence("one", 64)
    second = canaries.fence("two", 64)
    canaries.give(first + 60, 2**32)

    memory.memory_write(first + 60, bytes(4))
    memory.memory_write(second, bytes(64))

    assert canaries.damage() == ""


def test_a_renewed_region_belongs_to_no_buffer(memory: Memory, canaries: GuardedMemory) -> None:
    address = canaries.fence("the fence", 64)
    canaries.give(address, 64)
    memory.memory_write(address, bytes(64))

    canaries.renew(address, 64)
    renewed = memory.memory_read(address, 64), canaries.damage()
    memory.memory_write(address, b"\0")

    assert renewed == (bytes([CANARY]) * 64, "")
    assert canaries.damage() != ""


def test_memory_in_use_is_watched_as_it_stands(memory: Memory, canaries: GuardedMemory) -> None:
    address = memory.alloc(16)
    memory.memory_write(address, b"descriptor table")
    canaries.watch("the table", address, 16)

    memory.memory_write(address + 15, b"!")

    assert canaries.damage() == (
        "1 bytes of the table changed, the first at +0xf from 0x65 to 0x21"
    )
