"""A PCI function under Linux: find it in sysfs, and bind it to a kernel driver for user space."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from harness.driver.bus.base import PciFunction
from harness.driver.errors import BadArgumentError, DriverError, NoDeviceError
from harness.virtio.pci import COMMAND

FORMATS: dict[int, Literal["B", "H", "I"]] = {1: "B", 2: "H", 4: "I"}

SYSFS = Path("/sys/bus/pci")
MOUNTS = Path("/proc/self/mountinfo")
SWAPS = Path("/proc/swaps")

BIND_WAIT = 5.0
"""Seconds that the kernel may take to bind a function and to create its device node."""


def change_command(function: PciFunction, set_bits: int = 0, clear: int = 0) -> None:
    """Set and clear bits of the command register."""
    value = int.from_bytes(function.pci_read(COMMAND, 2), "little")
    function.pci_write(COMMAND, ((value | set_bits) & ~clear).to_bytes(2, "little"))


def kernel_driver(address: str) -> str | None:
    """Return the kernel driver that a function is bound to, None for none."""
    driver = SYSFS / "devices" / address / "driver"
    return driver.resolve().name if driver.exists() else None


def in_use(function: Path) -> str:
    """Return what this machine uses a function's disks for, in words; nothing for none.

    `function` is its directory in sysfs. A disk counts, or a partition of it, that is mounted, is
    swapped to, or is a part of another block device.
    """
    try:
        mounts = [line.split() for line in MOUNTS.read_text().splitlines()]
        swaps = [line.split()[0] for line in SWAPS.read_text().splitlines()[1:]]
    except OSError:
        mounts, swaps = [], []
    for disk in sorted(function.glob("**/block/*")):
        for part in (disk, *sorted(disk.glob(f"{disk.name}*"))):
            try:
                number = (part / "dev").read_text().strip()
            except OSError:
                continue
            if places := [fields[4] for fields in mounts if fields[2] == number]:
                return f"{part.name}, mounted at {places[0]}"
            if f"/dev/{part.name}" in swaps:
                return f"{part.name}, which it swaps to"
            if holders := sorted(holder.name for holder in part.glob("holders/*")):
                return f"{part.name}, a part of {holders[0]}"
    return ""


def wait_for_function(address: str, timeout: float) -> Path:
    """Return the function's directory in sysfs. NoDeviceError if absent after `timeout` seconds."""
    path = SYSFS / "devices" / address
    deadline = time.monotonic() + timeout
    while not (path / "config").exists():
        if time.monotonic() > deadline:
            present = ", ".join(sorted(entry.name for entry in path.parent.glob("*")))
            raise NoDeviceError(
                f"no PCI function {address} after {timeout:g} s; there are: {present or 'none'}"
            )
        time.sleep(0.01)
    return path


class Binding:
    """A function that is bound to `driver` and locked for us until `release`.

    A function that was already bound to `driver` stays bound afterwards. `config`
    is an open file, its configuration space. Raises NoDeviceError if the function
    does not appear within `timeout` seconds, is in use, or if there is no such
    driver.
    """

    def __init__(self, address: str, driver: str, timeout: float) -> None:
        self.address = address
        self.path = wait_for_function(address, timeout)
        self._driver = SYSFS / "drivers" / driver
        self._deadline = time.monotonic() + BIND_WAIT
        self._bound_here = False
        self.config = self._claim()
        try:
            self._bind()
        except BaseException:
            self.release()
            raise

    def _claim(self) -> int:
        try:
            config = os.open(self.path / "config", os.O_RDWR)
        except PermissionError:
            raise NoDeviceError(f"{self.address} is for root only: run this as root") from None
        try:
            fcntl.flock(config, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(config)
            raise NoDeviceError(
                f"{self.address} is already driven by another process or test"
            ) from None
        return config

    def _bind(self) -> None:
        current, wanted = kernel_driver(self.address), self._driver.name
        if current == wanted:
            return
        if current and (use := in_use(self.path)):
            raise NoDeviceError(f"{self.address} is this machine's {use}: it is left alone")
        if current:
            raise NoDeviceError(
                f"{self.address} is in use by the kernel's {current}: unbind it first"
                f" (echo {self.address} > {SYSFS}/drivers/{current}/unbind)"
            )
        if not self._driver.exists():
            raise NoDeviceError(f"the kernel has not loaded {wanted}: modprobe {wanted}")
        self._bound_here = True
        (self.path / "driver_override").write_text(wanted)
        self.await_true(self._bound, f"bound to {wanted}")

    def _bound(self) -> bool:
        try:
            (self._driver / "bind").write_text(self.address)
        except OSError as error:
            # A new function is in sysfs before it is on the bus (ENODEV). When it gets on the
            # bus, the kernel binds it if `driver_override` is set by then (EBUSY).
            if error.errno == errno.ENODEV:
                return False
            if error.errno == errno.EBUSY:
                return kernel_driver(self.address) == self._driver.name
            raise DriverError(
                f"{self._driver.name} does not take {self.address}: {error.strerror}"
            ) from None
        return True

    def await_true(self, done: Callable[[], bool], what: str) -> None:
        """Wait until `done` returns True. Raises DriverError BIND_WAIT after the start."""
        while not done():
            if time.monotonic() > self._deadline:
                raise DriverError(f"{self.address} is not {what} after {BIND_WAIT:g} s")
            time.sleep(0.005)

    def release(self) -> None:
        """Unbind the function if it was bound here. Do nothing if it is already unplugged."""
        if self.config < 0:
            return
        if self._bound_here:
            with suppress(OSError):
                (self._driver / "unbind").write_text(self.address)
            with suppress(OSError):
                (self.path / "driver_override").write_text("\n")
        os.close(self.config)
        self.config = -1


class MappedBar:
    """A BAR in memory, `size` bytes at `offset` of a file. Each access has exactly its width."""

    def __init__(self, descriptor: int, size: int, offset: int = 0) -> None:
        self._map = mmap.mmap(descriptor, size, offset=offset)
        # An item of a cast view is one access of its width; a slice would be copied bytewise.
        whole = memoryview(self._map)
        self._views = {width: whole.cast(letter) for width, letter in FORMATS.items()}
        whole.release()

    def read(self, offset: int, width: int) -> int:
        """Read in one access of `width` (1, 2 or 4) bytes."""
        value: int = self._views[width][_item(offset, width)]
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """Write in one access of `width` (1, 2 or 4) bytes."""
        self._views[width][_item(offset, width)] = value

    def close(self) -> None:
        """Unmap the BAR."""
        for view in self._views.values():
            view.release()
        self._map.close()


class FileBar:
    """A BAR that the kernel accesses, at `offset` of a file that the caller closes."""

    def __init__(self, descriptor: int, offset: int = 0) -> None:
        self._descriptor = descriptor
        self._offset = offset

    def read(self, offset: int, width: int) -> int:
        """Read in one access of `width` (1, 2 or 4) bytes."""
        return int.from_bytes(os.pread(self._descriptor, width, self._offset + offset), "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """Write in one access of `width` (1, 2 or 4) bytes."""
        os.pwrite(self._descriptor, value.to_bytes(width, "little"), self._offset + offset)

    def close(self) -> None:
        """Do nothing: nothing is mapped."""


def _item(offset: int, width: int) -> int:
    if offset % width:
        raise BadArgumentError(f"an access of {width} bytes at {offset:#x} is not aligned")
    return offset // width
