"""Whims of requests and what they end with, where nothing is prescribed (virtio 5.2.6)."""

from __future__ import annotations

from harness.diskspec import SECTOR, Operation
from harness.model.block import Block
from harness.model.request import Request
from harness.model.storage import Storage
from harness.model.whims.registry import Original, also, whim
from harness.virtio.blk import SEGMENT, SEGMENT_UNMAP, RequestType, Status


def _odd(request: Request) -> bool:
    """Return whether a read or write has no whole sectors."""
    length = request.room if request.type == RequestType.IN else request.sent
    return length % SECTOR != 0


@whim(
    Block.execute,
    text="a read or write of no whole sectors ends with UNSUPP",
    family="odd requests",
)
def odd_length_unsupported(original: Original, block: Block, request: Request) -> Status:
    if request.type == RequestType.IN and _odd(request):
        return Status.UNSUPP
    if request.type == RequestType.OUT and _odd(request) and not block.spec.read_only:
        return Status.UNSUPP
    return Status(original(block, request))


@whim(Block.execute, text="a request beyond the end of the disk ends with UNSUPP", family="end")
def beyond_the_end_unsupported(original: Original, block: Block, request: Request) -> Status:
    length = {RequestType.IN: request.room, RequestType.OUT: request.sent}.get(
        RequestType(request.type) if request.type in (0, 1) else RequestType.FLUSH, 0
    )
    if length and not block.spec.read_only and not block.within(request.sector, length // SECTOR):
        return Status.UNSUPP
    return Status(original(block, request))


@whim(Storage.read, text="a read that fails leaves zeroes", family="failing reads")
def failing_read_zero_fills(
    original: Original, storage: Storage, sector: int, views: list[memoryview]
) -> None:
    try:
        original(storage, sector, views)
    except OSError:
        for view in views:
            view[:] = bytes(len(view))
        raise


@whim(
    Block.read,
    text="a read that fails leaves zeroes, and the used length counts them",
    family="failing reads",
)
def failing_read_zero_fills_and_counts(
    original: Original, block: Block, request: Request
) -> Status:
    try:
        status = Status(original(block, request))
    except OSError:
        status = Status.IOERR
    if status is not Status.OK:
        for view in request.area():
            view[:] = bytes(len(view))
        request.filled(request.room)
    return status


@whim(
    Block.read,
    text="a read that fails leaves a pattern, and the used length counts it",
    family="failing reads",
)
def failing_read_leaves_a_pattern(original: Original, block: Block, request: Request) -> Status:
    try:
        status = Status(original(block, request))
    except OSError:
        status = Status.IOERR
    if status is not Status.OK:
        for view in request.area():
            view[:] = b"\x5a" * len(view)
        request.filled(request.room)
    return status


@whim(Storage.write, text="every write is committed at once", family="commit")
def commits_at_once(
    original: Original, storage: Storage, sector: int, views: list[memoryview]
) -> None:
    original(storage, sector, views)
    storage.flush()


@whim(Block.discard, text="a discard changes nothing", family="what a discard does")
def discard_does_nothing(original: Original, block: Block, request: Request) -> Status:
    return block.each_segment(
        request,
        known=0,
        most=block.fields()["max_discard_sectors"],
        act=lambda sector, count, flags: block.storage._fail("discard", sector, count=count),
    )


@whim(
    Block.discard,
    text="discarded sectors hold a pattern",
    family="what a discard does",
)
def discard_leaves_a_pattern(original: Original, block: Block, request: Request) -> Status:
    pattern = memoryview(b"\xd1" * SECTOR)

    def act(sector: int, count: int, flags: int) -> None:
        block.storage._fail("discard", sector, count=count)
        for at in range(sector, sector + min(count, 4096)):
            block.storage._write(at, [pattern])

    return block.each_segment(request, known=0, most=block.fields()["max_discard_sectors"], act=act)


@whim(Block.zero, text="a write of zeroes that may unmap does not", family="unmap")
def zeroes_are_written(
    original: Original, block: Block, sector: int, count: int, flags: int
) -> None:
    original(block, sector, count, flags & ~SEGMENT_UNMAP)


@also("zeroes-are-written", Block.fields)
def _says_so(original: Original, block: Block) -> dict[str, int]:
    return {**original(block), "write_zeroes_may_unmap": 0}


@whim(
    Storage.deallocate,
    text="sectors are deallocated in pieces of 8, and what is left over is zeroed",
    family="unmap",
)
def deallocates_coarsely(
    original: Original, storage: Storage, on: Operation, sector: int, count: int
) -> None:
    first, last = -(-sector // 8) * 8, (sector + count) // 8 * 8
    if first >= last:
        storage._fail(on, sector, count=count)
        storage._zero(sector, count)
        return
    original(storage, on, first, last - first)
    storage._zero(sector, first - sector)
    storage._zero(last, sector + count - last)


@whim(
    Block.each_segment,
    text="a discard or write of zeroes that cannot be done ends with UNSUPP",
    family="segments that cannot be",
)
def bad_segments_unsupported(
    original: Original, block: Block, request: Request, known: int, most: int, act: object
) -> Status:
    data = b"".join(request.data())
    if data and len(data) % SEGMENT.size and not block.spec.read_only:
        return Status.UNSUPP
    return Status(original(block, request, known=known, most=most, act=act))
