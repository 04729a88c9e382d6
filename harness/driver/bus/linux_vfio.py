"""A PCI function behind an IOMMU under Linux, through vfio: as root or as owner of its group.

The ioctls are made in plain Python. We choose the addresses that the device sees:
they are above 4 GiB, so that a device that truncates one causes a fault.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import select
import struct
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.driver.bus.base import PciFunction
from harness.driver.bus.linux_sysfs import (
    Binding,
    FileBar,
    MappedBar,
    change_command,
    wait_for_function,
)
from harness.driver.errors import DriverError, NoDeviceError
from harness.driver.memory import DmaMemory, Region
from harness.driver.polling import events
from harness.virtio.pci import COMMAND_INTX_DISABLE, COMMAND_MASTER, COMMAND_MEMORY

DRIVER = "vfio-pci"
VFIO = Path("/dev/vfio")
IOMMU_GROUPS = Path("/sys/kernel/iommu_groups")

GROUP_WAIT = 1.0
"""Seconds to wait for a function's IOMMU group, if the host has any groups."""

GET_API_VERSION = 0x3B64
SET_IOMMU = 0x3B66
GROUP_GET_STATUS = 0x3B67
GROUP_SET_CONTAINER = 0x3B68
GROUP_GET_DEVICE_FD = 0x3B6A
DEVICE_GET_REGION_INFO = 0x3B6C
DEVICE_GET_IRQ_INFO = 0x3B6D
DEVICE_SET_IRQS = 0x3B6E
IOMMU_MAP_DMA = 0x3B71

TYPE1V2_IOMMU = 3
API_VERSION = 0

GROUP_STATUS = struct.Struct("=II")
GROUP_VIABLE = 1

REGION_INFO = struct.Struct("=IIIIQQ")
REGION_MMAP = 4
CONFIG_REGION = 7

IRQ_INFO = struct.Struct("=IIII")
IRQ_SET = struct.Struct("=IIIII")
"""Header of VFIO_DEVICE_SET_IRQS; with `IRQ_EVENTFD` an eventfd (32 bits) per vector follows."""

INTX, MSIX = 0, 2
IRQ_NONE, IRQ_EVENTFD = 1, 4
IRQ_UNMASK, IRQ_TRIGGER = 0x10, 0x20

DMA_MAP = struct.Struct("=IIQQQ")
DMA_READ_WRITE = 3

IOVA = 1 << 32
"""The bus address of the first region."""

REGION_SIZE = 2 << 20
"""Bytes of each further region of device-visible memory."""

REGIONS = 16


