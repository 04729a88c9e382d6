"""Files with a machine's RAM: a private copy, and the ranges with data."""

from __future__ import annotations

import os
from pathlib import Path

from harness.machine.errors import MachineError


def private_copy(ram: Path) -> int:
    """Copy a file of RAM into a file in memory, without its holes; return the open file.

    It is for a machine whose RAM another process maps too, which a copy-on-write mapping does
    not allow. The memory is freed when the last process closes the file.
    """
    size = ram.stat().st_size
    copy = os.memfd_create(ram.name)
    try:
        os.ftruncate(copy, size)
        with ram.open("rb", buffering=0) as source:
            for begin, end in extents(source.fileno(), size):
                os.lseek(copy, begin, os.SEEK_SET)
                while begin < end:
                    count = os.sendfile(copy, source.fileno(), begin, end - begin)
                    if count == 0:
                        raise MachineError(f"{ram} was cut short while it was copied")
                    begin += count
    except BaseException:
        os.close(copy)
        raise
    return copy


def extents(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Return the ranges with data of an open file of `size` bytes, as pairs (start, end)."""
    found = []
    end = 0
    while end < size:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: the rest is a hole
            break
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        found.append((begin, end))
    return found
