# Derived from Haiku's virtio_block driver:
# Copyright 2013, Jérôme Duval, korli@users.berlios.de.
# Distributed under the terms of the MIT License.
"""An open disk: reading, writing and ioctls."""

from __future__ import annotations

from collections.abc import Callable

from harness.haiku.constants import B_FILE_NAME_LENGTH, Ioctl, StatusT
from harness.haiku.device import DriverInfo
from harness.haiku.geometry import GEOMETRY_SIZE, get_geometry
from harness.haiku.icon import DEVICE_ICON_SIZE, DRIVE_ICON, ICON_NAME, DeviceIcon
from harness.haiku.request import IORequest


class Handle:
    """An open disk (virtio_block_handle).

    Every method returns a status, B_FILE_ERROR if the handle is closed. `free` calls
    `on_free`.
    """

    def __init__(self, info: DriverInfo, on_free: Callable[[], None]) -> None:
        self.info = info
        self._on_free = on_free
        self._closed = False
        self._freed = False

    def close(self) -> StatusT:
        """Accept no further requests; current ones are finished."""
        if self._closed:
            return StatusT.B_FILE_ERROR
        self._closed = True
        return StatusT.B_OK

    def free(self) -> StatusT:
        """Free the handle; with the last handle of a disk its device is stopped."""
        if self._freed:
            return StatusT.B_FILE_ERROR
        self._closed = self._freed = True
        self._on_free()
        return StatusT.B_OK

    # --- I/O

    def io(self, request: IORequest) -> StatusT:
        """Execute a request. It is finished on return and has its own status.

        Returns B_OK if the request was accepted, else the status that it was finished
        with: B_BAD_VALUE for a range that is not on the disk, or B_FILE_ERROR.
        """
        refusal = self._refusal(request)
        if refusal is not StatusT.B_OK:
            request.finish(refusal)
            return refusal
        return self.info.io_scheduler.schedule_request(request)

    def _refusal(self, request: IORequest) -> StatusT:
        if self._closed or not self.info.initialized:
            return StatusT.B_FILE_ERROR
        self.info.service()
        if request.offset < 0 or request.offset + request.length > self.info.media.size:
            return StatusT.B_BAD_VALUE
        return StatusT.B_OK

    def read(self, position: int, length: int) -> tuple[StatusT, bytes]:
        """Read `length` bytes from byte `position` on; return status and the bytes read.

        The status is the request's: B_OK, B_BAD_VALUE for a range that is not
        on the disk, EIO, ENOTSUP, B_BUSY, B_CANCELED, B_FILE_ERROR.
        """
        if length < 0:
            return StatusT.B_BAD_VALUE, b""
        request = IORequest(position, False, buffer=bytearray(length))
        self.io(request)
        assert request.status is not None and request.buffer is not None
        return request.status, bytes(request.buffer[: request.transferred])

    def write(self, position: int, data: bytes) -> tuple[StatusT, int]:
        """Write at byte `position`; return status and the number of bytes written.

        A block that is written in part is read first. Statuses are as for `read`.
        """
        request = IORequest(position, True, buffer=bytearray(data))
        self.io(request)
        assert request.status is not None
        return request.status, request.transferred

    # --- ioctl

    def ioctl(
        self, op: int, buffer: bytearray | DeviceIcon | None = None, length: int = 0
    ) -> StatusT:
        """Write the answer to an `Ioctl` into `buffer`; `length` is its length in bytes.

        As in Haiku, only B_GET_GEOMETRY and B_GET_VECTOR_ICON check `length`. Returns
        B_BAD_ADDRESS for a buffer that is too small for the answer (nothing is
        written then), B_BAD_VALUE for a wrong length, B_DEV_INVALID_IOCTL for an
        unknown operation.
        """
        if self._closed or not self.info.initialized:
            return StatusT.B_FILE_ERROR
        self.info.service()
        media = self.info.media
        match op:
            case Ioctl.B_GET_MEDIA_STATUS:
                return self._media_status(buffer)
            case Ioctl.B_GET_DEVICE_SIZE:
                return _copy(buffer, media.size.to_bytes(8, "little"))
            case Ioctl.B_GET_GEOMETRY:
                if buffer is None or not 0 <= length <= GEOMETRY_SIZE:
                    return StatusT.B_BAD_VALUE
                geometry = get_geometry(media, self.info.read_only)
                return _copy(buffer, geometry.pack()[:length])
            case Ioctl.B_GET_ICON_NAME:
                return _copy(buffer, ICON_NAME.encode()[: B_FILE_NAME_LENGTH - 1] + b"\0")
            case Ioctl.B_GET_VECTOR_ICON:
                return _vector_icon(buffer, length)
            case Ioctl.B_FLUSH_DRIVE_CACHE:
                return self.info.synchronize_cache()
        return StatusT.B_DEV_INVALID_IOCTL

    def _media_status(self, buffer: bytearray | DeviceIcon | None) -> StatusT:
        size = 4
        if not isinstance(buffer, bytearray) or len(buffer) < size:
            return StatusT.B_BAD_ADDRESS
        status = self.info.take_media_status()
        return _copy(buffer, status.to_bytes(size, "little", signed=True))


def _copy(buffer: bytearray | DeviceIcon | None, answer: bytes) -> StatusT:
    if not isinstance(buffer, bytearray) or len(buffer) < len(answer):
        return StatusT.B_BAD_ADDRESS
    buffer[: len(answer)] = answer
    return StatusT.B_OK


def _vector_icon(icon: bytearray | DeviceIcon | None, length: int) -> StatusT:
    if length != DEVICE_ICON_SIZE:
        return StatusT.B_BAD_VALUE
    if not isinstance(icon, DeviceIcon):
        return StatusT.B_BAD_ADDRESS
    if icon.icon_size >= len(DRIVE_ICON):
        status = _copy(icon.icon_data, DRIVE_ICON)
        if status is not StatusT.B_OK:
            return status
    icon.icon_size = len(DRIVE_ICON)
    return StatusT.B_OK
