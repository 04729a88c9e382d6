"""One request as the device sees it: the struct virtio_blk_req in a chain (virtio 5.2.6)."""

from __future__ import annotations

from harness.model.memory import BrokenError, pieces, size
from harness.model.ring import Chain
from harness.virtio.blk import REQUEST_HEADER, RequestType, Status

HEADER = REQUEST_HEADER.size

SEGMENTED = (RequestType.DISCARD, RequestType.WRITE_ZEROES, RequestType.SECURE_ERASE)


class Request:
    """A chain's bytes by their meaning, independent of the division into elements.

    `type` is None if the device-readable part is too short for a header. Raise BrokenError for a
    chain without a status byte.
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
        self.flags = 0
        if self.sent >= 0:
            header = b"".join(pieces(chain.readable, 0, HEADER))
            self.type, self.flags, self.sector = REQUEST_HEADER.unpack(header)

    @property
    def segmented(self) -> bool:
        """Return whether the data of a request of this type are segments (virtio 5.2.6)."""
        return self.type in SEGMENTED

    def data(self) -> list[memoryview]:
        """Return what the driver sends after the header, `sent` bytes."""
        return list(pieces(self._readable, HEADER, HEADER + self.sent))

    def command(self) -> bytes:
        """Return the SCSI command, which is a buffer of its own after the header (5.2.6.3)."""
        buffers = [bytes(element) for element in self._readable]
        return buffers[1] if len(buffers) > 1 and len(buffers[0]) == HEADER else b""

    def area(self) -> list[memoryview]:
        """Return the area for the device's answer before the status byte, `room` bytes."""
        return list(pieces(self._writable, 0, self.room))

    def filled(self, length: int) -> None:
        """Note that the first `length` bytes of the area have been written."""
        self._written = length

    def write(self, offset: int, data: bytes) -> None:
        """Write into the area at `offset`. Bytes count as written if no gap is before them."""
        for piece in pieces(self._writable, offset, min(offset + len(data), self.room)):
            piece[:], data = data[: len(piece)], data[len(piece) :]
            if offset <= self._written:
                self._written = max(self._written, offset + len(piece))
            offset += len(piece)

    def end(self, status: Status) -> int:
        """Write the status byte. Return the number of bytes written without a gap (2.7.8.2)."""
        for piece in pieces(self._writable, self.room, self.room + 1):
            piece[0] = status
        return self._written + (self._written == self.room)
