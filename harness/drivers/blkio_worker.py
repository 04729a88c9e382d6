"""The work of libblkio, in a process of its own: python blkio_worker.py LIBRARY SOCKET WORK...

It needs the standard library only. Each piece of work ends with a line: "vblk: use done",
"vblk: use failed" or "vblk: wrong data"; the last line is "vblk: end".
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

LENGTH = 4096
DEPTH = 8
TRIES = 3
"""Calls that wait for a completion, of WAIT seconds each."""
WAIT = 20


class Region(ctypes.Structure):
    """The type `struct blkio_mem_region`."""

    _fields_ = (
        ("addr", c_void_p),
        ("iova", c_uint64),
        ("len", c_size_t),
        ("fd_offset", ctypes.c_int64),
        ("fd", c_int),
        ("flags", c_uint32),
    )


class Completion(ctypes.Structure):
    """The type `struct blkio_completion`."""

    _fields_ = (
        ("user_data", c_void_p),
        ("error_msg", c_char_p),
        ("ret", c_int),
        ("reserved", ctypes.c_uint8 * 12),
    )


class Timespec(ctypes.Structure):
    """The type `struct timespec`."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class FailedError(Exception):
    """A call of libblkio failed; the message says which."""


class Blkio:
    """A disk through the driver virtio-blk-vhost-user, with one queue and a region of memory."""

    def __init__(self, library: str, socket: str, writes: bool) -> None:
        self._lib: Any = ctypes.CDLL(library)
        self._lib.blkio_get_error_msg.restype = c_char_p
        self._lib.blkio_get_queue.restype = c_void_p
        for name in ("read", "write", "discard", "write_zeroes", "flush"):
            getattr(self._lib, f"blkioq_{name}").restype = None
        handle = c_void_p()
        self._call("blkio_create", b"virtio-blk-vhost-user", byref(handle))
        self._blkio = handle
        self._call("blkio_set_str", handle, b"path", socket.encode())
        self._call("blkio_set_bool", handle, b"read-only", ctypes.c_bool(not writes))
        self._call("blkio_connect", handle)
        self._call("blkio_start", handle)
        self.capacity = self._number("capacity", c_uint64())
        self.discards = self._number("max-discard-len", c_uint64())
        self.zeroes = self._number("max-write-zeroes-len", c_uint64())
        self._region = Region()
        self._call("blkio_alloc_mem_region", handle, byref(self._region), c_size_t(1 << 20))
        self._call("blkio_map_mem_region", handle, byref(self._region))
        self._queue = c_void_p(self._lib.blkio_get_queue(handle, 0))

    def _call(self, name: str, *arguments: Any) -> int:
        """Call a function. FailedError if it returns an error."""
        result = int(getattr(self._lib, name)(*arguments))
        if result < 0:
            message = self._lib.blkio_get_error_msg().decode(errors="replace")
            raise FailedError(f"{name}: {message}")
        return result

    def _number(self, name: str, value: Any) -> int:
        self._call("blkio_get_uint64", self._blkio, name.encode(), byref(value))
        return int(value.value)

    def buffer(self, number: int) -> int:
        """Return the address of a buffer of LENGTH bytes."""
        return int(self._region.addr) + number * LENGTH

    def submit(self, name: str, *arguments: Any) -> None:
        """Put a request into the queue: its flags and user data are 0."""
        getattr(self._lib, f"blkioq_{name}")(self._queue, *arguments, None, c_uint32(0))

    def wait(self, count: int) -> None:
        """Wait for completions. FailedError for one that is an error, or that does not come."""
        done = (Completion * count)()
        got = 0
        for _ in range(TRIES):
            result = self._lib.blkioq_do_io(
                self._queue,
                byref(done, got * ctypes.sizeof(Completion)),
                c_int(count - got),
                c_int(count - got),
                byref(Timespec(WAIT, 0)),
            )
            got += max(0, int(result))
            if got == count:
                break
        if got < count:
            raise FailedError(f"{count - got} of {count} requests did not complete")
        for completion in done:
            if completion.ret < 0:
                raise FailedError(f"a request failed: {completion.ret}")

    def transfer(self, name: str, start: int, number: int) -> None:
        """Read into a buffer or write from it, at a byte of the disk."""
        self.submit(name, c_uint64(start), c_void_p(self.buffer(number)), c_size_t(LENGTH))
        self.wait(1)

    def close(self) -> None:
        """Disconnect."""
        self._lib.blkio_destroy(byref(self._blkio))


def use(disk: Blkio, writes: bool) -> bool:
    """Read both ends; with `writes`, write, flush, and read again. Return False for other data."""
    end = disk.capacity - LENGTH
    for start, byte in ((0, b"a"), (end, b"b")):
        if writes:
            ctypes.memmove(disk.buffer(0), byte * LENGTH, LENGTH)
            disk.transfer("write", start, 0)
        disk.transfer("read", start, 1)
        if writes and ctypes.string_at(disk.buffer(1), LENGTH) != byte * LENGTH:
            return False
    if writes:
        disk.submit("flush")
        disk.wait(1)
    return True


def discard(disk: Blkio, writes: bool) -> bool:
    """Discard and write zeroes, as far as the device offers it. Return False for other data."""
    if writes and disk.discards:
        disk.submit("discard", c_uint64(1 << 20), c_uint64(LENGTH))
        disk.wait(1)
    if writes and disk.zeroes:
        disk.submit("write_zeroes", c_uint64(2 << 20), c_uint64(LENGTH))
        disk.wait(1)
        disk.transfer("read", 2 << 20, 1)
        return ctypes.string_at(disk.buffer(1), LENGTH) == bytes(LENGTH)
    return True


def parallel(disk: Blkio, writes: bool) -> bool:
    """Have several requests in flight."""
    del writes
    for number in range(DEPTH):
        start = c_uint64(number * LENGTH)
        disk.submit("read", start, c_void_p(disk.buffer(number)), c_size_t(LENGTH))
    disk.wait(DEPTH)
    return True


WORK = {"use": use, "discard": discard, "parallel": parallel}


def main(library: str, socket: str, writes: str, works: list[str]) -> int:
    """Do the work."""
    try:
        disk = Blkio(library, socket, writes == "writes")
    except FailedError as error:
        print(f"vblk: no disk: {error}", flush=True)
        return 1
    for name in works:
        try:
            if not WORK[name](disk, writes == "writes"):
                print("vblk: wrong data", flush=True)
                continue
            print(f"vblk: {name} done", flush=True)
        except FailedError as error:
            print(f"vblk: {name} failed: {error}", flush=True)
    disk.close()
    print("vblk: end", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
