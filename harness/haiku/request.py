"""I/O requests and their operations (Haiku's IORequest, IOOperation)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from harness.haiku.constants import StatusT


@dataclass(frozen=True)
class IOVec:
    """A range of device-visible memory: bus address, length in bytes."""

    base: int
    length: int


def cut(vecs: Iterable[IOVec], start: int, length: int, longest: int) -> Iterator[IOVec]:
    """Yield `length` bytes of a scatter list from byte `start` on, in pieces up to `longest`."""
    for vec in vecs:
        if start >= vec.length:
            start -= vec.length
            continue
        base, room = vec.base + start, min(vec.length - start, length)
        start = 0
        length -= room
        while room > 0:
            size = min(room, longest)
            yield IOVec(base, size)
            base += size
            room -= size
        if length == 0:
            return


class IORequest:
    """A read or write of any length at any byte offset, finished exactly once.

    The data is either in memory that the device can reach, as a scatter list
    (`vecs`), or in a buffer that it cannot reach (`buffer`).

    `status` is None until the request is finished; `transferred` then counts
    the bytes from its start that were read or written, also when it failed.
    `on_finished`, if given, is called with the request at that moment.
    """

    def __init__(
        self,
        offset: int,
        is_write: bool,
        vecs: Sequence[IOVec] = (),
        buffer: bytearray | None = None,
        on_finished: Callable[[IORequest], None] | None = None,
    ) -> None:
        self.offset = offset
        self.is_write = is_write
        self.vecs = tuple(vecs)
        self.buffer = buffer
        self.length = sum(vec.length for vec in vecs) if buffer is None else len(buffer)
        self.transferred = 0
        self.status: StatusT | None = None
        self._on_finished = on_finished

    @property
    def position(self) -> int:
        """Position of the next byte on the disk."""
        return self.offset + self.transferred

    @property
    def remaining(self) -> int:
        """Bytes still to be transferred."""
        return self.length - self.transferred

    def finish(self, status: StatusT) -> None:
        """Record the result. Raises RuntimeError if the request is already finished."""
        if self.status is not None:
            raise RuntimeError(f"a request was finished twice: {self.status.name}, {status.name}")
        self.status = status
        if self._on_finished is not None:
            self._on_finished(self)


class Phase(Enum):
    """Phase of an operation: a write to part of a block reads the block first."""

    READ_BEGIN = "read begin"
    READ_END = "read end"
    DO_ALL = "do all"


class IOOperation:
    """A legal transfer of whole blocks, for a part of a request.

    `offset` and `length` (bytes) are multiples of the block size. They are those
    of the current phase, as are `vecs` and `is_write`. The original range is the
    part of the request. `bounce` is the address of the bounce buffer that is used
    instead of the request's own memory, None without one. `in_device` is set while
    the device may still access the memory after a timeout.
    """

    def __init__(
        self,
        request: IORequest,
        offset: int,
        vecs: Iterable[IOVec],
        original_length: int,
        block_size: int,
        longest: int,
        bounce: int | None = None,
    ) -> None:
        self.request = request
        self.original_offset = request.position
        self.original_length = original_length
        self.bounce = bounce
        self.block_size = block_size
        self.in_device = False
        self.status: StatusT | None = None
        self.transferred = 0
        self.phases = [Phase.DO_ALL]
        self._offset = offset
        self._vecs = list(vecs)
        self._length = sum(vec.length for vec in self._vecs)
        self._longest = longest
        if request.is_write:
            self.phases = [*self._partial_blocks(), Phase.DO_ALL]

    def _partial_blocks(self) -> list[Phase]:
        """Return the phases that read the unchanged parts of the first and last block."""
        begin = self.original_offset != self._offset
        end = self.original_offset + self.original_length != self._offset + self._length
        if self._length == self.block_size and (begin or end):
            return [Phase.READ_BEGIN]
        return [Phase.READ_BEGIN] * begin + [Phase.READ_END] * end

    @property
    def phase(self) -> Phase:
        """The current or next phase."""
        return self.phases[0]

    @property
    def is_write(self) -> bool:
        """True if this phase writes to the device."""
        return self.request.is_write and self.phase is Phase.DO_ALL

    @property
    def offset(self) -> int:
        """Position on the disk where this phase begins, in bytes."""
        if self.phase is Phase.READ_END:
            return self._offset + self._length - self.block_size
        return self._offset

    @property
    def length(self) -> int:
        """Bytes that this phase transfers."""
        return self._length if self.phase is Phase.DO_ALL else self.block_size

    @property
    def vecs(self) -> list[IOVec]:
        """Memory of this phase, in legal segments."""
        if self.phase is Phase.DO_ALL:
            return self._vecs
        start = self.offset - self._offset
        return list(cut(self._vecs, start, self.block_size, self._longest))

    @property
    def original_transferred(self) -> int:
        """Number of bytes of the original range that were transferred, from its start on."""
        ahead = self.original_offset - self._offset
        return min(max(self.transferred - ahead, 0), self.original_length)

    def next_phase(self) -> None:
        """Advance to the next phase and clear the status."""
        self.phases.pop(0)
        self.status = None

    def complete(self, status: StatusT, transferred: int) -> None:
        """Record the result of a phase; a second result is ignored, as in Haiku."""
        if self.status is None:
            self.status = status
            self.transferred = transferred
