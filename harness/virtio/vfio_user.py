"""The vfio-user protocol as data: messages between a client (a VMM, a driver) and a server.

Numbers are little-endian. See QEMU's docs/interop/vfio-user.rst.
"""

from __future__ import annotations

import struct
from enum import IntEnum

HEADER = struct.Struct("<HHIII")
"""Header: message id, command, size in bytes with this header, flags, error number."""

REPLY = 1
NO_REPLY = 1 << 4
ERROR = 1 << 5
"""Bits of a header's flags; without REPLY the message is a command."""

MAJOR, MINOR = 0, 1
VERSION = struct.Struct("<HH")
"""Payload of VERSION: major, minor; then JSON with a final NUL byte."""

DEVICE_INFO = struct.Struct("<IIII")
"""Device info: argsz, flags, number of regions, number of interrupt types."""

DEVICE_RESET = 1 << 0
DEVICE_PCI = 1 << 1
"""Flags of a device: it can be reset; it is a PCI function."""

REGION_INFO = struct.Struct("<IIIIQQ")
"""Region info: argsz, flags, index, offset of the first capability, size, offset in the file."""

REGION_READ = 1 << 0
REGION_WRITE = 1 << 1
REGION_MMAP = 1 << 2
REGION_CAPABILITIES = 1 << 3
"""Flags of a region."""

REGION_CAPABILITY = struct.Struct("<HHII")
"""Sparse mmap capability: id, version, offset of the next capability, number of areas."""

SPARSE_MMAP = 1
AREA = struct.Struct("<QQ")
"""Area that can be mapped: offset, size."""

IRQ_INFO = struct.Struct("<IIII")
"""Interrupt info: argsz, flags, index, count."""

IRQ_EVENTFD = 1 << 0
IRQ_MASKABLE = 1 << 1
IRQ_AUTOMASKED = 1 << 2
IRQ_NO_RESIZE = 1 << 3
"""Flags of an interrupt type."""

IRQ_SET = struct.Struct("<IIIII")
"""Payload of SET_IRQS: argsz, flags, index, start, count; then data."""

DATA_NONE = 1 << 0
DATA_BOOL = 1 << 1
DATA_EVENTFD = 1 << 2
ACTION_MASK = 1 << 3
ACTION_UNMASK = 1 << 4
ACTION_TRIGGER = 1 << 5
"""Flags of SET_IRQS."""

DMA_MAP = struct.Struct("<IIQQQ")
"""Payload of DMA_MAP: argsz, flags, offset in the file, bus address, size in bytes."""

DMA_READ_ALLOWED = 1 << 0
DMA_WRITE_ALLOWED = 1 << 1
"""Flags of DMA_MAP."""

DMA_UNMAP = struct.Struct("<IIQQ")
"""Payload of DMA_UNMAP: argsz, flags, bus address, size in bytes."""

UNMAP_ALL = 1 << 1
"""Flag of DMA_UNMAP: unmap everything, and ignore address and size."""

ACCESS = struct.Struct("<QII")
"""Access to a region: offset, region, number of bytes; then the bytes of a write or an answer."""

DMA_ACCESS = struct.Struct("<QQ")
"""Payload of DMA_READ and DMA_WRITE: bus address, number of bytes."""

CONFIG_REGION = 7
REGIONS = 9
"""The region of PCI configuration space (0 to 5 are the BARs), and how many regions there are."""

INTX, MSI, MSIX, ERR, REQ = range(5)
"""Interrupt types of a PCI function."""

IRQS = 5

MAX_MESSAGE = (1 << 20) + 4096
"""Most bytes of a message that our client and server accept."""

MAX_FDS = 8
"""Default for the most file descriptors in a message."""


class Command(IntEnum):
    """The command of a message."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