class _Region:
    """Memory whose address in this process is known.

    It is a named file, whose address is in /proc/self/maps: otherwise `ctypes`
    would be needed, which a guest has to load. Names are unique, because a region
    stays mapped as long as there is a view of it.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        name = f"vblk-dma-{next(self._numbers)}"
        descriptor = os.memfd_create(name)
        try:
            os.ftruncate(descriptor, REGION_SIZE)
            self.map = mmap.mmap(descriptor, REGION_SIZE)
        finally:
            os.close(descriptor)
        ending = f"/memfd:{name} (deleted)"
        maps = Path("/proc/self/maps").read_text().splitlines()
        self.virtual = next(int(line.split("-")[0], 16) for line in maps if line.endswith(ending))


class LinuxVfio(PciFunction):
    """A function at an address like `0000:01:00.0`, bound to vfio-pci while in use.

    Raises NoDeviceError if it does not appear within `timeout` seconds, if it or
    another device of its IOMMU group is in use, or if there is no IOMMU.
    """

    access_platform = True

    def __init__(self, address: str, timeout: float = 5.0) -> None:
        self.address = address
        self._files: list[int] = []
        self._bars: dict[int, FileBar | MappedBar] = {}
        self._events: list[int] = []
        self._epoll = select.epoll()
        self._vectors = 0
        group = _iommu_group(address, timeout)
        self._binding = Binding(address, DRIVER, timeout)
        try:
            self._container = self._open(VFIO / "vfio")
            if fcntl.ioctl(self._container, GET_API_VERSION) != API_VERSION:
                raise DriverError("this kernel's vfio has another interface than version 0")
            self._device = self._open_device(group)
            self._config = self._region(CONFIG_REGION)[1]
            self.memory = DmaMemory([], self._grow)
            change_command(self, COMMAND_MEMORY | COMMAND_MASTER, COMMAND_INTX_DISABLE)
            self._has_intx = bool(self._interrupt_count(INTX))
            self.enable_msix(0)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> int:
        self._files.append(os.open(path, os.O_RDWR))
        return self._files[-1]

    def _open_device(self, number: str) -> int:
        node = VFIO / number
        self._binding.await_true(node.exists, f"reachable as {node}")
        try:
            group = self._open(node)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise NoDeviceError(f"{self.address}: its IOMMU group {number} is in use") from None
        status = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
        fcntl.ioctl(group, GROUP_GET_STATUS, status)
        if not GROUP_STATUS.unpack(status)[1] & GROUP_VIABLE:
            raise NoDeviceError(
                f"{self.address} shares IOMMU group {number} with a function that another"
                f" kernel driver has: see /sys/kernel/iommu_groups/{number}/devices"
            )
        fcntl.ioctl(group, GROUP_SET_CONTAINER, struct.pack("=i", self._container))
        try:
            fcntl.ioctl(self._container, SET_IOMMU, TYPE1V2_IOMMU)
        except OSError as error:
            raise DriverError(
                f"vfio cannot map memory ({error.strerror}): modprobe vfio_iommu_type1"
            ) from None
        # Python returns the result of an ioctl with a buffer only if the buffer is mutable.
        name = bytearray(self.address.encode() + b"\0")
        device: int = fcntl.ioctl(group, GROUP_GET_DEVICE_FD, name)
        self._files.append(device)
        return device

    # --- memory

    def _grow(self) -> Region | None:
        number = len(self.memory.regions)
        if number == REGIONS:
            return None
        region = _Region()
        address = IOVA + REGION_SIZE * number
        request = DMA_MAP.pack(DMA_MAP.size, DMA_READ_WRITE, region.virtual, address, REGION_SIZE)
        fcntl.ioctl(self._container, IOMMU_MAP_DMA, request)
        return Region(address, memoryview(region.map))

    # --- configuration space and BARs

    def _region(self, index: int) -> tuple[int, int, int]:
        """Return a region's size, its offset in the device's file, and its flags."""
        info = bytearray(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
        fcntl.ioctl(self._device, DEVICE_GET_REGION_INFO, info)
        _, flags, _, _, size, offset = REGION_INFO.unpack(info)
        return size, offset, flags

    def description(self) -> dict[str, Any]:
        """Return address and ids, for reports."""
        return {
            "bus": "pci through vfio",
            "address": self.address,
            **self.identity(),
            "interrupt": self._interrupt(),
        }

    def _interrupt(self) -> str:
        if self._vectors:
            return f"MSI-X, {self._vectors} vectors"
        return "INTx" if self._has_intx else "none but MSI-X"

    def pci_read(self, offset: int, length: int) -> bytes:
        """Read bytes of configuration space; 1, 2 or 4 at an aligned offset are one access."""
        return os.pread(self._device, length, self._config + offset)

    def pci_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of configuration space in one access."""
        os.pwrite(self._device, data, self._config + offset)

    def bar_size(self, bar: int) -> int:
        """Return the size of a BAR in bytes, 0 if the function does not have it."""
        return self._region(bar)[0] if bar < 6 else 0

    def _bar(self, bar: int) -> FileBar | MappedBar:
        if not self.bar_size(bar):
            raise NoDeviceError(f"{self.address} has no BAR {bar}")
        size, offset, flags = self._region(bar)
        # A BAR that is smaller than a page, or in I/O space, cannot be mapped.
        access = (
            MappedBar(self._device, size, offset)
            if flags & REGION_MMAP
            else FileBar(self._device, offset)
        )
        self._bars[bar] = access
        return access

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        """Read from a BAR in one access of `width` (1, 2 or 4) bytes."""
        return (self._bars.get(bar) or self._bar(bar)).read(offset, width)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        """Write to a BAR in one access of `width` (1, 2 or 4) bytes."""
        (self._bars.get(bar) or self._bar(bar)).write(offset, width, value)

    # --- interrupts

    def _interrupt_count(self, index: int) -> int:
        info = bytearray(IRQ_INFO.pack(IRQ_INFO.size, 0, index, 0))
        fcntl.ioctl(self._device, DEVICE_GET_IRQ_INFO, info)
        count: int = IRQ_INFO.unpack(info)[3]
        return count

    def _set_interrupts(self, index: int, action: int, count: int = 0, data: bytes = b"") -> None:
        kind = IRQ_EVENTFD if data else IRQ_NONE
        header = IRQ_SET.pack(IRQ_SET.size + len(data), kind | action, index, 0, count)
        fcntl.ioctl(self._device, DEVICE_SET_IRQS, header + data)

    def _listen(self, index: int, count: int) -> None:
        """Connect `count` interrupts of a kind to an eventfd each."""
        self._events = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(count)]
        for event in self._events:
            self._epoll.register(event, select.EPOLLIN)
        self._set_interrupts(index, IRQ_TRIGGER, count, struct.pack(f"={count}i", *self._events))

    def _drop_events(self) -> None:
        for event in self._events:
            os.close(event)
        self._events = []

    def _deafen(self) -> None:
        """Disconnect all interrupts: INTx and MSI-X cannot be enabled at the same time."""
        if self._events:
            self._set_interrupts(MSIX if self._vectors else INTX, IRQ_TRIGGER)
            self._drop_events()
        self._vectors = 0

    def enable_msix(self, vectors: int) -> None:
        """Count messages of vectors 0 to `vectors` - 1; with 0, use INTx instead."""
        there = self._interrupt_count(MSIX)
        if vectors > there:
            raise DriverError(
                f"the device has {there} MSI-X vectors, not {vectors}"
                if there
                else "the device has no MSI-X capability"
            )
        self._deafen()
        if vectors:
            self._listen(MSIX, vectors)
            self._vectors = vectors
        elif self._has_intx:
            self._listen(INTX, 1)

    def _take(self, timeout: float) -> Counter[int]:
        """Return the signals since the last call, by the number of the eventfd."""
        taken: Counter[int] = Counter()
        if events(self._epoll, timeout):
            for number, event in enumerate(self._events):
                with suppress(BlockingIOError):
                    taken[number] = os.eventfd_read(event)
        return taken

    def fileno(self) -> int | None:
        """Return the poll descriptor of the eventfds, readable while an interrupt is pending."""
        return self._epoll.fileno()

    def take_interrupts(self, timeout: float) -> int:
        """Return how often the line was raised since the last call; wait up to `timeout` s."""
        return self._take(timeout).total()

    def take_messages(self, timeout: float) -> Counter[int]:
        """Return messages since the last call, by vector; wait up to `timeout` s for one."""
        return self._take(timeout)

    def unmask_interrupts(self) -> None:
        """Unmask the line, which vfio masks when it is raised. Messages are never masked."""
        if self._events and not self._vectors:
            self._set_interrupts(INTX, IRQ_UNMASK, 1)

    def close(self) -> None:
        """Release all resources. vfio resets the function when its file is closed."""
        if self._binding.config < 0:
            return
        for bar in self._bars.values():
            bar.close()
        # The order matters: first the device, then its group, then the container.
        for file in reversed(self._files):
            os.close(file)
        self._drop_events()
        self._epoll.close()
        self._binding.release()


def _iommu_group(address: str, timeout: float) -> str:
    """Return the number of the function's IOMMU group."""
    link = wait_for_function(address, timeout) / "iommu_group"
    # A new function gets its group a moment after its directory.
    deadline = time.monotonic() + (GROUP_WAIT if any(IOMMU_GROUPS.glob("*")) else 0)
    while not link.exists():
        if time.monotonic() > deadline:
            raise NoDeviceError(
                f"{address} is behind no IOMMU, which vfio needs (on Intel: intel_iommu=on"
                " among the kernel's arguments)"
            )
        time.sleep(0.005)
    return link.resolve().name
