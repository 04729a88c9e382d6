"""A request in flight: its buffers in device-visible memory, and the checks when it is used."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from harness.driver.errors import BadArgumentError
from harness.driver.interface import CANARY, GUARD, Buffer, Completion, Request
from harness.driver.memory import DmaMemory
from harness.driver.virtqueue.base import PAGE, Virtqueue
from harness.virtio.blk import REQUEST_HEADER, STATUS_UNWRITTEN


def _cut(total: int, natural: tuple[int, ...], wanted: tuple[int, ...], what: str) -> list[int]:
    lengths = list(wanted) if wanted else [length for length in natural if length]
    if sum(lengths) != total or any(length <= 0 for length in lengths):
        raise BadArgumentError(f"{what} is {total} bytes, but the pieces {wanted} are not")
    return lengths


@dataclass(unsafe_hash=True)
class Sent:
    """The properties of a request that was sent, without its data.

    `size` is the length in bytes of the data after the header, `room` of the device-writable area
    before the status byte. `align` is the largest power of two, up to 4096, that divides the
    address of each buffer with data; 0 if there are none. `elements` is the number of descriptors.
    `after_reset` is True if the driver has sent a request, and then reset the device, before.
    `status` and `used` are -1 until the request is used.
    """

    type: int
    queue: int = 0
    size: int = 0
    room: int = 0
    align: int = 0
    elements: int = 0
    indirect: bool = False
    packed: bool = False
    after_reset: bool = False
    status: int = -1
    used: int = -1

    @classmethod
    def of(cls, flight: Flight, packed: bool, after_reset: bool) -> Sent:
        """Return the properties of a request that is ready to be sent."""
        request = flight.request
        return cls(
            request.type,
            flight.queue.index,
            len(request.data),
            request.receive,
            _alignment(flight.buffers, request),
            len(flight.buffers),
            request.indirect,
            packed,
            after_reset,
        )

    def plain(self) -> dict[str, Any]:
        """Return the properties as a dict of bool and int, which also a worker can send."""
        return {
            name: value if isinstance(value, bool) else int(value)
            for name, value in vars(self).items()
        }


def _alignment(buffers: list[Buffer], request: Request) -> int:
    """Return the alignment of the data's buffers, as `Sent.align`."""
    bits, header, room = 0, REQUEST_HEADER.size, request.receive
    for buffer in buffers:
        if not buffer.writable:
            if buffer.length > header:
                bits |= buffer.address + header
            header = max(0, header - buffer.length)
        elif room > 0:
            bits |= buffer.address
            room -= buffer.length
    if not request.data and not request.receive:
        return 0
    bits |= PAGE
    return bits & -bits


@dataclass
class Flight:
    """A request in memory, in a block of its own, with guard bytes around every buffer.

    A device that writes past the end of a buffer changes guard bytes, and not
    the next buffer.
    """

    request: Request
    block: int
    image: bytes
    buffers: list[Buffer]
    queue: Virtqueue
    head: int = 0
    chain: bytes = b""
    abandoned: bool = False
    completion: Completion | None = None
    record: Sent | None = None
    sent: float = field(default_factory=time.perf_counter)

    @classmethod
    def prepare(cls, request: Request, memory: DmaMemory, queue: Virtqueue) -> Flight:
        """Write the buffers and the descriptor chain of a request, without making it available.

        Raises BadArgumentError if the request cannot be cut as it says, or if
        memory or descriptors are lacking.
        """
        header = REQUEST_HEADER.pack(request.type, request.reserved, request.sector)
        readable = header + request.data
        pieces = [
            (length, False)
            for length in _cut(
                len(readable),
                (len(header), len(request.data)),
                request.readable,
                "header and data",
            )
        ]
        total = request.receive + 1
        pieces += [
            (length, True)
            for length in _cut(total, (request.receive, 1), request.writable, "data and status")
        ]
        offsets, end = [], GUARD
        for length, _ in pieces:
            if request.shift is not None:
                end += (request.shift - end) % PAGE
            offsets.append(end)
            end += length + GUARD
        image = bytearray([CANARY]) * end
        taken = 0
        for (length, writable), offset in zip(pieces, offsets, strict=True):
            if not writable:
                image[offset : offset + length] = readable[taken : taken + length]
                taken += length
        image[offsets[-1] + pieces[-1][0] - 1] = STATUS_UNWRITTEN

        block = memory.alloc(end, 16 if request.shift is None else PAGE)
        memory.view(block, end)[:] = image
        buffers = [
            Buffer(block + offset, length, writable)
            for (length, writable), offset in zip(pieces, offsets, strict=True)
        ]
        flight = cls(request, block, bytes(image), buffers, queue)
        try:
            flight.head = queue.add(buffers, request.indirect, request.shift, request.unusual)
        except BadArgumentError:
            memory.free(block)
            raise
        flight.chain = queue.chain(flight.head)
        return flight

    @property
    def status_address(self) -> int:
        """Bus address of the status byte, the last byte that the device may write."""
        last = self.buffers[-1]
        return last.address + last.length - 1

    def complete(self, used_len: int, memory: DmaMemory) -> Completion:
        """Read the result, check for damage, and free memory and descriptors."""
        seconds = time.perf_counter() - self.sent
        contents = bytes(memory.view(self.block, len(self.image)))
        written = b"".join(
            contents[buffer.address - self.block :][: buffer.length]
            for buffer in self.buffers
            if buffer.writable
        )
        damage = self._damage(contents)
        if self.queue.chain(self.head) != self.chain:
            damage.append("the descriptors or the indirect table changed")
        self.queue.release(self.head)
        memory.free(self.block)
        self.completion = Completion(written[-1], used_len, written[:-1], tuple(damage), seconds)
        if self.record:
            self.record.status, self.record.used = written[-1], used_len
        return self.completion

    def _damage(self, contents: bytes) -> list[str]:
        """Return a line for each region outside the device-writable buffers that has changed."""
        writable = [buffer for buffer in self.buffers if buffer.writable]
        borders = [0]
        for buffer in writable:
            start = buffer.address - self.block
            borders += [start, start + buffer.length]
        borders.append(len(contents))
        damage = []
        for start, end in list(pairwise(borders))[::2]:
            if contents[start:end] == self.image[start:end]:
                continue
            first = next(n for n in range(start, end) if contents[n] != self.image[n])
            damage.append(f"memory at {self.block + first:#x} changed: {self._place(first)}")
        return damage

    def _place(self, offset: int) -> str:
        address = self.block + offset
        for number, buffer in enumerate(self.buffers):
            if buffer.address <= address < buffer.address + buffer.length:
                return f"byte {address - buffer.address} of device-readable buffer {number}"
            if address < buffer.address:
                return f"guard byte {buffer.address - address} before buffer {number}"
        last = self.buffers[-1]
        behind = address - last.address - last.length
        return f"guard byte {behind} after buffer {len(self.buffers) - 1}"
