"""Haiku's numbers: status values, ioctl operations, device types, node attributes.

The values are those of Haiku's headers (os/support/Errors.h, os/drivers/Drivers.h,
os/drivers/device_manager.h, private/virtio/virtio.h), so that a log of this
driver can be compared with a log of Haiku's.
"""

from __future__ import annotations

from enum import IntEnum

_GENERAL = -(1 << 31)
_OS = _GENERAL + 0x1000
_STORAGE = _GENERAL + 0x6000
_POSIX = _GENERAL + 0x7000
_DEVICE = _GENERAL + 0xA000


class StatusT(IntEnum):
    """Values of status_t, the result of an operation. Every error is negative."""

    B_OK = 0
    B_ERROR = -1
    B_NO_MEMORY = _GENERAL
    EIO = _GENERAL + 1
    B_BAD_VALUE = _GENERAL + 5
    B_NAME_NOT_FOUND = _GENERAL + 7
    B_NAME_IN_USE = _GENERAL + 8
    B_TIMED_OUT = _GENERAL + 9
    B_CANCELED = _GENERAL + 12
    B_NO_INIT = _GENERAL + 13
    B_BUSY = _GENERAL + 14
    B_BAD_ADDRESS = _OS + 0x301
    B_FILE_ERROR = _STORAGE
    B_DEVICE_NOT_FOUND = _POSIX + 7
    ENOTSUP = _POSIX + 56
    B_DEV_INVALID_IOCTL = _DEVICE
    B_DEV_MEDIA_CHANGED = _DEVICE + 13


class Ioctl(IntEnum):
    """Operations of a drive that this driver supports; others return B_DEV_INVALID_IOCTL."""

    B_GET_DEVICE_SIZE = 1
    B_GET_GEOMETRY = 7
    B_GET_MEDIA_STATUS = 15
    B_FLUSH_DRIVE_CACHE = 20
    B_GET_ICON_NAME = 22
    B_GET_VECTOR_ICON = 23


B_DISK = 0
"""Value of device_geometry.device_type for hard disks."""

B_FILE_NAME_LENGTH = 256
"""Most bytes of the buffer that B_GET_ICON_NAME fills."""

B_PAGE_SIZE = 4096

B_DEVICE_BUS = "device/bus"
B_DEVICE_PRETTY_NAME = "device/pretty name"
VIRTIO_DEVICE_TYPE_ITEM = "virtio/type"

DRIVER_MODULE_NAME = "drivers/disk/virtual/virtio_block/driver_v1"
DEVICE_MODULE_NAME = "drivers/disk/virtual/virtio_block/device_v1"
DEVICE_ID_GENERATOR = "virtio_block/device_id"
