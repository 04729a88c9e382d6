"""What the tests write and look for."""

from __future__ import annotations

from harness.driver.interface import CANARY
from harness.virtio.blk import SECTOR


def sectors(count: int, salt: int = 1) -> bytes:
    """`count` sectors (512 bytes) of data, each different; no byte is 0 or CANARY."""
    span = CANARY - 1
    return bytes((salt + 31 * (n // SECTOR) + n) % span + 1 for n in range(count * SECTOR))


def untouched(length: int) -> bytes:
    """A device-writable area of `length` bytes as it was before the request."""
    return bytes([CANARY]) * length
