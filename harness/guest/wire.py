"""Frames on a byte stream that may carry noise.

A frame is a header (magic, kind, sequence number, length and CRC-32 of the
payload, CRC-32 of the header itself) and a payload. The payload is ASCII and
the magic has bytes that are not, so no payload can look like the start of a
frame: whatever was lost or damaged, the next magic is the next frame.

The host speaks and the agent answers, one frame each (stop and wait), with
the host's sequence number. A host that gets no answer, or a damaged one,
probes for it; the agent then repeats its answer, or refuses (NAK) because the
frame never came, and the host sends it again. So nothing is executed twice.

A message longer than a frame goes in parts, each of them answered, which also
keeps the host from sending more than a guest's serial driver has room for.
"""

from __future__ import annotations

import struct
import zlib
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

PROTOCOL = 1
"""Version of frames and messages. The code is sent at start, so both ends always agree."""

MAGIC = b"\xf5VB\xfa"

MAX_PAYLOAD = 32 * 1024
"""Bytes. Half of what Linux buffers for a serial port before it drops input."""

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of a message, so that a few compressed ones cannot fill the memory."""

MAX_PARTS = -(-MAX_MESSAGE // MAX_PAYLOAD) * 4 // 3 + 1
"""Parts of a message: as many as the longest makes, in base 64."""

WORTH_PACKING = 512
"""Bytes of an answer; to compress a shorter one takes a guest longer than to send it."""

_PLAIN, _PACKED = b"p", b"z"

_FIELDS = struct.Struct("<4sBIII")
_CRC = struct.Struct("<I")
HEADER_LENGTH = _FIELDS.size + _CRC.size


class Kind(IntEnum):
    """What a frame is; the first four come from the host, the others from the agent."""

    PART = 1
    """A part of a call, more follow. Answer: ACK."""
    CALL = 2
    """The last or only part of a call. Answer: RESULT_PART or RESULT."""
    MORE = 3
    """Ask for the next part of the result. Answer: RESULT_PART or RESULT."""
    PROBE = 4
    """What about the frame of this sequence number? Answer: the same as to it, or NAK."""
    ACK = 5
    RESULT_PART = 6
    RESULT = 7
    NAK = 8
    """The frame (or some frame, if the sequence number is 0) came damaged or not at all."""


_KINDS = {int(kind): kind for kind in Kind}


@dataclass(frozen=True)
class Frame:
    """A frame as it was sent. Sequence numbers are 32 bits, never 0 for a host's frame."""

    kind: Kind
    sequence: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """The frame's bytes. ValueError if the payload is not ASCII or too long."""
        if len(self.payload) > MAX_PAYLOAD or not self.payload.isascii():
            raise ValueError(f"a payload is at most {MAX_PAYLOAD} bytes of ASCII")
        length, crc = len(self.payload), zlib.crc32(self.payload)
        fields = _FIELDS.pack(MAGIC, self.kind, self.sequence, length, crc)
        return fields + _CRC.pack(zlib.crc32(fields)) + self.payload


class Parser:
    """Finds the frames in a stream of bytes.

    `damaged` counts what began like a frame and was none: cut short, or with a wrong CRC.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.damaged = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Take more bytes, and return the frames that they complete."""
        self._buffer += data
        frames: list[Frame] = []
        while self._seek(0):
            complete = self._take(frames)
            if not complete:
                break
        return frames

    def _seek(self, start: int) -> bool:
        """Drop everything before the first magic from `start` on; False if there is none yet."""
        at = self._buffer.find(MAGIC, start)
        if at >= 0:
            del self._buffer[:at]
            return True
        # The last bytes may be the beginning of a magic.
        del self._buffer[: max(start, len(self._buffer) - len(MAGIC) + 1)]
        return False

    def _take(self, frames: list[Frame]) -> bool:
        """Take or reject the frame at the buffer's start; False if more bytes are needed."""
        buffer = self._buffer
        if len(buffer) < HEADER_LENGTH:
            return False
        _, number, sequence, length, payload_crc = _FIELDS.unpack_from(buffer)
        (header_crc,) = _CRC.unpack_from(buffer, _FIELDS.size)
        kind = _KINDS.get(number)
        # A length is believed only once the header's own CRC vouches for it.
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
    """A message as the payloads of frames; at least one.

    One of `worth_packing` bytes or more is compressed if that makes it shorter:
    a serial port moves some 100 KB/s.
    """
    marked = _PLAIN + message
    if len(message) >= worth_packing:
        packed = b2a_base64(zlib.compress(message, 1), newline=False)
        if len(packed) < len(message):
            marked = _PACKED + packed
    return [marked[at : at + MAX_PAYLOAD] for at in range(0, len(marked), MAX_PAYLOAD)]


def join(payloads: Iterable[bytes]) -> bytes:
    """The message whose parts these are. ValueError if they are none."""
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
