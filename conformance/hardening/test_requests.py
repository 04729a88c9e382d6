"""Invalid requests: unknown types, wrong lengths, headers in pieces."""

import pytest

from conformance.data import sectors
from harness.driver.interface import Buffer
from harness.report import hardening
from harness.robustness.bad_addresses import end_of_memory
from harness.virtio.blk import (
    REQUEST_HEADER,
    SCSI_TYPES,
    SECTOR,
    RequestType,
    segment,
)
from harness.virtio.features import Feature

TYPES = [
    *RequestType,
    *(1 << bit for bit in (6, 16, 31)),
    0x7FFF_FFFF,
    0xFFFF_FFFF,
]
"""All types of the specification, and some undefined ones."""

READABLE = [0, 1, 16, 17, 511, 4096 + 16]
WRITABLE = [0, 1, 19, 513]
"""Lengths of the data after the header, and before the status byte; 0 means no buffer."""


def name(type):
    known = RequestType._value2member_map_
    return RequestType(type).name.lower().replace("_", "-") if type in known else f"{type:#x}"


@pytest.mark.parametrize("type", TYPES, ids=name)
@hardening("5.2.6.1", "requests with data of every wrong length and direction")
def test_a_request_of_every_wrong_length(victim, type):
    disk = victim(discard=True, write_zeroes=True)

    with disk.must_survive():
        for readable in READABLE:
            for writable in WRITABLE:
                buffers = [disk.header(type, sector=8)]
                buffers += [disk.data(readable)] if readable else []
                buffers += [disk.area(writable)] if writable else []
                disk.attempt(*buffers, disk.status())


@pytest.mark.parametrize(
    "type", [RequestType.DISCARD, RequestType.WRITE_ZEROES, RequestType.SECURE_ERASE], ids=name
)
@hardening("5.2.6.1", "segments outside the disk, too large, too many, of wrong flags")
def test_invalid_segments(victim, type):
    disk = victim(discard=True, write_zeroes=True)
    most, large = 2**64 - 1, 2**32 - 1

    with disk.must_survive():
        for segments in (
            [segment(most, large, large)],
            [segment(most, 1)],
            [segment(0, large)],
            [segment(2**55, large)],
            [segment(2**63, 2**31)],
            [segment(0, 0)],
            [segment(8, 1, 0xFFFF_FFFE)],
            [segment(8, 8)] * 500,
            [segment(8, large)] * 64,
            [segment(8, 8), segment(most, large)],
        ):
            data = b"".join(segments)
            disk.attempt(disk.header(type), Buffer(disk.memory(data), len(data)), disk.status())


@pytest.mark.parametrize("type", [RequestType.IN, RequestType.OUT], ids=name)
@hardening("5.2.6.1", "reads and writes outside the disk, up to the end of all sectors")
def test_sectors_that_do_not_exist(victim, type):
    disk = victim()
    capacity = disk.driver.config().capacity

    with disk.must_survive():
        for sector in (
            capacity - 1,
            capacity,
            2**32,
            2**55 - 1,
            2**55,
            2**63,
            2**64 - 2,
            2**64 - 1,
        ):
            data = disk.area(2 * SECTOR) if type == RequestType.IN else disk.data(2 * SECTOR)
            status = disk.status()
            disk.attempt(disk.header(type, sector), data, status)


@pytest.mark.parametrize("length", [1, 8, 15, 0], ids=["1", "8", "15", "none"])
@hardening("5.2.6", "a header that is too short, or missing")
def test_a_header_that_is_too_short(victim, length):
    disk = victim()
    header, area, status = disk.read()
    short = [Buffer(header.address, length)] if length else []

    with disk.must_survive():
        disk.send(*short, area, status)


@hardening("5.2.6", "a request of a header and nothing else")
def test_a_header_alone(victim):
    disk = victim()

    with disk.must_survive():
        disk.send(disk.header())


@hardening("5.2.6", "a request of a status byte and nothing else")
def test_a_status_byte_alone(victim):
    disk = victim()

    with disk.must_survive():
        disk.send(disk.status())


