"""The bytes behind the model: a raw file or nothing, with the failures that a disk asks for."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Sequence

from harness.diskspec import SECTOR, Fault, Operation
from harness.model.memory import size

ZEROES = memoryview(bytes(1 << 20))
PUNCH_HOLE, KEEP_SIZE = 2, 1
"""Modes of fallocate(2)."""

IOV_MAX = 1024
"""Number of buffers that the host accepts in one system call."""


class Storage:
    """Sectors of 512 bytes in the file `path`, or a null disk without a file.

    Every operation raises OSError if the host fails or a fault applies. A fault applies to a flush
    only if something was written since the last one. Without `unmap` nothing is deallocated.
    Without `syncs` a flush does not wait for the host's disk: what was written outlives this
    process, but not a crash of the host.
    """

    def __init__(
        self,
        path: str | None,
        read_only: bool,
        faults: Iterable[Fault],
        unmap: bool = True,
        syncs: bool = True,
    ) -> None:
        self._unmap = unmap
        self._syncs = syncs
        self._faults = list(faults)
        self._dirty = False
        self._fd = -1
        if path is not None:
            self._fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR))

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def resize(self, capacity: int) -> None:
        """Set the size of the file, in sectors. Raise OSError for a null or read-only disk."""
        if self._fd < 0:
            raise OSError(errno.ENOTSUP, "a null disk cannot be resized")
        os.ftruncate(self._fd, capacity * SECTOR)

    def read(self, sector: int, views: Sequence[memoryview]) -> None:
        """Fill the views, one after the other, with data that starts at `sector`."""
        self._fail("read", sector, views)
        if self._fd < 0:
            for view in views:
                view[:] = bytes(len(view))
            return
        offset = sector * SECTOR
        for start in range(0, len(views), IOV_MAX):
            batch = views[start : start + IOV_MAX]
            if os.preadv(self._fd, batch, offset) != size(batch):
                raise OSError(errno.EIO, "the file is shorter than the disk")
            offset += size(batch)

    def write(self, sector: int, views: Sequence[memoryview]) -> None:
        """Write the views, one after the other, from `sector` on."""
        self._fail("write", sector, views)
        self._write(sector, views)

    def zero(self, sector: int, count: int) -> None:
        """Write zeroes without deallocation."""
        self._fail("write-zeroes", sector, count=count)
        self._zero(sector, count)

    def deallocate(self, on: Operation, sector: int, count: int) -> None:
        """Deallocate sectors on behalf of the operation `on`. They read as zeroes then."""
        self._fail(on, sector, count=count)
        self._dirty = True
        if self._fd < 0 or not count:
            return
        if not (self._unmap and _punched(self._fd, sector * SECTOR, count * SECTOR)):
            self._zero(sector, count)

    def flush(self) -> None:
        """Commit everything that was written."""
        if self._dirty:
            self._fail("flush")
        self._dirty = False
        if self._fd >= 0 and self._syncs:
            os.fdatasync(self._fd)

    def _zero(self, sector: int, count: int) -> None:
        while count:
            some = ZEROES[: count * SECTOR]
            self._write(sector, [some])
            sector += len(some) // SECTOR
            count -= len(some) // SECTOR

    def _write(self, sector: int, views: Sequence[memoryview]) -> None:
        self._dirty = True
        if self._fd < 0:
            return
        offset = sector * SECTOR
        for start in range(0, len(views), IOV_MAX):
            some = views[start : start + IOV_MAX]
            if os.pwritev(self._fd, some, offset) != size(some):
                raise OSError(errno.ENOSPC, "the host's disk is full")
            offset += size(some)

    def _fail(
        self, on: Operation, sector: int = 0, views: Sequence[memoryview] = (), count: int = 0
    ) -> None:
        """Raise OSError if a fault applies."""
        end = sector + (count or size(views) // SECTOR)
        for fault in self._faults:
            if fault.on == on and (fault.sector is None or sector <= fault.sector < end):
                if fault.once:
                    self._faults.remove(fault)
                raise OSError(fault.errno, os.strerror(fault.errno))


def _punched(fd: int, offset: int, length: int) -> bool:
    """Make a hole in a file. Return False if its file system does not support holes."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not libc.fallocate(
        fd, PUNCH_HOLE | KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)
    ):
        return True
    number = ctypes.get_errno()
    if number != errno.EOPNOTSUPP:
        raise OSError(number, os.strerror(number))
    return False
