"""Loads, stores and fences for fields of memory that driver and device share.

The other side may look at any moment, so a field is read by one load and written by one store of
its width. In CPython a `memoryview` that was cast to "H", "I" or "Q" does that: an item is copied
by a `memcpy` of 2, 4 or 8 bytes, which compilers turn into one instruction. Other ways do not:
`struct.pack_into` writes zeroes over its whole range before it packs; slice assignment and
`bytes()` call `memmove`, which may copy two bytes one by one; `struct.unpack_from` with "<" reads
byte by byte. They are for memory that the other side leaves alone. `tests/watcher` watches the
rings for values that nobody meant to write.

Fields are little-endian (virtio 2.7, 2.8), and so are the machines this runs on.
"""

from __future__ import annotations

import platform
import sys
import threading
from typing import Literal

if sys.byteorder != "little":
    raise ImportError("virtqueues are little-endian, and this machine is not")

_ORDERED = platform.machine() in ("x86_64", "AMD64", "i386", "i686")
"""True where the processor keeps the order of loads, and of stores, among themselves."""

_LOCK = threading.Lock()


def fence() -> None:
    """Order all loads and stores before it before all loads and stores after it.

    Every processor may let a load overtake an earlier store, so that both sides miss what the
    other side has just written (virtio 2.7.13.4.1, 2.8.21.3.1). CPython has no fence of its own.
    Taking a lock is an atomic exchange, which is a full fence on x86. On Arm v8 it only acquires,
    and giving it back only releases; twice in a row is a full fence there. No promise is made for
    other processors.
    """
    with _LOCK:
        pass
    if not _ORDERED:
        with _LOCK:
            pass


def store_fence() -> None:
    """Order the stores before it before the stores after it (virtio 2.7.13.3.1, 2.8.21.1.1).

    On x86 stores stay in order, and neither CPython nor its compiler reorders what two operations
    of the interpreter store. Other processors need a fence.
    """
    if not _ORDERED:
        fence()


def load_fence() -> None:
    """Order the loads before it before the loads after it.

    It stands between a load that says that something is there and the loads that read it. On x86
    loads stay in order. Other processors need a fence.
    """
    if not _ORDERED:
        fence()


_FORMATS: dict[int, Literal["H", "I", "Q"]] = {2: "H", 4: "I", 8: "Q"}


def load(view: memoryview) -> bytes:
    """Return the bytes of `view`; 2, 4 or 8 bytes at an aligned address are read by one load."""
    if letter := _FORMATS.get(len(view)):
        number: int = view.cast(letter)[0]
        return number.to_bytes(len(view), "little")
    return bytes(view)


def store(view: memoryview, data: bytes) -> None:
    """Write `data` over `view`; 2, 4 or 8 bytes at an aligned address are written by one store."""
    if letter := _FORMATS.get(len(view)):
        view.cast(letter)[0] = int.from_bytes(data, "little")
    else:
        view[:] = data


class Descriptors:
    """Descriptors of a split or packed virtqueue or of an indirect table, 16 bytes each.

    Both formats have address and length first. The two 16-bit fields after them are the flags and
    the next descriptor in a split virtqueue (virtio 2.7.5), the buffer id and the flags in a
    packed one (virtio 2.8.13).
    """

    def __init__(self, view: memoryview) -> None:
        """Access the descriptors in `view`, whose length is a multiple of 16 bytes."""
        self._addresses = view.cast("Q")
        self._lengths = view.cast("I")
        self.halves = view.cast("H")

    def write(self, slot: int, address: int, length: int, first: int) -> None:
        """Write all of a descriptor but its last 16 bits: the next descriptor, or the flags.

        `first` goes into the first of the 16-bit fields.
        """
        self._addresses[2 * slot] = address
        self._lengths[4 * slot + 2] = length
        self.halves[8 * slot + 6] = first

    def write_used(self, slot: int, length: int, ident: int) -> None:
        """Write length and buffer id of a packed descriptor that is about to be marked used."""
        self._lengths[4 * slot + 2] = length
        self.halves[8 * slot + 6] = ident

    def last(self, slot: int) -> int:
        """Return the last 16 bits: the next descriptor, or the flags."""
        return self.halves[8 * slot + 7]

    def set_last(self, slot: int, value: int) -> None:
        """Write the last 16 bits: the next descriptor, or the flags."""
        self.halves[8 * slot + 7] = value
