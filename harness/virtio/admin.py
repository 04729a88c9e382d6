"""Group administration commands: numbers and layouts (virtio 2.12, 2.13)."""

from __future__ import annotations

import struct
from enum import IntEnum

COMMAND = struct.Struct("<HH12xQ")
"""Head of the device-readable part: opcode, group type, group member id."""

ANSWER = struct.Struct("<HH4x")
"""Head of the device-writable part: status, status qualifier."""

OPCODES_PER_WORD = 64
"""Opcodes, or ids of capabilities, in each 64-bit word of a list."""


class Group(IntEnum):
    """Types of groups of devices."""

    SELF = 0
    SR_IOV = 1


class Opcode(IntEnum):
    """Commands.

    RESOURCE_OBJ_QUERY and RESOURCE_OBJ_MODIFY have the numbers of the table in 2.12.1, which Linux
    uses too. The paragraphs of 2.12.1.3 exchange the two.
    """

    LIST_QUERY = 0x00
    LIST_USE = 0x01
    LEGACY_COMMON_CFG_WRITE = 0x02
    LEGACY_COMMON_CFG_READ = 0x03
    LEGACY_DEV_CFG_WRITE = 0x04
    LEGACY_DEV_CFG_READ = 0x05
    LEGACY_NOTIFY_INFO = 0x06
    CAP_ID_LIST_QUERY = 0x07
    DEVICE_CAP_GET = 0x08
    DRIVER_CAP_SET = 0x09
    RESOURCE_OBJ_CREATE = 0x0A
    RESOURCE_OBJ_QUERY = 0x0B
    RESOURCE_OBJ_MODIFY = 0x0C
    RESOURCE_OBJ_DESTROY = 0x0D
    DEV_PARTS_METADATA_GET = 0x0E
    DEV_PARTS_GET = 0x0F
    DEV_PARTS_SET = 0x10
    DEV_MODE_SET = 0x11


LISTS = frozenset({Opcode.LIST_QUERY, Opcode.LIST_USE})
"""Commands that a driver may use after a reset."""

LEGACY_ACCESS = frozenset(
    {
        Opcode.LEGACY_COMMON_CFG_WRITE,
        Opcode.LEGACY_COMMON_CFG_READ,
        Opcode.LEGACY_DEV_CFG_WRITE,
        Opcode.LEGACY_DEV_CFG_READ,
    }
)
CAPABILITIES = frozenset({Opcode.CAP_ID_LIST_QUERY, Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET})
OBJECTS = frozenset(
    {
        Opcode.RESOURCE_OBJ_CREATE,
        Opcode.RESOURCE_OBJ_QUERY,
        Opcode.RESOURCE_OBJ_MODIFY,
        Opcode.RESOURCE_OBJ_DESTROY,
    }
)
DEVICE_PARTS = OBJECTS | {
    Opcode.DEV_PARTS_METADATA_GET,
    Opcode.DEV_PARTS_GET,
    Opcode.DEV_PARTS_SET,
    Opcode.DEV_MODE_SET,
}
"""Commands that a device has together (virtio 2.12.1.1.6, 2.12.1.2.4, 2.12.1.4.4.1)."""


class AdminStatus(IntEnum):
    """Values of `status`, which are numbers of Linux errors."""

    OK = 0
    ENXIO = 6
    EAGAIN = 11
    ENOMEM = 12
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    ENOSPC = 28


class Qualifier(IntEnum):
    """Values of `status_qualifier`."""

    OK = 0
    INVALID_COMMAND = 1
    INVALID_OPCODE = 2
    INVALID_FIELD = 3
    INVALID_GROUP = 4
    INVALID_MEMBER = 5
    NO_RESOURCE = 6
    TRY_AGAIN = 7


CAP_DEV_PARTS = 0
"""The capability that limits device parts objects; the only one that a block device can have."""

CAP_HEAD = struct.Struct("<H6x")
"""Head of the data of DEVICE_CAP_GET and DRIVER_CAP_SET: id."""

