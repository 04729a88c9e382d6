"""A disk that UEFI firmware boots from: a FAT volume with a program that works on the disk.

The program asks the firmware for its block device. It reads, writes, reads again and compares,
disconnects and connects the driver if that is its work, and says the end on the first serial port.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

PREFIX = "vblk: "
GOOD = "vblk: done"
BAD = "vblk: failed"
OTHER = "vblk: wrong"

LENGTH = 4096
"""Bytes of each read and write."""

TAIL = 128 << 10
"""Bytes at the end of the disk that the volume leaves free, for the program's work."""
READ_FROM, WRITTEN_TO = 64 << 10, 32 << 10
"""Distance in bytes from the end of the disk: what the program reads, and where it writes it."""

CLUSTER = 4096
ROOT_ENTRIES = 512
PORT = 0x3F8

PAGE = 0x1000
FILE_ALIGNMENT = 0x200
BUFFERS = 2 * PAGE
"""Offset in the program's memory of two buffers, behind its headers and a page of code."""
SPACE = BUFFERS + 2 * LENGTH

BLOCK_IO = struct.pack(
    "<IHH8B", 0x964E5B21, 0x6459, 0x11D2, 0x8E, 0x39, 0, 0xA0, 0xC9, 0x69, 0x72, 0x3B
)
LOADED_IMAGE = struct.pack(
    "<IHH8B", 0x5B1B31A1, 0x9562, 0x11D2, 0x8E, 0x3F, 0, 0xA0, 0xC9, 0x69, 0x72, 0x3B
)

# Offsets in the tables of UEFI.
BOOT_SERVICES, HANDLE_PROTOCOL, CONNECT, DISCONNECT, WATCHDOG = 0x60, 0x98, 0x108, 0x110, 0x100
READ, WRITE, FLUSH = 0x18, 0x20, 0x28


class Code:
    """Machine code of x86-64 that grows: labels, and jumps and addresses relative to them."""

    def __init__(self, base: int) -> None:
        self._base = base
        self._bytes = bytearray()
        self._labels: dict[str, int] = {}
        self._open: list[tuple[int, str]] = []

    def add(self, text: str, label: str = "") -> None:
        """Add bytes in hexadecimal; with a label, four more bytes: its distance from their end."""
        self._bytes += bytes.fromhex(text)
        if label:
            self._open.append((len(self._bytes), label))
            self._bytes += bytes(4)

    def number(self, text: str, value: int) -> None:
        """Add bytes in hexadecimal, and a number of 32 bits."""
        self._bytes += bytes.fromhex(text) + value.to_bytes(4, "little")

    def label(self, name: str, at: int | None = None) -> None:
        """Define a label: here, or at an offset in the program's memory."""
        self._labels[name] = self._base + len(self._bytes) if at is None else at

    def data(self, name: str, content: bytes) -> None:
        """Add data under a label."""
        self.label(name)
        self._bytes += content

    def finished(self) -> bytes:
        """Return the code, with all distances."""
        for at, label in self._open:
            distance = self._labels[label] - (self._base + at + 4)
            self._bytes[at : at + 4] = distance.to_bytes(4, "little", signed=True)
        return bytes(self._bytes)


