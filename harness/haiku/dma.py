"""Cut requests into operations that the device allows (Haiku's dma_restrictions, DMAResource)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from harness.driver.errors import BadArgumentError
from harness.driver.interface import Driver
from harness.haiku.constants import B_PAGE_SIZE, StatusT
from harness.haiku.request import IOOperation, IORequest, IOVec, cut
from harness.virtio.blk import BlockConfig

MAX_BOUNCE_BUFFER_SIZE = 64 * 1024
"""Bytes of a bounce buffer, or two blocks if that is more."""

BOUNCE_BUFFER_COUNT = 32
"""Most bounce buffers, including those of requests that are still in the device."""

DEFAULT_SEGMENT_COUNT = 16
"""Most segments of an operation if the device has no limit (the same as in DMAResource)."""

_UINT32_MAX = (1 << 32) - 1


class RefusedError(Exception):
    """A request cannot be cut into operations; has the status for it."""

    def __init__(self, status: StatusT) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass(frozen=True)
class DMARestrictions:
    """Limits of an operation: bytes of its longest segment, number of segments."""

    max_segment_size: int
    max_segment_count: int

    @classmethod
    def from_config(cls, config: BlockConfig, queue_size: int) -> DMARestrictions:
        """Return the limits by SIZE_MAX, SEG_MAX and the size of the virtqueue.

        A field of 0 means no limit, as in Haiku. A chain, indirect or not, may not be
        longer than the queue (virtio 2.7.5.3.1), and header and status take two of
        its descriptors. This is applied even if seg_max is larger.
        """
        return cls(
            max_segment_size=config.size_max or _UINT32_MAX,
            max_segment_count=min(config.seg_max or DEFAULT_SEGMENT_COUNT, queue_size - 2),
        )


class DMAResource:
    """Cuts requests into operations of whole blocks within the restrictions.

    A bounce buffer replaces memory that the device cannot use: a request's own
    buffer (the device cannot reach it), the parts of a request that begin or end
    within a block, and scatter lists whose segments are too short for a block.

    Restrictions and block size can be updated between any two operations.
    """

    def __init__(self, driver: Driver, restrictions: DMARestrictions, block_size: int) -> None:
        self._driver = driver
        self._free: list[int] = []
        self._sizes: dict[int, int] = {}
        self._created = 0
        self._bounce_size = 0
        self.update(restrictions, block_size)

    def update(self, restrictions: DMARestrictions, block_size: int) -> None:
        """Use these restrictions and this block size from now on."""
        self.restrictions = restrictions
        self.block_size = block_size
        size = max(MAX_BOUNCE_BUFFER_SIZE, 2 * block_size)
        if size > self._bounce_size:
            # The smaller ones stay allocated, unused, until the device is reset.
            self._created -= len(self._free)
            self._free.clear()
            self._bounce_size = size

    @property
    def max_transfer(self) -> int:
        """Bytes of the largest operation in whole blocks, 0 if one block is too large."""
        most = self.restrictions.max_segment_size * max(self.restrictions.max_segment_count, 0)
        return most - most % self.block_size

    def translate_next(self, request: IORequest) -> IOOperation:
        """Return the next operation of an unfinished request.

        Raises RefusedError: B_BAD_VALUE if one block is larger than an operation may
        be, B_BUSY while the device has all bounce buffers, B_NO_MEMORY if none can be
        allocated.
        """
        if not self.max_transfer:
            raise RefusedError(StatusT.B_BAD_VALUE)
        if request.buffer is None and request.position % self.block_size == 0:
            operation = self._direct(request)
            if operation is not None:
                return operation
        return self._bounced(request)

    def _direct(self, request: IORequest) -> IOOperation | None:
        """Return an operation of whole blocks in the request's own memory, None if impossible."""
        longest = self.restrictions.max_segment_size
        pieces = cut(request.vecs, request.transferred, request.remaining, longest)
        segments = list(islice(pieces, self.restrictions.max_segment_count))
        total = sum(segment.length for segment in segments)
        total -= total % self.block_size
        if not total:
            return None
        return IOOperation(
            request,
            request.position,
            cut(segments, 0, total, longest),
            total,
            self.block_size,
            longest,
        )

    def _bounced(self, request: IORequest) -> IOOperation:
        """Return an operation with a bounce buffer for the rest of the request, or its start."""
        block = self.block_size
        begin = request.position - request.position % block
        end = request.position + request.remaining
        whole = -(-end // block) * block - begin
        length = min(whole, self._bounce_size - self._bounce_size % block, self.max_transfer)
        if request.buffer is None and request.position != begin:
            # From the next block on, the request's own memory may be usable.
            length = block
        bounce = self._take()
        return IOOperation(
            request,
            begin,
            cut([IOVec(bounce, length)], 0, length, self.restrictions.max_segment_size),
            min(begin + length, end) - request.position,
            block,
            self.restrictions.max_segment_size,
            bounce,
        )

    # --- the data of operations with a bounce buffer

    def copy_in(self, operation: IOOperation) -> None:
        """Copy the request's bytes into the bounce buffer, before the device is written."""
        if operation.bounce is not None:
            data = self._request_data(operation)
            self._driver.memory_write(self._bounce_at(operation), data)

    def copy_out(self, operation: IOOperation, length: int) -> None:
        """Copy `length` bytes of the request out of the bounce buffer, after a read."""
        if operation.bounce is None or not length:
            return
        data = self._driver.memory_read(self._bounce_at(operation), length)
        request = operation.request
        start = operation.original_offset - request.offset
        if request.buffer is not None:
            request.buffer[start : start + len(data)] = data
            return
        done = 0
        for vec in cut(request.vecs, start, len(data), _UINT32_MAX):
            self._driver.memory_write(vec.base, data[done : done + vec.length])
            done += vec.length

    def _bounce_at(self, operation: IOOperation) -> int:
        assert operation.bounce is not None
        return operation.bounce + operation.original_offset % operation.block_size

    def _request_data(self, operation: IOOperation) -> bytes:
        request = operation.request
        start = operation.original_offset - request.offset
        if request.buffer is not None:
            return bytes(request.buffer[start : start + operation.original_length])
        return b"".join(
            self._driver.memory_read(vec.base, vec.length)
            for vec in cut(request.vecs, start, operation.original_length, _UINT32_MAX)
        )

    # --- bounce buffers

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        if self._created == BOUNCE_BUFFER_COUNT:
            raise RefusedError(StatusT.B_BUSY)
        try:
            bounce = self._driver.alloc(self._bounce_size, B_PAGE_SIZE)
        except BadArgumentError:
            raise RefusedError(StatusT.B_BUSY if self._created else StatusT.B_NO_MEMORY) from None
        self._created += 1
        self._sizes[bounce] = self._bounce_size
        return bounce

    def recycle(self, operation: IOOperation) -> None:
        """Free the bounce buffer of an operation that the device has completed."""
        if operation.bounce is None:
            return
        if self._sizes[operation.bounce] == self._bounce_size:
            self._free.append(operation.bounce)
        else:
            self._created -= 1
        operation.bounce = None
