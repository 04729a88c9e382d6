"""Sizes of disks, as users write them."""

from __future__ import annotations

import re

from harness.cli.errors import UsageError
from harness.diskspec import SECTOR

_SIZE = re.compile(r"([+-]?)(\d+)([KMGT]?)", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LARGEST = 2**63 - SECTOR
"""Largest size in bytes: the last whole sector that a file offset can reach."""


def looks_like_size(text: str) -> bool:
    """Return True if `text` is a size, and not the name of a file."""
    return _SIZE.fullmatch(text) is not None


def parse(text: str, now: int | None = None) -> int:
    """Return a disk's size in bytes from text like `2G`, `64M` or `1048576`.

    With `now`, the present size, `+512M` and `-1G` are changes of it. K, M, G and T are powers of
    1024. Raise UsageError for other text, and for a result that is not a positive number of whole
    sectors.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a size; write it like 64M, 2G or 1048576 (bytes)")
    sign, number, unit = match.groups()
    size = int(number) * _UNITS[unit.upper()]
    if sign and now is None:
        raise UsageError(f"{text!r}: a new disk has no size that could change; leave out the sign")
    if sign:
        assert now is not None
        size = now + (size if sign == "+" else -size)
    described = f"{text} makes {size} bytes" if sign else f"{size} bytes"
    if size <= 0:
        raise UsageError(f"{described}: a disk has at least one sector of {SECTOR} bytes")
    if size % SECTOR:
        raise UsageError(f"{described}: a disk's size is a multiple of {SECTOR} bytes")
    if size > LARGEST:
        raise UsageError(f"{described}: this is larger than a file can be")
    return size
