"""PCI configuration space: values, the bits that can be written, and the list of capabilities."""

from __future__ import annotations

from harness.virtio.pci import (
    BAR_0,
    BAR_64,
    CAPABILITIES,
    HEADER_SIZE,
    STATUS,
    STATUS_CAPABILITIES,
)

CONVENTIONAL_SIZE = 256
EXPRESS_SIZE = 4096
"""Bytes of configuration space of a conventional function, and of a PCI Express one."""


class ConfigSpace:
    """The bytes of configuration space. Offsets and lengths are bytes."""

    def __init__(self, size: int = EXPRESS_SIZE) -> None:
        self.size = size
        self._values = bytearray(size)
        self._writable = bytearray(size)
        self._end = HEADER_SIZE
        self._link = CAPABILITIES

    def define(self, offset: int, value: bytes, writable: bytes = b"") -> None:
        """Set bytes, and which of their bits a driver can write."""
        self._values[offset : offset + len(value)] = value
        self._writable[offset : offset + len(writable)] = writable

    def define_bar(self, number: int, size: int, kind: int) -> None:
        """Define a BAR of `size` bytes (a power of two), at address 0. `kind` are its low bits."""
        bits = -size & (0xFFFF_FFFF_FFFF_FFFF if kind & BAR_64 else 0xFFFF_FFFF)
        width = 8 if kind & BAR_64 else 4
        at = BAR_0 + 4 * number
        self.define(at, kind.to_bytes(width, "little"), bits.to_bytes(width, "little"))

    def add_capability(self, ident: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability to the list. Return its offset; `body` follows its two bytes."""
        at = self._end
        self.define(at, bytes([ident, 0]) + body, bytes(2) + writable)
        self._values[self._link] = at
        self._values[STATUS] |= STATUS_CAPABILITIES
        self._link = at + 1
        self._end = (at + 2 + len(body) + 3) & ~3
        return at

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; those behind the end are ones, as where nobody answers."""
        return bytes(self._values[offset : offset + length]).ljust(length, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Write the bits that can be written."""
        for at, byte in enumerate(data[: max(self.size - offset, 0)], offset):
            mask = self._writable[at]
            self._values[at] = self._values[at] & ~mask | byte & mask

    def field(self, offset: int, length: int) -> int:
        """Return a number of `length` bytes."""
        return int.from_bytes(self._values[offset : offset + length], "little")

    def change(self, offset: int, mask: int, value: bool) -> None:
        """Set or clear bits of one byte, whether or not a driver can write them."""
        byte = self._values[offset]
        self._values[offset] = byte | mask if value else byte & ~mask
