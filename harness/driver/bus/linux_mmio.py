"""A virtio-mmio window under Linux: registers through /dev/mem, huge pages as DMA memory.

For a guest, as root, whose kernel has no driver for the window. Its interrupt
line is not available here, so InterruptStatus is polled instead.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Any

from harness.driver.bus.base import MmioWindow
from harness.driver.bus.linux_pci import HugePage
from harness.driver.bus.linux_sysfs import MappedBar
from harness.driver.errors import BadArgumentError, NoDeviceError
from harness.driver.memory import DmaMemory, Region
from harness.virtio.mmio import REGISTERS

INTERRUPT_STATUS = REGISTERS["InterruptStatus"]
LOOK_AGAIN = 0.0002
"""Seconds between two polls of InterruptStatus."""


class LinuxMmio(MmioWindow):
    """The window at a physical address like `0xfeb00000`.

    Raises BadArgumentError if `address` is malformed, NoDeviceError if it cannot be mapped.
    """

    size = 0x200

    def __init__(self, address: str, timeout: float = 5.0) -> None:
        del timeout  # windows are there from the start, so there is no wait
        self.address = address
        try:
            physical = int(address, 16)
        except ValueError:
            raise BadArgumentError(
                f"{address!r} is not a physical address like 0xfeb00000"
            ) from None
        page = physical // mmap.PAGESIZE * mmap.PAGESIZE
        self._offset = physical - page
        self._pages: list[HugePage] = []
        self._reported = False
        try:
            memory = os.open("/dev/mem", os.O_RDWR | os.O_SYNC)
            try:
                self._registers = MappedBar(memory, mmap.PAGESIZE, page)
            finally:
                os.close(memory)
        except OSError as error:
            raise NoDeviceError(f"no registers at {address}: {error.strerror}") from error
        self.memory = DmaMemory([], self._grow)

    def _grow(self) -> Region | None:
        try:
            page = HugePage.take()
        except OSError:
            return None
        self._pages.append(page)
        return page.region

    def description(self) -> dict[str, Any]:
        """Return the address, and that InterruptStatus is polled."""
        return {
            "bus": "mmio",
            "address": self.address,
            "interrupt": "InterruptStatus, polled",
        }

    def read(self, offset: int, width: int) -> int:
        """Read in one access of `width` (1, 2 or 4) bytes."""
        return self._registers.read(self._offset + offset, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write in one access of `width` (1, 2 or 4) bytes."""
        self._registers.write(self._offset + offset, width, value)

    def fileno(self) -> int | None:
        """Return None: no descriptor shows interrupts."""
        return None

    def take_interrupts(self, timeout: float) -> int:
        """Return 1 if InterruptStatus shows new bits; wait up to `timeout` seconds for them."""
        deadline = time.monotonic() + timeout
        while self._reported or not self.read(INTERRUPT_STATUS, 4):
            if time.monotonic() >= deadline:
                return 0
            time.sleep(LOOK_AGAIN)
        self._reported = True
        return 1

    def unmask_interrupts(self) -> None:
        """Take bits of InterruptStatus as new from now on: the old ones are acknowledged."""
        self._reported = False

    def close(self) -> None:
        """Unmap the registers, and give the memory back for the next driver."""
        self._registers.close()
        HugePage.idle += self._pages
        self._pages = []
