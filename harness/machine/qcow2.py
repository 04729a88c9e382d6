"""qcow2 images: the files that the header names, which QEMU opens too, and new empty images."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from harness.machine.errors import MachineError

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQI")
"""Magic, version, offset and length of the backing file's name."""

FEATURES = struct.Struct(">Q")
FEATURES_AT = 72
EXTERNAL_DATA = 1 << 2
"""The incompatible feature of an image whose data is in another file."""

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
"""Bytes of a cluster in the images that we make."""

NEW_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
"""All fields of the header of version 3."""

TABLE_SIZE = CLUSTER * CLUSTER // 8
"""Bytes of data that one entry of the first table maps."""

MAX_SIZE = (1 << 22) * TABLE_SIZE
"""Bytes of the largest image: QEMU accepts no more entries in the first table."""

MAX_NAME = 1023
MAX_CHAIN = 32


def backing_files(path: Path) -> list[Path]:
    """Return the files that an image is based on, its own backing file first.

    MachineError for what is no file of this machine, for a chain without end, and for an image
    whose data is in yet another file.
    """
    found: list[Path] = []
    image = path
    while (name := _backing_name(image)) is not None:
        if re.match(r"\w+:", name):
            raise MachineError(f"{image} names the backing file {name!r}, which is no plain file")
        image = image.parent / name
        if not image.is_file():
            raise MachineError(f"{path} needs the backing file {image}, which is not there")
        found.append(image)
        if len(found) > MAX_CHAIN:
            raise MachineError(f"{path} has more than {MAX_CHAIN} backing files in a row")
    return found


def _backing_name(path: Path) -> str | None:
    """Return the name in an image's header; None if there is none, or the file is no qcow2."""
    with path.open("rb") as file:
        start = file.read(FEATURES_AT + FEATURES.size)
        if len(start) < HEADER.size:
            return None
        magic, version, offset, length = HEADER.unpack_from(start)
        if magic != MAGIC:
            return None
        if version >= 3 and len(start) == FEATURES_AT + FEATURES.size:
            (features,) = FEATURES.unpack_from(start, FEATURES_AT)
            if features & EXTERNAL_DATA:
                raise MachineError(f"{path} keeps its data in another file, which is not opened")
        if not offset:
            return None
        if length > MAX_NAME:
            raise MachineError(f"{path} is no qcow2 image: a name of {length} bytes in its header")
        file.seek(offset)
        return file.read(length).decode(errors="surrogateescape")


def make_qcow2(path: Path, size: int) -> None:
    """Create an image of `size` bytes (a multiple of 512) with no data in it.

    MachineError if the image cannot be that large, or the file cannot be written.
    """
    entries = -(-size // TABLE_SIZE)
    if not 0 <= size <= MAX_SIZE:
        raise MachineError(f"no qcow2 image of {size} bytes could be made: 0 to 2 PiB are possible")
    refcount_table, refcount_block, l1_table = CLUSTER, 2 * CLUSTER, 3 * CLUSTER
    clusters = 3 + -(-entries * 8 // CLUSTER)
    header = NEW_HEADER.pack(
        MAGIC,
        3,
        *(0, 0),  # no backing file
        CLUSTER_BITS,
        size,
        0,  # no encryption
        *(entries, l1_table),
        *(refcount_table, 1),
        *(0, 0),  # no snapshots
        *(0, 0, 0),  # no features
        4,  # a count of references has 16 bits
        NEW_HEADER.size,
    )
    try:
        with path.open("xb") as file:
            file.write(header)
            file.seek(refcount_table)
            file.write(struct.pack(">Q", refcount_block))
            file.seek(refcount_block)
            file.write(struct.pack(">H", 1) * clusters)
            file.truncate(clusters * CLUSTER)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise MachineError(f"no qcow2 image of {size} bytes could be made: {error}") from error
