"""The ELF file in a bzImage."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.machine.errors import MachineError
from harness.machine.vmlinux import extract

ELF = b"\x7fELF" + bytes(range(40)) + b"ab" * 400 + b"the end"


def token(literals: bytes, match: int = 4) -> bytes:
    """Return the start of an LZ4 sequence: token, lengths beyond 15, literals."""

    def rest(length: int) -> bytes:
        return (
            b"" if length < 15 else b"\xff" * ((length - 15) // 255) + bytes([(length - 15) % 255])
        )

    first = min(len(literals), 15) << 4 | min(match - 4, 15)
    return bytes([first]) + rest(len(literals)) + literals


def match(distance: int, length: int) -> bytes:
    more = length - 4 - 15
    return struct.pack("<H", distance) + (
        b"\xff" * (more // 255) + bytes([more % 255]) if more >= 0 else b""
    )


def bzimage(blocks: list[bytes], size: int, magic: int = 0x184C2102) -> bytes:
    """Return a bzImage with two sectors of setup and a frame of blocks."""
    frame = struct.pack("<I", magic)
    frame += b"".join(struct.pack("<I", len(block)) + block for block in blocks)
    frame += struct.pack("<I", size)
    image = bytearray(3 * 512 + 100) + frame + b"after"
    image[0x1F1] = 2
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 100, len(frame))
    return bytes(image)


BLOCKS = [
    # Literals, a copy that overlaps itself, and literals at the end of the block.
    token(ELF[:46], 798) + match(2, 798) + token(b"the "),
    token(b"end"),
]


def test_literals_and_copies(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bzimage(BLOCKS, len(ELF)))

    assert extract(kernel) == ELF


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"\x7fELF" + bytes(1000), "is not a bzImage"),
        (b"", "is not a bzImage"),
        (bzimage(BLOCKS, len(ELF), 0x28B52FFD), "is not compressed with LZ4"),
        (bzimage(BLOCKS, 2**31), "is not compressed with LZ4"),
        (bzimage(BLOCKS, len(ELF) - 1), "is damaged"),
        (bzimage(BLOCKS[:1], len(ELF)), "is damaged"),
        (bzimage([b"\xf0"], 4), "is damaged"),
        (bzimage([token(b"", 4) + match(9, 4)], 4), "is damaged"),
    ],
)
def test_another_file(tmp_path: Path, image: bytes, message: str) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(image)

    with pytest.raises(MachineError, match=message):
        extract(kernel)
