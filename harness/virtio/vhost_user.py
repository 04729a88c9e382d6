"""The vhost-user protocol as data: messages between a front-end and a back-end.

Numbers are in the byte order of the host. See QEMU's docs/interop/vhost-user.rst.
"""

from __future__ import annotations

import struct
from enum import IntEnum

HEADER = struct.Struct("=III")
"""Header of a message: request, flags, size of the payload in bytes."""

VERSION = 1
VERSION_MASK = 3
REPLY = 4
NEED_REPLY = 8
"""Bits of a header's flags."""

U64 = struct.Struct("=Q")
VRING_STATE = struct.Struct("=II")
"""Payload of messages with a number for a virtqueue: index of the virtqueue, number."""

VRING_ADDR = struct.Struct("=IIQQQQ")
"""Payload of SET_VRING_ADDR: index, flags, addresses of descriptor area, device area (used),
driver area (available) and log."""

MEMORY = struct.Struct("=I4xQQQQ")
"""Memory table of a single region: count, bus address, bytes, user address, offset in the file."""

REGION = struct.Struct("=8xQQQQ")
"""Payload of ADD_MEM_REG and REM_MEM_REG: bus address, bytes, user address, offset in the file."""

VRING_F_LOG = 1
"""Flag in SET_VRING_ADDR's payload: writes to the used ring are logged, at the address in `log`."""

LOG = struct.Struct("=QQ")
"""Payload of SET_LOG_BASE: bytes of the log, and its offset in the file."""

LOG_PAGE = 4096
"""Bytes of memory for each bit of the log."""

INFLIGHT = struct.Struct("=QQHH4x")
"""Payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD: bytes of the region and its offset in the file,
number of virtqueues, and their size in descriptors."""

CONFIG = struct.Struct("=III")
"""Payload of GET_CONFIG and SET_CONFIG: offset and size (bytes), flags; then the bytes."""

FEATURE_LOG_ALL = 1 << 26
FEATURE_PROTOCOL = 1 << 30
"""Feature bits that vhost uses for itself. A driver never sees them."""

MAX_QUEUES = 256
"""A virtqueue's index has to fit the low 8 bits of SET_VRING_KICK's payload."""


class FrontEndRequest(IntEnum):
    """Requests that a front-end sends."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackEndRequest(IntEnum):
    """Requests that a back-end sends, on a separate channel."""

    CONFIG_CHANGE = 2


class ProtocolFeature(IntEnum):
    """Protocol features that this project uses, by bit number."""

    MQ = 0
    LOG_SHMFD = 1
    REPLY_ACK = 3
    BACKEND_REQ = 5
    CONFIG = 9
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16

    @property
    def mask(self) -> int:
        """Mask with the bit of this feature."""
        return 1 << self.value
