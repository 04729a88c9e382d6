"""The ELF file of a Linux kernel, taken out of its bzImage, for VMMs that boot nothing else.

The layout is that of Documentation/arch/x86/boot.rst; the compression has to be LZ4 in its legacy
frame, which is what Debian's cloud kernel has.
"""

from __future__ import annotations

import struct
from pathlib import Path

from harness.machine.errors import MachineError

HEADER = b"HdrS"
HEADER_AT = 0x202
SETUP_SECTORS_AT = 0x1F1
PAYLOAD_AT = 0x248
SECTOR = 512

LZ4_LEGACY = 0x184C_2102
ELF = b"\x7fELF"
MOST = 512 << 20
"""Bytes of the largest kernel."""


def extract(kernel: Path) -> bytes:
    """Return the ELF file in a bzImage. MachineError if it is another kind of file."""
    image = kernel.read_bytes()
    if image[HEADER_AT : HEADER_AT + 4] != HEADER:
        raise MachineError(f"{kernel} is not a bzImage")
    offset, length = struct.unpack_from("<II", image, PAYLOAD_AT)
    start = ((image[SETUP_SECTORS_AT] or 4) + 1) * SECTOR + offset
    payload = image[start : start + length]
    # The last 4 bytes are the length of the uncompressed kernel.
    magic, size = payload[:4], int.from_bytes(payload[-4:], "little")
    if int.from_bytes(magic, "little") != LZ4_LEGACY or size > MOST:
        raise MachineError(f"the kernel {kernel} is not compressed with LZ4")
    try:
        elf = _frame(payload[4:-4])
    except (IndexError, struct.error):
        raise MachineError(f"the kernel {kernel} is damaged") from None
    if len(elf) != size or not elf.startswith(ELF):
        raise MachineError(f"the kernel {kernel} is damaged")
    return elf


def _frame(data: bytes) -> bytes:
    """Return the contents of a legacy frame: blocks, each after its length."""
    blocks, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        blocks.append(_block(data[at + 4 : at + 4 + length]))
        at += 4 + length
    return b"".join(blocks)


def _block(data: bytes) -> bytes:
    """Return the contents of an LZ4 block: literals, and copies of what came before."""
    out = bytearray()
    at, end = 0, len(data)
    while at < end:
        token = data[at]
        at += 1
        length = token >> 4
        if length == 15:
            while (more := data[at]) == 255:
                length += 255
                at += 1
            length += more
            at += 1
        if length:
            out += data[at : at + length]
            at += length
        if at >= end:
            break
        distance = data[at] | data[at + 1] << 8
        at += 2
        length = token & 15
        if length == 15:
            while (more := data[at]) == 255:
                length += 255
                at += 1
            length += more
            at += 1
        length += 4
        source = len(out) - distance
        if distance >= length:
            out += out[source : source + length]
        else:
            piece = bytes(out[source:])
            if not piece:
                raise IndexError
            out += (piece * (length // len(piece) + 1))[:length]
    return bytes(out)
