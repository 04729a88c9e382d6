"""One request as the device sees it: the struct virtio_blk_req in a chain (virtio 5.2.6)."""

from __future__ import annotations

from harness.model.memory import BrokenError, pieces, size
from harness.model.ring import Chain
from harness.virtio.blk import REQUEST_HEADER, Status

HEADER = REQUEST_HEADER.size


class Request:
    """A chain's bytes by their meaning, however it is cut into elements.

    `type` is None if the device-readable part is too short for a header.
    BrokenError for a chain without a status byte.
    """

    def __init__(self, chain: Chain) -> None:
        self._readable = chain.readable
        self._writable = chain.writable
        self.sent = size(chain.readable) - HEADER
        self.room = size(chain.writable) - 1
        self._written = 0
        if self.room < 0:
            raise BrokenError("a request without a status byte")
        self.type: int | None = None
        self.sector = 0
        if self.sent >= 0:
            header = b"".join(pieces(chain.readable, 0, HEADER))
            self.type, _, self.sector = REQUEST_HEADER.unpack(header)

    def data(self) -> list[memoryview]:
        """What the driver sends after the header, `sent` bytes."""
        return list(pieces(self._readable, HEADER, HEADER + self.sent))

    def area(self) -> list[memoryview]:
        """Where the device answers before the status byte, `room` bytes."""
        return list(pieces(self._writable, 0, self.room))

    def filled(self, length: int) -> None:
        """Note that the first `length` bytes of the area have been written."""
        self._written = length

    def write(self, offset: int, data: bytes) -> None:
        """Write into the area, from a place on that has been reached already or later."""
        for piece in pieces(self._writable, offset, min(offset + len(data), self.room)):
            piece[:], data = data[: len(piece)], data[len(piece) :]
            if offset <= self._written:
                self._written = max(self._written, offset + len(piece))
            offset += len(piece)

    def end(self, status: Status) -> int:
        """Write the status byte. How many bytes were written from the first one on (2.7.8.2)."""
        for piece in pieces(self._writable, self.room, self.room + 1):
            piece[0] = status
        return self._written + (self._written == self.room)
