"""Frames on a byte stream that may carry noise.

A frame is a header (magic, kind, sequence number, length and CRC-32 of the
payload, CRC-32 of the header itself) and a payload. The payload is ASCII and
the magic has bytes that are not ASCII, so no payload can look like the start of
a frame: after lost or damaged bytes, the next magic starts the next frame.

The host sends a frame and the agent answers with a frame (stop and wait) of the
same sequence number. If the host gets no answer, or a damaged one, it sends a
probe. The agent then repeats its answer, or answers NAK if the frame never came,
and the host sends it again. So no call is executed twice.

A message that is longer than a frame is sent in parts. Each part is answered, so
the host never sends more than the guest's serial driver can buffer.
"""

from __future__ import annotations

import struct
import zlib
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

PROTOCOL = 1
"""Version of frames and messages. The host sends the agent's code, so both ends agree."""

MAGIC = b"\xf5VB\xfa"

MAX_PAYLOAD = 32 * 1024
"""Most bytes of a payload: half of what Linux buffers for a serial port."""

MAX_MESSAGE = 64 * 1024 * 1024
"""Most bytes of a message, so that a compressed message cannot fill the memory."""

MAX_PARTS = -(-MAX_MESSAGE // MAX_PAYLOAD) * 4 // 3 + 1
"""Parts of a message: as many as the longest makes, in base 64."""

WORTH_PACKING = 512
"""Least bytes of an answer that is compressed; to send a shorter one takes less time."""

_PLAIN, _PACKED = b"p", b"z"

_FIELDS = struct.Struct("<4sBIII")
_CRC = struct.Struct("<I")
HEADER_LENGTH = _FIELDS.size + _CRC.size


class Kind(IntEnum):
    """Kinds of frames; the host sends the first four, the agent the others."""

    PART = 1
    """A part of a call; more parts follow. Answer: ACK."""
    CALL = 2
    """The last or only part of a call. Answer: RESULT_PART or RESULT."""
    MORE = 3
    """Ask for the next part of the result. Answer: RESULT_PART or RESULT."""
    PROBE = 4
    """Ask for the answer to the frame of this sequence number. Answer: this answer, or NAK."""
    ACK = 5
    RESULT_PART = 6
    RESULT = 7
    NAK = 8
    """The frame (or a frame, if the sequence number is 0) was damaged or did not come."""


_KINDS = {int(kind): kind for kind in Kind}


@dataclass(frozen=True)
class Frame:
    """A frame. Sequence numbers have 32 bits and are never 0 in a host's frame."""

    kind: Kind
    sequence: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """Return the frame's bytes. Raises ValueError if the payload is not ASCII or too long."""
        if len(self.payload) > MAX_PAYLOAD or not self.payload.isascii():
            raise ValueError(f"a payload is at most {MAX_PAYLOAD} bytes of ASCII")
        length, crc = len(self.payload), zlib.crc32(self.payload)
        fields = _FIELDS.pack(MAGIC, self.kind, self.sequence, length, crc)
        return fields + _CRC.pack(zlib.crc32(fields)) + self.payload


class Parser:
    """Finds the frames in a stream of bytes.

    `damaged` counts frames that were cut short or had a wrong CRC.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.damaged = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes, and return the frames that are now complete."""
        self._buffer += data
        frames: list[Frame] = []
        while self._seek(0):
            complete = self._take(frames)
            if not complete:
                break
        return frames

    def _seek(self, start: int) -> bool:
        """Drop all bytes before the first magic from `start` on; return False if there is none."""
        at = self._buffer.find(MAGIC, start)
        if at >= 0:
            del self._buffer[:at]
            return True
        # The last bytes may be the start of a magic.
        del self._buffer[: max(start, len(self._buffer) - len(MAGIC) + 1)]
        return False

    def _take(self, frames: list[Frame]) -> bool:
        """Take or reject the frame at the start of the buffer; return False if it is incomplete."""
        buffer = self._buffer
        if len(buffer) < HEADER_LENGTH:
            return False
        _, number, sequence, length, payload_crc = _FIELDS.unpack_from(buffer)
        (header_crc,) = _CRC.unpack_from(buffer, _FIELDS.size)
        kind = _KINDS.get(number)
        # The length is used only if the CRC of the header is right.
        if zlib.crc32(buffer[: _FIELDS.size]) != header_crc or kind is None or length > MAX_PAYLOAD:
            return self._reject()
        end = HEADER_LENGTH + length
        if buffer.find(MAGIC, HEADER_LENGTH, end) >= 0:
            return self._reject()
        if len(buffer) < end:
            return False
        payload = bytes(buffer[HEADER_LENGTH:end])
        if zlib.crc32(payload) != payload_crc:
            return self._reject()
        del buffer[:end]
        frames.append(Frame(kind, sequence, payload))
        return True

    def _reject(self) -> bool:
        self.damaged += 1
        return self._seek(len(MAGIC))


def split(message: bytes, worth_packing: int = 0) -> list[bytes]:
    """Return a message as payloads of frames, at least one.

    A message of `worth_packing` bytes or more is compressed if that makes it shorter:
    a serial port transfers about 100 KB/s.
    """
    marked = _PLAIN + message
    if len(message) >= worth_packing:
        packed = b2a_base64(zlib.compress(message, 1), newline=False)
        if len(packed) < len(message):
            marked = _PACKED + packed
    return [marked[at : at + MAX_PAYLOAD] for at in range(0, len(marked), MAX_PAYLOAD)]


def join(payloads: Iterable[bytes]) -> bytes:
    """Return the message with these parts. Raises ValueError if they are malformed."""
    marked = b"".join(payloads)
    mark, message = marked[:1], marked[1:]
    if mark == _PLAIN:
        return message
    if mark != _PACKED:
        raise ValueError(f"no message starts with {marked[:20]!r}")
    unpacker = zlib.decompressobj()
    try:
        message = unpacker.decompress(a2b_base64(message), MAX_MESSAGE)
    except zlib.error as error:
        raise ValueError(f"the message is not what was compressed: {error}") from error
    if not unpacker.eof:
        raise ValueError(f"the message is cut short, or longer than {MAX_MESSAGE} bytes")
    return message