def program(block: int, capacity: int, writes: bool, again: int = 0) -> bytes:
    """Return the program, a PE32+ image, for a disk of `capacity` sectors.

    `block` is the block size in bytes. With `writes` it also writes and flushes. It does
    its work once more after each of `again` disconnections of the driver.
    """
    code = Code(PAGE)
    code.label("first", BUFFERS)
    code.label("second", BUFFERS + LENGTH)
    end = capacity * 512

    def transfer(function: int, distance: int, size: int, buffer: str) -> None:
        code.add("48 89 e9")  # mov rcx, rbp
        code.add("48 8b 45 08 8b 10")  # mov rax, [rbp + 8]; mov edx, [rax]  (the medium's number)
        code.number("41 b8", (end - distance) // block)  # mov r8d, block
        code.number("41 b9", size)  # mov r9d, size
        code.add("48 8d 05", buffer)  # lea rax, [buffer]
        code.add("48 89 44 24 20")  # mov [rsp + 0x20], rax
        code.add(f"ff 55 {function:02x}")  # call [rbp + function]
        check()

    def check() -> None:
        code.add("48 85 c0 0f 85", "failed")  # test rax, rax; jnz failed

    code.add("48 83 ec 38")  # sub rsp, 0x38
    code.add(f"49 89 cc 48 8b 5a {BOOT_SERVICES:02x}")  # mov r12, rcx; mov rbx, [rdx + 0x60]
    code.add("31 c9 31 d2 45 31 c0 45 31 c9")  # xor ecx, ecx; xor edx, edx; xor r8d, r8d; r9d
    code.number("ff 93", WATCHDOG)  # call [rbx + SetWatchdogTimer]
    code.add("4c 89 e1")  # mov rcx, r12
    code.add("48 8d 15", "loaded image")  # lea rdx, [guid]
    code.add("4c 8d 05", "result")  # lea r8, [result]
    code.number("ff 93", HANDLE_PROTOCOL)  # call [rbx + HandleProtocol]
    check()
    code.add("48 8b 05", "result")  # mov rax, [result]
    code.add("4c 8b 68 18")  # mov r13, [rax + 0x18]  (the handle of the disk)
    code.number("41 be", again)  # mov r14d, again
    code.label("work")
    code.add("4c 89 e9")  # mov rcx, r13
    code.add("48 8d 15", "block io")  # lea rdx, [guid]
    code.add("4c 8d 05", "result")  # lea r8, [result]
    code.number("ff 93", HANDLE_PROTOCOL)  # call [rbx + HandleProtocol]
    check()
    code.add("48 8b 2d", "result")  # mov rbp, [result]
    transfer(READ, block, block, "second")
    transfer(READ, READ_FROM, LENGTH, "first")
    if writes:
        transfer(WRITE, WRITTEN_TO, LENGTH, "first")
        code.add(f"48 89 e9 ff 55 {FLUSH:02x}")  # mov rcx, rbp; call [rbp + FlushBlocks]
        check()
        transfer(READ, WRITTEN_TO, LENGTH, "second")
        code.add("fc 48 8d 35", "first")  # cld; lea rsi, [first]
        code.add("48 8d 3d", "second")  # lea rdi, [second]
        code.number("b9", LENGTH)  # mov ecx, LENGTH
        code.add("f3 a6 0f 85", "differs")  # repe cmpsb; jne differs
    code.add("45 85 f6 0f 84", "passed")  # test r14d, r14d; jz passed
    code.add("41 ff ce")  # dec r14d
    code.add("4c 89 e9 31 d2 45 31 c0")  # mov rcx, r13; xor edx, edx; xor r8d, r8d
    code.number("ff 93", DISCONNECT)  # call [rbx + DisconnectController]
    check()
    code.add("4c 89 e9 31 d2 45 31 c0 41 b1 01")  # mov rcx, r13; ...; mov r9b, 1
    code.number("ff 93", CONNECT)  # call [rbx + ConnectController]
    check()
    code.add("e9", "work")  # jmp work
    code.label("passed")
    code.add("48 8d 35", "good")  # lea rsi, [good]
    code.add("e9", "print")  # jmp print
    code.label("differs")
    code.add("48 8d 35", "other")  # lea rsi, [other]
    code.add("e9", "print")  # jmp print
    code.label("failed")
    code.add("48 8d 35", "bad")  # lea rsi, [bad]
    code.label("print")
    code.number("ba", PORT)  # mov edx, port
    code.add("ac 84 c0 74 03 ee eb f8")  # lodsb; test al, al; jz end; out dx, al; jmp lodsb
    code.add("fa f4 eb fd")  # end: cli; hlt; jmp hlt
    code.data("good", f"\n{GOOD}\n\0".encode())
    code.data("bad", f"\n{BAD}\n\0".encode())
    code.data("other", f"\n{OTHER}\n\0".encode())
    code.data("block io", BLOCK_IO)
    code.data("loaded image", LOADED_IMAGE)
    code.data("result", bytes(8))
    return _image(code.finished())


def _image(code: bytes) -> bytes:
    """Return a PE32+ image for UEFI with one section, at an address that does not matter."""
    raw = len(code) + -len(code) % FILE_ALIGNMENT
    header = struct.pack("<2s58xI", b"MZ", 0x40)
    header += struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 0xA0, 0x22)
    header += struct.pack("<HBBIIIII", 0x20B, 0, 0, raw, 0, 0, PAGE, PAGE)
    header += struct.pack(
        "<QIIHHHHHHIIIIHH",
        0,
        PAGE,
        FILE_ALIGNMENT,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        SPACE,
        FILE_ALIGNMENT,
        0,
        10,
        0,
    )
    header += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 6) + bytes(6 * 8)
    header += struct.pack(
        "<8sIIIIIIHHI", b".text", SPACE - PAGE, PAGE, raw, FILE_ALIGNMENT, 0, 0, 0, 0, 0xE0000020
    )
    return header.ljust(FILE_ALIGNMENT, b"\0") + code.ljust(raw, b"\0")


def volume(block: int, capacity: int, content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the parts of a FAT16 volume with one file, EFI/BOOT/BOOTX64.EFI: sector, bytes.

    `block` is the block size in bytes, `capacity` that of the disk in sectors. The file may have
    one cluster.
    """
    assert len(content) <= CLUSTER
    size = capacity * 512 - TAIL
    table = -(-(size // CLUSTER + 2) * 2 // block)
    root = block + 2 * table * block
    clusters = root + ROOT_ENTRIES * 32
    yield (
        0,
        struct.pack(
            "<3s8sHBHBHHBHHHIIBBBI11s8s",
            *(
                b"\xeb\x3c\x90",
                b"vblk",
                block,
                CLUSTER // block,
                1,
                2,
                ROOT_ENTRIES,
                0,
                0xF8,
                table,
            ),
            *(32, 2, 0, size // block, 0x80, 0, 0x29, 1, b"VBLK", b"FAT16"),
        ).ljust(510, b"\0")
        + b"\x55\xaa",
    )
    used = struct.pack("<5H", 0xFFF8, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF)
    for number in range(2):
        yield (block + number * table * block) // 512, used
    yield root // 512, _entry("EFI", 2)
    yield clusters // 512, _entry(".", 2) + _entry("..", 0) + _entry("BOOT", 3)
    directory = _entry(".", 3) + _entry("..", 2) + _entry("BOOTX64 EFI", 4, len(content))
    yield (clusters + CLUSTER) // 512, directory
    yield (clusters + 2 * CLUSTER) // 512, content


def _entry(name: str, cluster: int, size: int = 0) -> bytes:
    """Return an entry of a directory: of a directory, or of a file with a size."""
    kind = 0x20 if size else 0x10
    return struct.pack("<11sB14xHI", name.ljust(11).encode(), kind, cluster, size)
