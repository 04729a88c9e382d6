"""The files that a qcow2 image names in its header, and that QEMU opens with it."""

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
