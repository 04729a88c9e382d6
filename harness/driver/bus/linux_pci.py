"""A PCI function under Linux: sysfs, huge pages as DMA memory, INTx through uio_pci_generic.

For a guest or a host without an IOMMU, as root.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from harness.driver.bus.base import PciFunction
from harness.driver.bus.linux_sysfs import Binding, FileBar, MappedBar, change_command
from harness.driver.errors import DriverError, NoDeviceError
from harness.driver.memory import DmaMemory, Region
from harness.virtio.pci import (
    BARS,
    COMMAND_INTX_DISABLE,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
)

DRIVER = "uio_pci_generic"
DEV = Path("/dev")

HUGE_PAGES = Path("/dev/hugepages")
HUGE_PAGE = 2 * 1024 * 1024

RESOURCE_IO = 0x100
"""Flag in a line of `resource` for a BAR in I/O space."""


class HugePage:
    """A huge page, which keeps its physical address.

    A page that a driver has released is reused by the next driver: there are few,
    and an unmapped page is free only when nothing refers to its memory any more.
    """

    idle: ClassVar[list[HugePage]] = []

    @classmethod
    def take(cls) -> HugePage:
        """Return an unused page. Raises OSError if the kernel has none left."""
        return cls.idle.pop() if cls.idle else cls()

    def __init__(self) -> None:
        path = HUGE_PAGES / f"vblk-{os.getpid()}-{time.monotonic_ns()}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.ftruncate(descriptor, HUGE_PAGE)
            self.map = mmap.mmap(descriptor, HUGE_PAGE)
            self.map[0] = 0
            self.region = Region(_physical_address(path), memoryview(self.map))
        finally:
            os.close(descriptor)
            path.unlink()


def _physical_address(mapped: Path) -> int:
    """Return the physical address of the single page of a file that this process has mapped.

    The virtual address is found by file name in /proc/self/maps. `ctypes` would
    give it too, but takes libffi in the guest, and time to load it.
    """
    maps = Path("/proc/self/maps").read_text().splitlines()
    virtual = next(int(line.split("-", 1)[0], 16) for line in maps if line.endswith(str(mapped)))
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(virtual // mmap.PAGESIZE * 8)
        (entry,) = struct.unpack("<Q", pagemap.read(8))
    frame = entry & ((1 << 55) - 1)
    if not entry >> 63 or not frame:
        raise DriverError("the kernel hides physical addresses: the driver must run as root")
    return int(frame) * mmap.PAGESIZE


class LinuxPci(PciFunction):
    """A function at an address like `0000:00:05.0`, bound to uio_pci_generic while in use.

    Raises NoDeviceError if it does not appear within `timeout` seconds, or is in use.
    """

    def __init__(self, address: str, timeout: float = 5.0) -> None:
        self.address = address
        self._pages: list[HugePage] = []
        self._sizes: list[int] = []
        self._ports: set[int] = set()
        self._bars: dict[int, FileBar | MappedBar] = {}
        self._files: list[int] = []
        self._masked = False
        self._owed = False
        self._binding = Binding(address, DRIVER, timeout)
        try:
            self._uio = self._open_uio()
            self._find_bars()
            self.memory = DmaMemory([], self._grow)
            change_command(self, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER, COMMAND_INTX_DISABLE)
        except BaseException:
            self.close()
            raise

    def _open_uio(self) -> int:
        devices = self._binding.path / "uio"

        def nodes() -> list[Path]:
            there = [DEV / entry.name for entry in devices.glob("uio*")]
            return [device for device in there if device.exists()]

        self._binding.await_true(lambda: bool(nodes()), "a uio device")
        if (self._binding.path / "irq").read_text().strip() == "0":
            raise DriverError(
                f"{self.address} has no interrupt: the kernel routes none to its slot"
            )
        return self._open(nodes()[0], os.O_NONBLOCK)

    def _open(self, path: Path, flags: int = 0) -> int:
        self._files.append(os.open(path, os.O_RDWR | flags))
        return self._files[-1]

    def _find_bars(self) -> None:
        lines = (self._binding.path / "resource").read_text().splitlines()[:BARS]
        for bar, line in enumerate(lines):
            start, end, flags = (int(word, 16) for word in line.split())
            self._sizes.append(end - start + 1 if flags else 0)
            if flags & RESOURCE_IO:
                self._ports.add(bar)

    def _grow(self) -> Region | None:
        try:
            page = HugePage.take()
        except OSError:
            return None
        self._pages.append(page)
        return page.region

    def description(self) -> dict[str, Any]:
        """Return address and ids, for reports."""
        return {
            "bus": "pci",
            "address": self.address,
            **self.identity(),
            "interrupt": "INTx",
        }

    def pci_read(self, offset: int, length: int) -> bytes:
        """Read bytes of configuration space; 1, 2 or 4 at an aligned offset are one access."""
        return os.pread(self._binding.config, length, offset)

    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of configuration space in one access."""
        os.pwrite(self._binding.config, data, offset)

    def bar_size(self, bar: int) -> int:
        """Return the size of a BAR in bytes, 0 if the function does not have it."""
        return self._sizes[bar] if bar < len(self._sizes) else 0

    def _bar(self, bar: int) -> FileBar | MappedBar:
        if not self.bar_size(bar):
            raise NoDeviceError(f"{self.address} has no BAR {bar}")
        file = self._open(self._binding.path / f"resource{bar}")
        access = FileBar(file) if bar in self._ports else MappedBar(file, self.bar_size(bar))
        self._bars[bar] = access
        return access

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """Read from a BAR in one access of `width` (1, 2 or 4) bytes."""
        return (self._bars.get(bar) or self._bar(bar)).read(offset, width)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write to a BAR in one access of `width` (1, 2 or 4) bytes."""
        (self._bars.get(bar) or self._bar(bar)).write(offset, width, value)

    def fileno(self) -> int | None:
        """Return the uio device's descriptor, readable while an interrupt is pending."""
        return self._uio

    def take_interrupts(self, timeout: float) -> int:
        """Return 1 if the line was raised since the last call; wait up to `timeout` s for it.

        The kernel's handler masks the line, so it can be raised once until
        `unmask_interrupts`. While our interrupt is pending, the handler also counts
        the interrupts of other devices on the same line: counts that come while the
        line is masked are not ours.
        """
        if self._owed:
            self._owed = False
            return 1
        if not self._drain(timeout) or self._masked:
            return 0
        self._masked = True
        return 1

    def _drain(self, timeout: float) -> bool:
        """Read the handler's counter; return True if it has counted since the last read."""
        readable, _, _ = select.select([self._uio], [], [], timeout)
        if readable:
            os.read(self._uio, 4)
        return bool(readable)

    def enable_msix(self, vectors: int) -> None:
        """Accept 0 (INTx) only: uio_pci_generic does not support MSI-X."""
        if vectors:
            raise DriverError(f"{self.address} has no MSI-X here: uio_pci_generic passes INTx only")

    def take_messages(self, timeout: float) -> Counter[int]:
        """Return no messages: there is no MSI-X here."""
        del timeout
        return Counter()

    def unmask_interrupts(self) -> None:
        """Enable INTx in the command register again, where the kernel's handler disables it."""
        if self._drain(0) and not self._masked:
            self._owed = True  # ISR status was read before the interrupt was taken
        self._masked = False
        change_command(self, clear=COMMAND_INTX_DISABLE)

    def close(self) -> None:
        """Disable bus mastering of the function and release all resources."""
        if self._binding.config < 0:
            return
        # If the device is already unplugged, there is nothing to undo.
        with suppress(OSError):
            change_command(self, COMMAND_INTX_DISABLE, COMMAND_MASTER)
        for bar in self._bars.values():
            bar.close()
        for file in self._files:
            os.close(file)
        HugePage.idle += self._pages
        self._binding.release()
