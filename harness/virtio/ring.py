"""Layout and flags of the split virtqueue (virtio 2.7)."""

from __future__ import annotations

import struct

DESC = struct.Struct("<QIHH")
"""A descriptor: addr, len, flags, next."""

DESC_SIZE = 16
DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

MAX_QUEUE_SIZE = 32768


def avail_size(queue_size: int) -> int:
    """Bytes of the driver area (avail ring with used_event)."""
    return 6 + 2 * queue_size


def used_size(queue_size: int) -> int:
    """Bytes of the device area (used ring with avail_event)."""
    return 6 + 8 * queue_size
