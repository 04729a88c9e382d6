"""Sizes of disks as people write them."""

from __future__ import annotations

import re

from harness.cli.errors import UsageError
from harness.diskspec import SECTOR

_SIZE = re.compile(r"([+-]?)(\d+)([KMGT]?)", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LARGEST = 2**63 - SECTOR
"""Bytes: the last whole sector that a file offset reaches."""


def looks_like_size(text: str) -> bool:
    """Whether `text` is a size, and not the name of a file."""
    return _SIZE.fullmatch(text) is not None


def parse(text: str, now: int | None = None) -> int:
    """A disk's size in bytes: `2G`, `64M`, `1048576`; with `now`, also `+512M` and `-1G` from it.

    K, M, G and T are powers of 1024. Raises UsageError for what is no size, or not a positive
    number of whole sectors.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no size; write it like 64M, 2G or 1048576 (bytes)")
    sign, number, unit = match.groups()
    size = int(number) * _UNITS[unit.upper()]
    if sign and now is None:
        raise UsageError(f"{text!r}: a new disk has no size to add to; leave the sign out")
    if sign:
        assert now is not None
        size = now + (size if sign == "+" else -size)
    described = f"{text} makes {size} bytes" if sign else f"{size} bytes"
    if size <= 0:
        raise UsageError(f"{described}: a disk has at least one sector of {SECTOR} bytes")
    if size % SECTOR:
        raise UsageError(f"{described}: a disk's size is a multiple of {SECTOR} bytes")
    if size > LARGEST:
        raise UsageError(f"{described}: no file is that large")
    return size
