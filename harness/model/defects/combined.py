"""Defects that show only with two errors in a request, or with many requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.diskspec import SECTOR
from harness.model.block import MAX_SEGMENTS, Block
from harness.model.defects.registry import Original, defect
from harness.model.queue import Job, Queue
from harness.model.request import Request
from harness.model.ring import Chain, Ring
from harness.model.storage import Storage
from harness.virtio.blk import SEGMENT, RequestType, Status

Act = Callable[[int, int, int], None]

# --- two errors, of which a statement names the status of one


def _segments(request: Request) -> list[tuple[int, int, int]]:
    data = b"".join(request.data())
    return list(SEGMENT.iter_unpack(data)) if len(data) % SEGMENT.size == 0 else []


@defect(
    Block.each_segment,
    "5.2.6.2-D-04",
    "5.2.6.2-D-05",
    text="the range of a segment is looked at before its flags",
)
def range_before_flags(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    for sector, count, _ in _segments(request):
        if count > most or not block.within(sector, count):
            return Status.IOERR
    return Status(original(block, request, known=known, most=most, act=act))


@defect(
    Block.each_segment,
    "5.2.6.2-D-04",
    text="the number of segments is looked at before their flags",
)
def number_before_flags(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    if len(_segments(request)) > MAX_SEGMENTS:
        return Status.IOERR
    return Status(original(block, request, known=known, most=most, act=act))


@defect(
    Block.each_segment,
    "5.2.6.2-D-04",
    text="a read-only disk answers IOERR before it looks at flags",
)
def read_only_before_flags(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    if block.read_only():
        return Status.IOERR
    return Status(original(block, request, known=known, most=most, act=act))


@defect(
    Block.each_segment,
    "5.2.6.2-D-04",
    text="segments are done one by one: a bad range before a reserved flag ends with IOERR",
)
def segments_one_by_one(
    original: Original, block: Block, request: Request, known: int, most: int, act: Act
) -> Status:
    for sector, count, flags in _segments(request):
        if flags & ~known:
            return Status.UNSUPP
        if count > most or not block.within(sector, count):
            return Status.IOERR
    return Status(original(block, request, known=known, most=most, act=act))


@defect(
    Block.write,
    "5.2.6.2-D-03a",
    text="a read-only disk says UNSUPP to a write of no whole sectors",
)
def read_only_odd_write_unsupported(original: Original, block: Block, request: Request) -> Status:
    if block.spec.read_only and request.sent % SECTOR:
        return Status.UNSUPP
    return Status(original(block, request))


# --- many requests


@defect(Storage.write, "5.2.6-P-12", text="every 64th write changes a bit")
def every_64th_write_flipped(
    original: Original, storage: Storage, sector: int, views: Sequence[memoryview]
) -> None:
    count = vars(storage)["writes"] = vars(storage).get("writes", 0) + 1
    data = bytearray(b"".join(views))
    if count % 64 == 0 and data:
        data[-1] ^= 1
    original(storage, sector, [memoryview(data)])


@defect(Block.read, "5.2.6-P-12", text="of a device that has read 400 times, every read fails")
def reads_run_out(original: Original, block: Block, request: Request) -> Status:
    count = vars(block)["reads"] = vars(block).get("reads", 0) + 1
    return Status.IOERR if count > 400 else Status(original(block, request))


def _count_in_batch(original: Original, queue: Queue, kind: RequestType) -> None:
    """Run the queue, and let requests of a type fail after the 20th of a batch."""
    seen = 0

    def begin(ring: Ring, chain: Chain) -> None:
        nonlocal seen
        request = Request(chain)
        seen += request.type == kind
        if request.type == kind and seen > 20:
            ring.use(chain, request.end(Status.IOERR))
        else:
            Queue._begin(queue, ring, chain)

    vars(queue)["_begin"] = begin
    original(queue)
    del vars(queue)["_begin"]


@defect(Queue.run, "5.2.6-P-02", text="of more than 20 flushes in a ring, the others fail")
def full_ring_of_flushes_fails(original: Original, queue: Queue) -> None:
    _count_in_batch(original, queue, RequestType.FLUSH)


@defect(Queue.run, "5.2.6-P-40", text="of more than 20 WRITE_ZEROES in a ring, the others fail")
def full_ring_of_zeroes_fails(original: Original, queue: Queue) -> None:
    _count_in_batch(original, queue, RequestType.WRITE_ZEROES)


@defect(
    Queue.run,
    "5.2.6-P-07",
    text="of two writes in flight into one block of 4096 bytes, the first is lost",
)
def small_writes_lose_each_other(original: Original, queue: Queue) -> None:
    block = queue._block
    earlier: dict[int, tuple[int, bytearray]] = {}

    def write(request: Request) -> Status:
        if request.sent != SECTOR:
            return Block.write(block, request)
        number, before = request.sector // 8, bytearray(SECTOR)
        block.storage.read(request.sector, [memoryview(before)])
        status = Block.write(block, request)
        if number in earlier and earlier[number][0] != request.sector:
            sector, lost = earlier[number]
            block.storage.write(sector, [memoryview(lost)])
        earlier[number] = request.sector, before
        return status

    vars(block)["write"] = write
    original(queue)
    del vars(block)["write"]


@defect(
    Queue._finish,
    "5.2.6-P-12",
    text="a read in flight with a write of the same sector returns zeroes",
)
def read_beside_a_write_is_empty(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    block = queue._block
    last = vars(block).get("last_write", -1)
    if job.request.type == RequestType.OUT:
        vars(block)["last_write"] = job.request.sector
    original(queue, ring, job)
    if job.request.type == RequestType.IN and job.request.sector == last:
        for view in job.request.area():
            view[:] = bytes(len(view))


@defect(
    Block.discard,
    "5.2.6-P-12",
    text="a discard of a sector that was written since the last discard fails",
)
def discard_of_a_written_sector_fails(original: Original, block: Block, request: Request) -> Status:
    sector, *_ = SEGMENT.unpack(b"".join(request.data())[: SEGMENT.size])
    found = bytearray(SECTOR)
    block.storage.read(sector, [memoryview(found)])
    before = vars(block).setdefault("contents", {})
    changed = before.get(sector, found) != found
    before[sector] = found
    return Status.IOERR if changed else Status(original(block, request))


# --- failed requests, and several queues


@defect(Block.execute, "5.2.6-P-12", text="after 500 failed requests every request fails")
def failures_run_out(original: Original, block: Block, request: Request) -> Status:
    count = vars(block).get("failures", 0)
    if count > 500:
        return Status.IOERR
    status = Status(original(block, request))
    vars(block)["failures"] = count + (status != Status.OK)
    return status


@defect(
    Queue._finish,
    "5.2.2-P-01",
    text="a write goes to the place of the last request on another queue, if that was a read",
)
def queues_share_a_position(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    block, request = queue._block, job.request
    last, sector = vars(block).get("position", (queue, 0))
    vars(block)["position"] = queue, request.sector
    moved = last is not queue and request.type == RequestType.OUT and sector and not job.done
    if moved and vars(block).get("kind") == RequestType.IN:
        request.sector = sector
    vars(block)["kind"] = request.type
    original(queue, ring, job)
