"""Files that hold a machine's RAM: a private copy, and where there is data in them."""

from __future__ import annotations

import os
from pathlib import Path

from harness.machine.errors import MachineError


def private_copy(ram: Path) -> int:
    """An open file in memory with the contents of a file of RAM, holes left out.

    For a machine whose RAM somebody else maps too, which a copy-on-write mapping does not
    allow. The memory is free again when the last user has closed or ended.
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
    """Where an open file of `size` bytes has data: pairs of first byte and first after."""
    found = []
    end = 0
    while end < size:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            break
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        found.append((begin, end))
    return found