PARTS_LIMITS = struct.Struct("<BB")
"""The capability's data: most objects for getting parts, and for setting parts."""

OBJECT_HEAD = struct.Struct("<H2xI")
"""Type and id of a resource object."""

OBJECT = struct.Struct("<H2xIQ")
"""Type and id of a resource object, flags."""

OBJECT_DEV_PARTS = 0
"""Type of device parts objects."""

PARTS_OBJECT = struct.Struct("<B7x")
"""Data of a device parts object: its purpose."""

GETS, SETS = 0, 1
"""Purposes of a device parts object."""

PARTS_QUESTION = struct.Struct("<H2xIB7x")
"""Type and id of an object, then what DEV_PARTS_METADATA_GET or DEV_PARTS_GET asks for."""

METADATA_SIZE, METADATA_COUNT, METADATA_LIST = 0, 1, 2
PARTS_SELECTED, PARTS_ALL = 0, 1

METADATA = struct.Struct("<I4x")
"""Head of the result of DEV_PARTS_METADATA_GET: a size in bytes, or a count."""

PART = struct.Struct("<HBx8sI")
"""Head of a device part: type, flags, selector, length of the value in bytes (virtio 2.14)."""

PART_OPTIONAL = 1

PART_INDEX = struct.Struct("<H6x")
PART_OFFSET = struct.Struct("<I4x")
"""Selectors: index of a virtqueue, offset in the common configuration."""


class Part(IntEnum):
    """Types of device parts, in the order in which they come."""

    DEV_FEATURES = 0x100
    DRV_FEATURES = 0x101
    PCI_COMMON_CFG = 0x102
    DEVICE_STATUS = 0x103
    VQ_CFG = 0x104
    VQ_NOTIFY_CFG = 0x105


VQ_CFG = struct.Struct("<HHHxxQQQ")
"""Value of VQ_CFG: size, vector, enabled, and the addresses of the three areas."""

VQ_NOTIFY_CFG = struct.Struct("<HH4x")
"""Value of VQ_NOTIFY_CFG: queue_notify_off, queue_notif_config_data."""

MODE = struct.Struct("<B")
MODE_STOPPED = 1
"""Data of DEV_MODE_SET, and its flag."""

LEGACY_ACCESS_HEAD = struct.Struct("<B7x")
"""Data of an access to a legacy interface: offset; a write has its data behind this."""

NOTIFY_INFO = struct.Struct("<BB6xQ")
"""An entry of LEGACY_NOTIFY_INFO: whose BAR (0 ends the list), number of the BAR, offset."""

NOTIFY_ENTRIES = 4
NOTIFY_END, NOTIFY_OWNER, NOTIFY_MEMBER = 0, 1, 2


def numbers(words: bytes) -> set[int]:
    """Return the numbers of the bits that are set in a list of little-endian 64-bit words."""
    value = int.from_bytes(words, "little")
    return {number for number in range(value.bit_length()) if value >> number & 1}


def words(chosen: set[int] | frozenset[int]) -> bytes:
    """Return a list of 64-bit words with the bits of these numbers set."""
    count = max(chosen, default=0) // OPCODES_PER_WORD + 1
    return sum(1 << number for number in chosen).to_bytes(8 * count, "little")


def parts_in(data: bytes) -> list[tuple[int, int, bytes, bytes]]:
    """Return type, flags, selector and value of each device part. ValueError for a cut one."""
    found = []
    at = 0
    while at < len(data):
        if at + PART.size > len(data):
            raise ValueError(f"{len(data) - at} bytes at {at} are no head of a device part")
        kind, flags, selector, length = PART.unpack_from(data, at)
        at += PART.size
        if at + length > len(data):
            raise ValueError(f"part {kind:#x} of {length} bytes at {at} ends after {len(data)}")
        found.append((kind, flags, selector, data[at : at + length]))
        at += length
    return found


def part(kind: int, flags: int, selector: bytes, value: bytes) -> bytes:
    """Return a device part."""
    return PART.pack(kind, flags, selector, len(value)) + value
