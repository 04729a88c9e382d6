"""A PCI function under Linux: sysfs, huge pages as DMA memory, INTx through uio_pci_generic.

For a guest (or a machine) without an IOMMU in the way, as root.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Literal

from harness.driver.errors import BadArgumentError, DriverError, NoDeviceError
from harness.driver.memory import DmaMemory, Region

from .base import PciFunction

COMMAND = 0x04
COMMAND_IO = 0x1
COMMAND_MEMORY = 0x2
COMMAND_MASTER = 0x4
COMMAND_INTX_DISABLE = 0x400

FORMATS: dict[int, Literal["B", "H", "I"]] = {1: "B", 2: "H", 4: "I"}

HUGE_PAGES = Path("/dev/hugepages")
HUGE_PAGE = 2 * 1024 * 1024
SYSFS = Path("/sys/bus/pci")

RESOURCE_IO = 0x100
"""The flag of a `resource` line that is a BAR in I/O space."""

UIO_WAIT = 5.0
"""Seconds that the kernel may take to make a uio device after the bind."""


class HugePage:
    """One huge page: memory that stays where it is in physical memory.

    A page that a driver gave back serves the next one: there are few, and one
    that was unmapped is only free once nothing refers to its memory any more.
    """

    idle: ClassVar[list[HugePage]] = []

    @classmethod
    def take(cls) -> HugePage:
        """A page of nobody else's. OSError if the kernel has none left."""
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
    """The physical address of the one page of a file that this process has mapped.

    The maps name the file; `ctypes` would give the address too, but costs a
    guest libffi and the time to load it.
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

    NoDeviceError if it does not show up within `timeout` seconds, or another
    kernel driver has it.
    """

    def __init__(self, address: str, timeout: float = 5.0) -> None:
        self.address = address
        self._path = SYSFS / "devices" / address
        self._wait_for_device(timeout)
        self._pages: list[HugePage] = []
        self._maps: dict[int, mmap.mmap] = {}
        self._views: dict[tuple[int, int], memoryview] = {}
        self._ports: dict[int, int] = {}
        self._uio = -1
        self._seen = 0
        self._config = os.open(self._path / "config", os.O_RDWR)
        try:
            self._sizes = self._read_bar_sizes()
            self._bind()
            self.memory = DmaMemory([], self._grow)
            self._command(
                set_bits=COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER, clear=COMMAND_INTX_DISABLE
            )
        except BaseException:
            self.close()
            raise

    def _wait_for_device(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not (self._path / "config").exists():
            if time.monotonic() > deadline:
                present = ", ".join(sorted(entry.name for entry in self._path.parent.iterdir()))
                raise NoDeviceError(
                    f"no PCI function {self.address} after {timeout:g} s; there are: {present}"
                )
            time.sleep(0.01)

    def _read_bar_sizes(self) -> list[int]:
        sizes = []
        for line in (self._path / "resource").read_text().splitlines()[:6]:
            start, end, flags = (int(word, 16) for word in line.split())
            sizes.append(end - start + 1 if flags else 0)
            if flags & RESOURCE_IO:
                self._ports[len(sizes) - 1] = os.open(
                    self._path / f"resource{len(sizes) - 1}", os.O_RDWR
                )
        return sizes

    def _bind(self) -> None:
        driver = self._path / "driver"
        if driver.exists():
            raise NoDeviceError(
                f"{self.address} is in use by the kernel's {driver.resolve().name}: unbind it first"
            )
        (self._path / "driver_override").write_text("uio_pci_generic")
        deadline = time.monotonic() + UIO_WAIT
        while not self._bound():
            if time.monotonic() > deadline:
                raise DriverError(f"{self.address} cannot be bound after {UIO_WAIT:g} s")
            time.sleep(0.005)
        while True:
            device = next((self._path / "uio").glob("uio*"), None)
            if device is not None and (Path("/dev") / device.name).exists():
                self._uio = os.open(Path("/dev") / device.name, os.O_RDWR | os.O_NONBLOCK)
                return
            if time.monotonic() > deadline:
                raise DriverError(f"no uio device for {self.address} after {UIO_WAIT:g} s")
            time.sleep(0.005)

    def _bound(self) -> bool:
        try:
            (SYSFS / "drivers/uio_pci_generic/bind").write_text(self.address)
        except OSError as error:
            # A function that was just plugged in shows in sysfs before it is on the bus.
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def _grow(self) -> Region | None:
        try:
            page = HugePage.take()
        except OSError:
            return None
        self._pages.append(page)
        return page.region

    def _command(self, set_bits: int = 0, clear: int = 0) -> None:
        value = int.from_bytes(self.pci_read(COMMAND, 2), "little")
        self.pci_write(COMMAND, ((value | set_bits) & ~clear).to_bytes(2, "little"))

    def description(self) -> dict[str, Any]:
        """Address and identity, for reports."""
        vendor, device = struct.unpack("<HH", self.pci_read(0, 4))
        return {
            "bus": "pci",
            "address": self.address,
            "id": f"{vendor:04x}:{device:04x}",
            "revision": self.pci_read(8, 1)[0],
            "interrupt": "INTx",
        }

    def pci_read(self, offset: int, length: int) -> bytes:
        """Bytes of configuration space; 1, 2 or 4 at an aligned offset are one access."""
        return os.pread(self._config, length, offset)

    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of configuration space in one access."""
        os.pwrite(self._config, data, offset)

    def bar_size(self, bar: int) -> int:
        """Bytes of a BAR, 0 if it has none."""
        return self._sizes[bar] if bar < len(self._sizes) else 0

    def _bar(self, bar: int, width: int) -> memoryview:
        view = self._views.get((bar, width))
        if view is not None:
            return view
        if bar not in self._maps:
            if not self.bar_size(bar):
                raise NoDeviceError(f"{self.address} has no BAR {bar}")
            descriptor = os.open(self._path / f"resource{bar}", os.O_RDWR)
            try:
                self._maps[bar] = mmap.mmap(descriptor, self.bar_size(bar))
            finally:
                os.close(descriptor)
        # A cast view makes each item one access of its width; slices would be copied bytewise.
        view = memoryview(self._maps[bar]).cast(FORMATS[width])
        self._views[bar, width] = view
        return view

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """One access of `width` (1, 2 or 4) bytes to a BAR."""
        if bar in self._ports:
            return int.from_bytes(os.pread(self._ports[bar], width, offset), "little")
        value: int = self._bar(bar, width)[self._item(offset, width)]
        return value

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """One access of `width` (1, 2 or 4) bytes to a BAR."""
        if bar in self._ports:
            os.pwrite(self._ports[bar], value.to_bytes(width, "little"), offset)
            return
        self._bar(bar, width)[self._item(offset, width)] = value

    @staticmethod
    def _item(offset: int, width: int) -> int:
        if offset % width:
            raise BadArgumentError(f"an access of {width} bytes at {offset:#x} is not aligned")
        return offset // width

    def fileno(self) -> int | None:
        """The uio device: readable while an interrupt is pending."""
        return self._uio

    def take_interrupts(self, timeout: float) -> int:
        """How often the line was raised since the last call; wait up to `timeout` s for one."""
        readable, _, _ = select.select([self._uio], [], [], timeout)
        if not readable:
            return 0
        count = int.from_bytes(os.read(self._uio, 4), sys.byteorder)
        raised = (count - self._seen) & 0xFFFFFFFF
        self._seen = count
        return raised

    def enable_msix(self, vectors: int) -> None:
        """Only 0, that is INTx: uio_pci_generic knows no messages."""
        if vectors:
            raise DriverError(f"{self.address} has no MSI-X here: uio_pci_generic passes INTx only")

    def take_messages(self, timeout: float) -> Counter[int]:
        """None ever come."""
        del timeout
        return Counter()

    def unmask_interrupts(self) -> None:
        """Undo what the kernel's handler did: it disables INTx in the command register."""
        self._command(clear=COMMAND_INTX_DISABLE)

    def close(self) -> None:
        """Stop the function from mastering the bus and give everything back."""
        if self._config < 0:
            return
        # The device may have been unplugged already: then there is nothing left to undo.
        with contextlib.suppress(OSError):
            self._command(set_bits=COMMAND_INTX_DISABLE, clear=COMMAND_MASTER)
        if self._uio >= 0:
            os.close(self._uio)
        for ports in self._ports.values():
            os.close(ports)
        os.close(self._config)
        self._config = -1
        for view in self._views.values():
            view.release()
        for bar in self._maps.values():
            bar.close()
        HugePage.idle += self._pages
        with contextlib.suppress(OSError):
            (SYSFS / "drivers/uio_pci_generic/unbind").write_text(self.address)
        with contextlib.suppress(OSError):
            (self._path / "driver_override").write_text("\n")
