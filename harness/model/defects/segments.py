"""Defects of requests that consist of segments: discard, write zeroes, secure erase."""

from __future__ import annotations

from collections.abc import Callable

from harness.diskspec import Operation
from harness.model.block import Block
from harness.model.defects.registry import Original, defect
from harness.model.request import Request
from harness.model.storage import Storage
from harness.virtio.blk import SEGMENT, SEGMENT_UNMAP, Status

Act = Callable[[int, int, int], None]


@defect(Block.each_segment, "5.2.6.2-D-04", text="unknown flags of a segment are ignored")
def unknown_segment_flags_ignored(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    return Status(original(block, request, ~SEGMENT_UNMAP & 0xFFFF_FFFF | known, most, act))


@defect(
    Block.each_segment,
    "5.2.6.2-D-04",
    text="bit 31 of a segment's flags is not checked",
)
def top_segment_flag_ignored(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    return Status(original(block, request, known | 1 << 31, most, act))


@defect(
    Block.each_segment,
    "5.2.6.2-D-04",
    text="only the flags of a request's first segment are checked",
)
def flags_of_later_segments_ignored(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    first = b"".join(request.data())[: SEGMENT.size]
    several = request.sent > SEGMENT.size and not SEGMENT.unpack(first)[2] & ~known
    return Status(original(block, request, 0xFFFF_FFFF if several else known, most, act))


@defect(Block.each_segment, "5.2.6.2-D-04", text="unknown flags of a segment end in IOERR")
def unknown_segment_flags_are_ioerr(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    status = Status(original(block, request, known, most, act))
    return Status.IOERR if status is Status.UNSUPP and known else status


@defect(Block.discard, "5.2.6.2-D-05", text="discard accepts the unmap flag")
def unmap_taken_by_discard(original: Original, block: Block, request: Request) -> Status:
    return block.each_segment(
        request,
        SEGMENT_UNMAP,
        block.fields()["max_discard_sectors"],
        lambda sector, count, flags: block.storage.deallocate("discard", sector, count),
    )


@defect(Block.zero, "5.2.6.2-D-08", text="write zeroes with unmap does nothing")
def unmapped_sectors_keep_their_data(
    original: Original, block: Block, sector: int, count: int, flags: int
) -> None:
    if not flags & SEGMENT_UNMAP:
        original(block, sector, count, flags)


@defect(Block.zero, "5.2.6.2-D-08", text="write zeroes leaves out sectors that do not fill a page")
def zeroes_in_whole_pages(
    original: Original, block: Block, sector: int, count: int, flags: int
) -> None:
    first, end = -(-sector // 8) * 8, (sector + count) // 8 * 8
    if first < end:
        original(block, first, end - first, flags)


@defect(
    Storage.deallocate,
    "5.2.6-P-01",
    text="discard deallocates whole pages, beyond its segment",
)
def discard_rounded_outwards(
    original: Original, storage: Storage, on: Operation, sector: int, count: int
) -> None:
    first = sector // 64 * 64 if on == "discard" else sector
    original(storage, on, first, sector + count - first)


@defect(
    Block.each_segment,
    "5.2.5-P-08",
    "5.2.5-P-07",
    text="a request with too many segments is served for the first segments",
)
def surplus_segments_dropped(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    room = 16 * SEGMENT.size
    if request.sent > room:
        for sector, count, flags in SEGMENT.iter_unpack(b"".join(request.data())[:room]):
            act(sector, count, flags)
        return Status.OK
    return Status(original(block, request, known, most, act))


@defect(
    Block.each_segment,
    "5.2.5-P-07",
    text="a segment may have twice as many sectors as the limit",
)
def segment_limit_doubled(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    return Status(original(block, request, known, 2 * most, act))


@defect(
    Block.each_segment,
    "5.2.5-P-06",
    text="a segment has to be aligned to 8 sectors",
)
def segments_have_to_be_aligned(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    def aligned(sector: int, count: int, flags: int) -> None:
        if sector % 8:
            raise OSError("not aligned")
        act(sector, count, flags)

    return Status(original(block, request, known, most, aligned))


@defect(
    Block.each_segment,
    "5.2.5-P-09",
    text="a read-only disk answers a discard with OK",
)
def read_only_discard_succeeds(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    return Status.OK if block.read_only() else Status(original(block, request, known, most, act))


@defect(
    Block.secure_erase,
    "5.2.6-P-09",
    text="secure erase erases nothing",
)
def secure_erase_does_nothing(original: Original, block: Block, request: Request) -> Status:
    return block.each_segment(
        request, 0, block.fields()["max_secure_erase_sectors"], lambda *segment: None
    )


@defect(Block.each_segment, "5.2.5-P-07", text="a segment of 2 GiB or more fails")
def segment_of_2_gib_fails(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    return Status(original(block, request, known, min(most, (1 << 22) - 1), act))
