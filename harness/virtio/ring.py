"""Layout and flags of split and packed virtqueues (virtio 2.7, 2.8)."""

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
    """Return the bytes of the driver area (available ring with used_event)."""
    return 6 + 2 * queue_size


def used_size(queue_size: int) -> int:
    """Return the bytes of the device area (used ring with avail_event)."""
    return 6 + 8 * queue_size


def legacy_areas(queue_size: int, align: int) -> tuple[int, int, int]:
    """Return where driver and device area begin in a legacy virtqueue, and its size in bytes.

    The descriptor table comes first; the device area is aligned to `align` bytes (virtio 2.7.2).
    """
    driver = DESC_SIZE * queue_size
    device = -(-(driver + avail_size(queue_size)) // align) * align
    return driver, device, device + used_size(queue_size)


PACKED_DESC = struct.Struct("<QIHH")
"""A descriptor of a packed virtqueue: addr, len, id, flags (virtio 2.8.13)."""

PACKED_DESC_F_AVAIL = 1 << 7
PACKED_DESC_F_USED = 1 << 15

EVENT_SUPPRESSION = struct.Struct("<HH")
"""Event suppression area of a packed virtqueue: desc_event_off_wrap, flags (virtio 2.8.14)."""

RING_EVENT_FLAGS_ENABLE = 0
RING_EVENT_FLAGS_DISABLE = 1
RING_EVENT_FLAGS_DESC = 2
