"""Test data: sectors with known contents, and contents of unwritten buffers."""

from __future__ import annotations

import pytest

from harness.driver.interface import CANARY, Completion
from harness.virtio.blk import SECTOR, Status


def mib(count: int) -> int:
    """Return the number of sectors (512 bytes) in `count` MiB."""
    return (count << 20) // SECTOR


SPAN = CANARY - 1
COUNTING = bytes(n % SPAN + 1 for n in range(SPAN + SECTOR))


def sectors(count: int, salt: int = 1) -> bytes:
    """Return `count` different sectors (512 bytes each); no byte is 0 or CANARY."""
    begins = ((salt + n * (31 + SECTOR)) % SPAN for n in range(count))
    return b"".join(COUNTING[begin : begin + SECTOR] for begin in begins)


FAILED = (Status.IOERR, Status.UNSUPP)
"""Statuses of a request that breaks a rule, if the specification demands neither of them."""


def needed(completion: Completion, what: str) -> Completion:
    """Return a completion that is OK; skip the test if it is not.

    For a request that a test only uses as a tool; other tests check that it succeeds.
    """
    if completion.status != Status.OK:
        pytest.skip(f"{what} ended with status {completion.status!r}: no result to check")
    return completion


def shortest(limit: int | None, wanted: int) -> int:
    """Return `wanted` sectors, or the limit if it is lower; a limit of 0 or None is no limit."""
    return min(wanted, limit) if limit else wanted


def untouched(length: int) -> bytes:
    """Return the contents that a device-writable area of `length` bytes has before a request."""
    return bytes([CANARY]) * length
