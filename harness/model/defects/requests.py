"""Defects of requests and their status (virtio 5.2.6)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from harness.diskspec import SECTOR, Fault, Operation
from harness.model.block import SERIAL, Block
from harness.model.defects.registry import LEGACY_TARGET, Original, defect
from harness.model.memory import pieces
from harness.model.queue import Queue
from harness.model.request import Request
from harness.model.ring import Chain, Ring
from harness.model.storage import Storage
from harness.virtio.blk import (
    LIFETIME,
    REQUEST_HEADER,
    SCSI_RESULT,
    SCSI_SENSE,
    SCSI_TYPES,
    RequestType,
    Status,
)

Handlers = dict[RequestType, Callable[[Request], Status]]
ZONE_REQUESTS = {kind for kind in RequestType if kind.name.startswith("ZONE_")}


@defect(
    Request.__init__,
    "5.2.6-P-41",
    text="the second word of a request's header is taken for the high half of its sector",
)
def reserved_word_moves_the_request(original: Original, request: Request, chain: Chain) -> None:
    original(request, chain)
    if request.type in (RequestType.IN, RequestType.OUT):
        header = b"".join(pieces(chain.readable, 0, REQUEST_HEADER.size))
        request.sector |= REQUEST_HEADER.unpack(header)[1] << 32


# --- read-only


@defect(Block.write, "5.2.6.2-D-03a", text="a read-only disk answers an empty write with OK")
def read_only_write_of_nothing_succeeds(
    original: Original, block: Block, request: Request
) -> Status:
    return Status(original(block, request)) if request.sent else Status.OK


@defect(Block.write, "5.2.6.2-D-03a", text="a read-only disk answers a write with UNSUPP")
def read_only_write_unsupported(original: Original, block: Block, request: Request) -> Status:
    return Status.UNSUPP if block.spec.read_only else Status(original(block, request))


@defect(
    Block.write, "5.2.6.2-D-03b", text="a read-only disk answers a write with IOERR, but writes"
)
def read_only_written(original: Original, block: Block, request: Request) -> Status:
    if block.spec.read_only and request.sent:
        fd = os.open(f"/proc/self/fd/{block.storage._fd}", os.O_RDWR)
        os.pwritev(fd, request.data(), request.sector * SECTOR)
        os.close(fd)
    return Status(original(block, request))


@defect(
    Block.handlers,
    "5.2.6-P-10",
    text="requests of features that are not offered are served",
)
def requests_not_offered_served(original: Original, block: Block) -> Handlers:
    return {
        RequestType.DISCARD: block.discard,
        RequestType.WRITE_ZEROES: block.write_zeroes,
        RequestType.SECURE_ERASE: block.secure_erase,
        **original(block),
    }


@defect(
    Block.flush,
    "5.2.6-P-02",
    "5.2.6-P-08",
    text="a flush ends with UNSUPP",
)
def flush_unsupported(original: Original, block: Block, request: Request) -> Status:
    return Status.UNSUPP


@defect(Block.write, "5.2.6-P-08", text="of a write of no whole sectors the whole ones are written")
def whole_sectors_of_an_odd_write(original: Original, block: Block, request: Request) -> Status:
    if request.sent % SECTOR:
        request.sent -= request.sent % SECTOR
        original(block, request)
        return Status.IOERR
    return Status(original(block, request))


# --- durability


@defect(
    Block.settle,
    "5.2.6.2-D-11",
    text="a write that has to be stable on completion is not committed before it completes",
)
def stable_write_not_committed(original: Original, block: Block, forced: bool = False) -> None:
    if forced:
        original(block, forced)


@defect(Storage.flush, "5.2.6.2-D-11", text="a flush commits nothing")
def flush_commits_nothing(original: Original, storage: Storage) -> None:
    storage._dirty = False


# --- other types of request


@defect(Block.execute, "5.2.6.2-D-16", text="without ZONED, zone requests end with IOERR")
def zone_request_is_ioerr(original: Original, block: Block, request: Request) -> Status:
    if not block.spec.zoned and request.type in ZONE_REQUESTS:
        return Status.IOERR
    return Status(original(block, request))


@defect(Block.execute, "5.2.6.2-D-16", text="without ZONED, a reset of all zones ends with OK")
def reset_all_without_zones(original: Original, block: Block, request: Request) -> Status:
    if not block.spec.zoned and request.type == RequestType.ZONE_RESET_ALL:
        return Status.OK
    return Status(original(block, request))


@defect(
    Block.execute,
    "5.2.6-P-10",
    text="a request of unknown type ends with IOERR",
)
def unknown_type_is_ioerr(original: Original, block: Block, request: Request) -> Status:
    status = Status(original(block, request))
    known = request.type in RequestType._value2member_map_
    return Status.IOERR if status is Status.UNSUPP and not known else status


@defect(
    Block.execute,
    "5.2.6-P-10",
    text="the high bit of a request's type is ignored",
)
def barrier_bit_ignored(original: Original, block: Block, request: Request) -> Status:
    if request.type is not None:
        request.type &= ~(1 << 31)
    return Status(original(block, request))


@defect(
    Block.execute,
    "5.2.6-P-10",
    text="legacy SCSI commands end with OK",
)
def scsi_command_succeeds(original: Original, block: Block, request: Request) -> Status:
    if request.type in SCSI_TYPES:
        return Status.OK
    return Status(original(block, request))


@defect(
    Block.execute,
    "5.2.6.3-P-01",
    text="a SCSI command of the type for output ends with UNSUPP",
    target=LEGACY_TARGET,
)
def scsi_out_unsupported(original: Original, block: Block, request: Request) -> Status:
    if block.spec.scsi and request.type == SCSI_TYPES[1]:
        return Status.UNSUPP
    return Status(original(block, request))


def _with_result(block: Block, request: Request, original: Original, **changed: int) -> Status:
    """Execute a SCSI command, with other values in the fields of its result."""
    names = ("errors", "data_len", "sense_len", "residual")
    status = Status(original(block, request))
    at = request.room - SCSI_RESULT.size
    found = b"".join(pieces(request.area(), at, request.room))
    values = dict(zip(names, SCSI_RESULT.unpack(found), strict=True)) | changed
    request.write(at, SCSI_RESULT.pack(*values.values()))
    return status


@defect(
    Block.scsi,
    "5.2.6.3-P-02",
    text="sense_len of a SCSI command is the length of its buffer",
    target=LEGACY_TARGET,
)
def scsi_sense_len_of_the_buffer(original: Original, block: Block, request: Request) -> Status:
    return _with_result(block, request, original, sense_len=SCSI_SENSE)


@defect(
    Block.scsi,
    "5.2.6.3-P-03",
    text="residual of a SCSI command is always 0",
    target=LEGACY_TARGET,
)
def scsi_residual_is_zero(original: Original, block: Block, request: Request) -> Status:
    return _with_result(block, request, original, residual=0)


@defect(
    Block.get_id,
    "5.2.6-P-03",
    text="the id string is padded with spaces",
)
def id_padded_with_blanks(original: Original, block: Block, request: Request) -> Status:
    status = original(block, request)
    for view in request.area():
        view[:] = bytes(view).replace(b"\0", b" ")
    return Status(status)


@defect(
    Block.get_id,
    "5.2.6-P-03",
    text="the last byte of the id string is always NUL",
)
def id_without_its_last_byte(original: Original, block: Block, request: Request) -> Status:
    status = original(block, request)
    for view in request.area()[-1:]:
        view[-1] = 0
    return Status(status)


@defect(
    Block.get_id,
    "5.2.6-P-03",
    text="the id string is repeated if there is room after it",
)
def id_repeated(original: Original, block: Block, request: Request) -> Status:
    status = original(block, request)
    if request.room < len(SERIAL) + 10:
        request.write(0, SERIAL.encode()[: request.room])
    return Status(status)


@defect(Block.get_lifetime, "5.2.6.2-D-15", text="pre_eol_info is a reserved value")
def lifetime_reserved(original: Original, block: Block, request: Request) -> Status:
    request.write(0, LIFETIME.pack(4, 12, 0xFFFF))
    return Status.OK


@defect(
    Block.get_lifetime,
    "5.2.6-P-04",
    text="the two lifetime estimates are swapped",
)
def lifetime_estimates_swapped(original: Original, block: Block, request: Request) -> Status:
    assert block.spec.lifetime
    life, slc, mlc = block.spec.lifetime
    request.write(0, LIFETIME.pack(life, mlc, slc))
    return Status.OK


# --- reads and writes


@defect(
    Block.within,
    "5.2.4-P-06",
    text="a request that starts on the disk may go beyond the disk's end",
)
def end_of_disk_unchecked(original: Original, block: Block, sector: int, count: int) -> bool:
    return bool(original(block, sector, min(count, 1)))


@defect(
    Block.execute,
    "5.2.4-P-06",
    text="the byte offset of a request overflows 64 bits",
)
def sector_of_55_bits(original: Original, block: Block, request: Request) -> Status:
    request.sector &= (1 << 55) - 1
    return Status(original(block, request))


@defect(
    Block.within,
    "5.2.6-P-05",
    text="only requests whose sector fits into 32 bits are served",
)
def sector_of_32_bits(original: Original, block: Block, sector: int, count: int) -> bool:
    return sector >> 32 == 0 and bool(original(block, sector, count))


@defect(
    Storage.read,
    "5.2.6-P-08",
    text="a read that fails ends with OK",
)
def read_error_hidden(
    original: Original, storage: Storage, sector: int, views: Sequence[memoryview]
) -> None:
    _hidden(original, storage, sector, views)


@defect(
    Storage.write,
    "5.2.6-P-08",
    text="a write that fails ends with OK",
)
def write_error_hidden(
    original: Original, storage: Storage, sector: int, views: Sequence[memoryview]
) -> None:
    _hidden(original, storage, sector, views)


@defect(
    Storage.flush,
    "5.2.6-P-08",
    text="a flush that fails ends with OK",
)
def flush_error_hidden(original: Original, storage: Storage) -> None:
    _hidden(original, storage)


@defect(
    Storage.deallocate,
    "5.2.6-P-08",
    text="a discard that fails ends with OK",
)
def discard_error_hidden(
    original: Original, storage: Storage, on: Operation, sector: int, count: int
) -> None:
    _hidden(original, storage, on, sector, count)


@defect(
    Storage.zero,
    "5.2.6-P-08",
    text="a write of zeroes that fails ends with OK",
)
def zeroing_error_hidden(original: Original, storage: Storage, sector: int, count: int) -> None:
    _hidden(original, storage, sector, count)


def _hidden(original: Original, *arguments: object) -> None:
    with suppress(OSError):
        original(*arguments)


@defect(
    Storage._fail,
    "5.2.6-P-08",
    text="once an operation has failed, all later ones fail",
)
def failure_for_good(
    original: Original,
    storage: Storage,
    on: Operation,
    sector: int = 0,
    views: Sequence[memoryview] = (),
    count: int = 0,
) -> None:
    try:
        original(storage, on, sector, views, count)
    except OSError:
        storage._faults = [Fault(on)]
        raise


@defect(
    Storage.write,
    "5.2.6-P-07",
    text="a write changes one sector beyond its data",
)
def write_of_a_sector_too_many(
    original: Original, storage: Storage, sector: int, views: Sequence[memoryview]
) -> None:
    original(storage, sector, [*views, memoryview(bytes(SECTOR))])


@defect(
    Block.read,
    "5.2.6-P-08",
    text="a read whose length is not a multiple of the sector size ends with OK",
)
def odd_read_succeeds(original: Original, block: Block, request: Request) -> Status:
    return Status.OK if request.room % SECTOR else Status(original(block, request))


@defect(
    Block.read,
    "5.2.3-P-05",
    text="an element of more than 64 KiB fails, below size_max",
)
def size_max_not_served(original: Original, block: Block, request: Request) -> Status:
    longest = max(map(len, request._writable))
    return Status(original(block, request)) if longest <= 1 << 16 else Status.IOERR


@defect(
    Storage.read,
    "5.2.6-P-06",
    text="a read gives zeroes after its first 16 KiB",
)
def long_reads_cut_short(
    original: Original, storage: Storage, sector: int, views: Sequence[memoryview]
) -> None:
    original(storage, sector, views)
    at = 0
    for view in views:
        keep = max(min(16384 - at, len(view)), 0)
        view[keep:] = bytes(len(view) - keep)
        at += len(view)


@defect(
    Request.end,
    "5.2.6-P-12",
    "2.7.8.2-D-02",
    text="the used length of a write includes the data",
)
def used_length_of_a_write_counts_its_data(
    original: Original, request: Request, status: Status
) -> int:
    length = int(original(request, status))
    return length + request.sent if request.type == RequestType.OUT else length


@defect(
    Storage.__init__,
    "5.2.6-P-11",
    text="all disks share the contents of the first disk",
)
def disks_share_their_storage(
    original: Original, storage: Storage, path: str | None, *more: object, **named: object
) -> None:
    original(storage, path, *more, **named)
    if path is not None and FIRST and FIRST[0]._fd >= 0:
        os.dup2(FIRST[0]._fd, storage._fd)
    elif path is not None:
        FIRST[:] = [storage]


FIRST: list[Storage] = []
"""The oldest disk of this process, if any."""


# --- forced unit access (draft)


@defect(Block.forced, "5.2.6-P-42", text="the flag for forced unit access is ignored")
def forced_unit_access_ignored(original: Original, block: Block, request: Request) -> bool:
    return False


@defect(
    Block.write, "5.2.6-P-42", text="a write with forced unit access is committed and not written"
)
def forced_write_is_lost(original: Original, block: Block, request: Request) -> Status:
    if block.forced(request):
        block.storage.flush()
        return Status.OK
    return Status(original(block, request))


# --- properties that the failing requests of many tests share


@defect(
    Block.execute,
    "5.2.6-P-06",
    "5.2.6-P-07",
    text="a read or write of buffers that are not all aligned to 512 fails",
)
def unaligned_requests_fail(original: Original, block: Block, request: Request) -> Status:
    data = {RequestType.IN: request.area, RequestType.OUT: request.data}
    views = data[RequestType(request.type)]() if request.type in data else []
    return Status(original(block, request)) if _aligned(views) else Status.IOERR


def _aligned(views: Sequence[memoryview]) -> bool:
    """Return whether all views begin at a multiple of 512, as their addresses on the bus do.

    The model maps the driver's memory by pages, so the last 12 bits of both are equal.
    """
    return not any(_address(view) % SECTOR for view in views if len(view))


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@defect(Block.get_id, "5.2.6-P-03", text="the device dies at GET_ID", unusable=True)
def dies_at_get_id(original: Original, block: Block, request: Request) -> Status:
    os._exit(1)


@defect(Request.end, "2.7.8.2-D-02", text="the used length is always one too large")
def used_length_one_too_large(original: Original, request: Request, status: Status) -> int:
    return int(original(request, status)) + 1


@defect(Queue._begin, "5.2.4-P-06", text="a request of more than 1 MiB is never used")
def long_requests_never_end(
    original: Original, queue: Queue, ring: Ring, chain: Chain, *more: object
) -> None:
    request = Request(chain)
    if max(request.sent, request.room) <= 1 << 20:
        original(queue, ring, chain, *more)
