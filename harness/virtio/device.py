"""The device status field, which every virtio device has (virtio 2.1)."""

from __future__ import annotations

from enum import IntFlag

BLOCK_DEVICE = 2
"""The virtio device id of a block device (virtio 5)."""


class DeviceStatus(IntFlag):
    """Bits of the device status field (virtio 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    SUSPEND = 16
    NEEDS_RESET = 64
    FAILED = 128