@hardening("5.2.6", "a header of 17 bytes in as many buffers, one of them too many")
def test_a_header_in_pieces(victim):
    disk = victim()
    header, area, status = disk.read()
    pieces = [Buffer(header.address + n, 1) for n in range(REQUEST_HEADER.size + 1)]

    with disk.must_survive():
        disk.send(*pieces, area, status)


@hardening("5.2.6", "data in buffers of one byte, as many as the queue has room for")
def test_data_in_the_smallest_pieces(victim):
    disk = victim()
    header, area, status = disk.read()
    room = disk.ring.size - 2
    pieces = [Buffer(area.address + n, 1, writable=True) for n in range(min(room, SECTOR))]

    with disk.must_survive():
        disk.send(header, *pieces, status)


@hardening("5.2.6", "a request without a status byte")
def test_no_status_byte(victim):
    disk = victim()
    header, area, _ = disk.read()

    with disk.must_survive():
        disk.send(header, area)


@hardening("5.2.6", "a status of several bytes, a buffer of its own")
def test_a_status_of_several_bytes(victim):
    disk = victim()
    header, area, _ = disk.read()

    with disk.must_survive():
        disk.send(header, area, disk.area(16))


@hardening("5.2.6.1", "a write of many times the same data, more than the disk holds")
def test_a_write_larger_than_the_disk(victim):
    disk = victim(capacity=128)
    header, _, status = disk.write()
    filling = Buffer(disk.memory(sectors(16)), 16 * SECTOR)

    with disk.must_survive():
        disk.send(header, *[filling] * 40, status)


COMMANDS = [(), (6,), (1,), (300,), (6, 512), (6, 1, 511), (6, *[64] * 20)]
ANSWERS = [(), (16,), (96, 16), (512, 96, 16), (1, 16), (96, 4), (512, 512, 1, 17)]
"""Lengths of the buffers of a SCSI command after its header, and before its status byte. The
first length of each of `COMMANDS` is that of the command. The last of each of `ANSWERS` is that of
the result, which has 16 bytes and begins with `errors`; before it are 96 bytes for the sense. With
`(6,)` and `(96, 16)` the form is right."""

INQUIRY = bytes([0x12, 0, 0, 0, 36, 0])
"""A SCSI command that changes nothing."""

SCSI = pytest.mark.parametrize("type", SCSI_TYPES, ids=["in", "out"])


@pytest.mark.parametrize("offered", [False, True], ids=["not-offered", "offered"])
@SCSI
@hardening("5.2.6.3", "SCSI commands with buffers that are missing, too short, or too many")
def test_scsi_commands_with_wrong_buffers(victim, type, offered):
    disk = victim(**({"scsi": True, "needs": [Feature.BLK_SCSI]} if offered else {}))

    with disk.must_survive():
        for command in COMMANDS:
            for answer in ANSWERS:
                readable = [disk.data(length) for length in command[1:]]
                if command:
                    inquiry = INQUIRY.ljust(command[0], b"\0")[: command[0]]
                    readable.insert(0, Buffer(disk.memory(inquiry), len(inquiry)))
                writable = [disk.area(length) for length in answer]
                disk.attempt(disk.header(type), *readable, *writable, disk.status())


@pytest.mark.parametrize("length", [1, 3])
@SCSI
@hardening("5.2.6.3", "a SCSI command without room for its errors, which have 4 bytes")
def test_a_scsi_command_without_room_for_its_errors(victim, type, length):
    disk = victim()

    with disk.must_survive():
        answer = [disk.area(96), disk.area(length), disk.status()]
        disk.send(disk.header(type), Buffer(disk.memory(INQUIRY), len(INQUIRY)), *answer)


@hardening("5.2.6.3", "a SCSI command whose errors have one byte, the last one of memory")
def test_a_scsi_command_whose_errors_are_the_end_of_memory(victim):
    disk = victim()
    errors = Buffer(end_of_memory(disk.driver) - 1, 1, writable=True)

    with disk.must_survive():
        command = Buffer(disk.memory(INQUIRY), len(INQUIRY))
        disk.send(disk.header(RequestType.SCSI_CMD), command, disk.area(96), errors, disk.status())
