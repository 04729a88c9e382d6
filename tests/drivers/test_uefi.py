"""The disk that UEFI firmware boots from, as its bytes say it."""

from __future__ import annotations

import struct

import pytest

from harness.drivers import uefi


@pytest.mark.parametrize("block", [512, 4096])
def test_the_volume_leads_to_the_program(block: int) -> None:
    capacity = 65536
    program = uefi.program(block, capacity, writes=True, again=1)
    disk = bytearray(capacity * 512)
    for sector, part in uefi.volume(block, capacity, program):
        assert not any(disk[sector * 512 : sector * 512 + len(part)]), "parts overlap"
        disk[sector * 512 : sector * 512 + len(part)] = part

    size, cluster, reserved, tables, entries = struct.unpack_from("<HBHBH", disk, 11)
    (table,) = struct.unpack_from("<H", disk, 22)
    (total,) = struct.unpack_from("<I", disk, 32)
    assert (size, size * cluster) == (block, uefi.CLUSTER)
    root = (reserved + tables * table) * size
    data = root + entries * 32
    clusters = (total * size - data) // uefi.CLUSTER
    assert 4085 <= clusters < 65525, "the number of clusters makes it FAT16"
    assert (clusters + 2) * 2 <= table * size
    assert total * size <= capacity * 512 - uefi.TAIL

    place = root
    for name in (b"EFI        ", b"BOOT       ", b"BOOTX64 EFI"):
        listed = [disk[at : at + 32] for at in range(place, place + 96, 32)]
        (entry,) = [each for each in listed if each[:11] == name]
        first, length = struct.unpack_from("<HI", entry, 26)
        place = data + (first - 2) * uefi.CLUSTER
    assert disk[place : place + length] == program


def test_the_program_is_an_image_for_uefi() -> None:
    program = uefi.program(512, 65536, writes=False)

    (at,) = struct.unpack_from("<I", program, 0x3C)
    signature, machine, sections = struct.unpack_from("<4sHH", program, at)
    magic, subsystem = (
        struct.unpack_from("<H", program, at + 24 + offset)[0] for offset in (0, 68)
    )
    assert (signature, machine, sections) == (b"PE\0\0", 0x8664, 1)
    assert (magic, subsystem) == (0x20B, 10)
    assert len(program) <= uefi.CLUSTER


def test_only_a_program_that_writes_has_a_write() -> None:
    write = bytes((0xFF, 0x55, uefi.WRITE))

    assert write in uefi.program(512, 65536, writes=True)
    assert write not in uefi.program(512, 65536, writes=False)


def test_distances_are_counted_from_their_end() -> None:
    code = uefi.Code(0x1000)
    code.label("start")
    code.add("e9", "end")
    code.add("e9", "start")
    code.label("end")

    assert code.finished() == bytes.fromhex("e905000000 e9f6ffffff")
