"""Defects that show only in some of the ways in which a driver may send a request."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from harness.diskspec import SECTOR
from harness.model.block import Block
from harness.model.defects.registry import Original, defect, on_pci
from harness.model.device import Device
from harness.model.memory import BrokenError, Memory
from harness.model.packed import PackedRing
from harness.model.queue import Job, Queue
from harness.model.request import Request
from harness.model.ring import Addresses, Chain, Ring
from harness.model.split import SplitRing
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature
from harness.virtio.ring import (
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    PACKED_DESC,
)

Act = Callable[[int, int, int], None]

# --- some types of request, on some queues or disks


def _on_other_queues(device: Device, kind: RequestType, status: Status) -> None:
    """Make requests of a type end with this status on all queues but the first."""

    def finish(queue: Queue, ring: Ring, job: Job) -> None:
        if job.request.type == kind and not job.done:
            job.length, job.done = job.request.end(status), True
        Queue._finish(queue, ring, job)

    for queue in device.queues[1:]:
        vars(queue)["_finish"] = partial(finish, queue)


@defect(Device.__init__, "5.2.6-P-02", text="FLUSH fails on all queues but the first")
def flush_fails_on_other_queues(
    original: Original, device: Device, *arguments: object, **named: object
) -> None:
    original(device, *arguments, **named)
    _on_other_queues(device, RequestType.FLUSH, Status.IOERR)


@defect(
    Device.__init__,
    "5.2.6-P-03",
    text="on all queues but the first GET_ID is OK and writes nothing",
)
def id_missing_on_other_queues(
    original: Original, device: Device, *arguments: object, **named: object
) -> None:
    original(device, *arguments, **named)
    _on_other_queues(device, RequestType.GET_ID, Status.OK)


@defect(Block.flush, "5.2.6-P-02", text="FLUSH fails on a read-only disk")
def flush_fails_on_a_read_only_disk(original: Original, block: Block, request: Request) -> Status:
    return Status.IOERR if block.spec.read_only else Status(original(block, request))


@defect(Block.get_id, "5.2.6-P-03", text="GET_ID fails on a read-only disk")
def id_fails_on_a_read_only_disk(original: Original, block: Block, request: Request) -> Status:
    return Status.UNSUPP if block.spec.read_only else Status(original(block, request))


@defect(Block.read, "5.2.6-P-06", text="without BLK_SIZE every read fails")
def reads_fail_without_blk_size(original: Original, block: Block, request: Request) -> Status:
    if not block.has(Feature.BLK_BLK_SIZE):
        return Status.IOERR
    return Status(original(block, request))


@defect(Block.write, "5.2.6-P-07", text="without TOPOLOGY every write fails")
def writes_fail_without_topology(original: Original, block: Block, request: Request) -> Status:
    if not block.has(Feature.BLK_TOPOLOGY):
        return Status.IOERR
    return Status(original(block, request))


@defect(Block.write_zeroes, "5.2.6-P-40", text="without FLUSH every WRITE_ZEROES fails")
def zeroes_fail_without_flush(original: Original, block: Block, request: Request) -> Status:
    if not block.has(Feature.BLK_FLUSH):
        return Status.IOERR
    return Status(original(block, request))


@defect(Block.discard, "5.2.6-P-01", text="DISCARD counts in blocks, not in sectors")
def discard_counts_in_blocks(original: Original, block: Block, request: Request) -> Status:
    times = block.block_size // SECTOR
    return block.each_segment(
        request,
        known=0,
        most=block.fields()["max_discard_sectors"],
        act=lambda sector, count, flags: block.storage.deallocate(
            "discard", sector, min(count * times, block.capacity - sector)
        ),
    )


@defect(Block.zero, "5.2.6-P-40", text="WRITE_ZEROES counts in blocks, not in sectors")
def zeroes_count_in_blocks(
    original: Original, block: Block, sector: int, count: int, flags: int
) -> None:
    times = block.block_size // SECTOR
    original(block, sector, min(count * times, block.capacity - sector), flags)


# --- addresses


@defect(
    Chain.add,
    "2.7.4-P-02",
    "2.8.5-P-01",
    text="buffers of two bytes or more have to lie at an even address",
)
def buffers_have_to_be_even(
    original: Original, chain: Chain, memory: Memory, address: int, length: int, flags: int
) -> None:
    if length > 1 and address % 2:
        raise BrokenError(f"a buffer of {length} bytes at {address:#x}")
    original(chain, memory, address, length, flags)


@defect(
    Chain.add,
    "2.7.4-P-02",
    "2.8.5-P-01",
    text="of a buffer that crosses a page, what lies after the page is taken from the page's start",
)
def buffers_wrap_at_a_page(
    original: Original, chain: Chain, memory: Memory, address: int, length: int, flags: int
) -> None:
    room = 4096 - address % 4096
    short = min(length, room)
    original(chain, memory, address, short, flags)
    if length > short and length - short <= 4096:
        original(chain, memory, address - address % 4096, length - short, flags)
    elif length > short:
        original(chain, memory, address + short, length - short, flags)


@defect(
    SplitRing._read_table,
    "2.7.5.3-P-02",
    text="split: indirect tables have to lie on 16 bytes",
)
def split_tables_on_16_bytes(
    original: Original, ring: SplitRing, chain: Chain, table: memoryview
) -> None:
    for slot in range(ring.size):
        address, length, flags, _ = DESC.unpack_from(ring._desc, DESC_SIZE * slot)
        if flags & DESC_F_INDIRECT and address % 16:
            raise BrokenError(f"an indirect table of {length} bytes at {address:#x}")
    original(ring, chain, table)


@defect(
    PackedRing._read_chain,
    "2.8.7-P-02",
    text="packed: indirect tables have to lie on 16 bytes",
)
def packed_tables_on_16_bytes(original: Original, ring: PackedRing, chain: Chain) -> None:
    at = DESC_SIZE * (chain.position % ring.size)
    address, length, _, flags = PACKED_DESC.unpack_from(ring._ring, at)
    if flags & DESC_F_INDIRECT and address % 16:
        raise BrokenError(f"an indirect table of {length} bytes at {address:#x}")
    original(ring, chain)


@defect(SplitRing.map, "2.7-P-02", text="split: the available ring has to lie on 4 bytes")
def available_ring_on_4_bytes(
    original: Original, ring: SplitRing, memory: Memory, addresses: Addresses
) -> None:
    original(ring, memory, Addresses(addresses.desc, addresses.driver & ~3, addresses.device))


@defect(SplitRing.map, "2.7-P-02", text="split: the used ring has to lie on 8 bytes")
def used_ring_on_8_bytes(
    original: Original, ring: SplitRing, memory: Memory, addresses: Addresses
) -> None:
    if addresses.device % 8:
        raise BrokenError(f"a used ring at {addresses.device:#x}")
    original(ring, memory, addresses)


@defect(PackedRing.map, "2.8-P-01", text="packed: the descriptor ring has to lie on 32 bytes")
def descriptor_ring_on_32_bytes(
    original: Original, ring: PackedRing, memory: Memory, addresses: Addresses
) -> None:
    original(ring, memory, Addresses(addresses.desc & ~31, addresses.driver, addresses.device))


# --- what a driver is free in


@defect(
    SplitRing._read_table,
    "2.7.5.3-P-01",
    text="split: an indirect table is read in its own order, whatever its links say",
)
def links_of_tables_ignored(
    original: Original, ring: SplitRing, chain: Chain, table: memoryview
) -> None:
    for address, length, flags, _ in DESC.iter_unpack(table):
        chain.add(ring._memory, address, length, flags)


@defect(
    SplitRing._read_chain,
    "2.7.5-P-01",
    text="split: a chain goes on as long as its next field is not 0, whatever the flag says",
)
def next_without_its_flag(original: Original, ring: SplitRing, chain: Chain) -> None:
    original(ring, chain)
    at = chain.id
    while True:
        _, _, flags, following = DESC.unpack_from(ring._desc, DESC_SIZE * at)
        if not flags & DESC_F_NEXT:
            break
        at = following
    if following >= ring.size:
        raise BrokenError(f"descriptor {following} of a chain in {ring.size}")


@defect(
    PackedRing._read_chain, "2.8.6-P-01", text="packed: the id of a chain is that of its first part"
)
def id_of_the_first_descriptor(original: Original, ring: PackedRing, chain: Chain) -> None:
    at = DESC_SIZE * (chain.position % ring.size)
    original(ring, chain)
    chain.id = PACKED_DESC.unpack_from(ring._ring, at)[2]


@defect(
    PackedRing._read_chain,
    "2.8.7-P-01",
    text="packed: WRITE in the descriptor of an indirect table makes the whole table writable",
)
def write_flag_of_a_table_counts(original: Original, ring: PackedRing, chain: Chain) -> None:
    at = DESC_SIZE * (chain.position % ring.size)
    _, _, _, flags = PACKED_DESC.unpack_from(ring._ring, at)
    original(ring, chain)
    if flags & DESC_F_INDIRECT and flags & DESC_F_WRITE:
        chain.writable[:0] = chain.readable
        chain.readable.clear()


# --- how a request is cut, and where it goes


@defect(
    Chain.add,
    "2.7.4.1-D-01",
    "2.8.18-D-01",
    text="writable buffers of 10 bytes at the start of a chain are dropped",
)
def small_answer_buffers_dropped(
    original: Original, chain: Chain, memory: Memory, address: int, length: int, flags: int
) -> None:
    first = not chain.writable
    original(chain, memory, address, length, flags)
    if first and chain.writable and length == 10:
        chain.writable.clear()


@defect(
    Block.execute,
    "5.2.6-P-41",
    text="the top bit of the second word of a FLUSH makes it fail",
)
def second_word_of_a_flush_counts(original: Original, block: Block, request: Request) -> Status:
    if request.type == RequestType.FLUSH and request.flags >> 31:
        return Status.IOERR
    return Status(original(block, request))


@defect(Block.zero, "5.2.6-P-40", text="WRITE_ZEROES uses 32 bits of the sector number")
def zeroes_of_32_bits(
    original: Original, block: Block, sector: int, count: int, flags: int
) -> None:
    original(block, sector & 0xFFFF_FFFF, count, flags)


@defect(Block.write, "5.2.6-P-07", text="OUT uses 32 bits of the sector number")
def writes_of_32_bits(original: Original, block: Block, request: Request) -> Status:
    sector = request.sector
    request.sector &= 0xFFFF_FFFF if sector < block.capacity else sector
    return Status(original(block, request))


@defect(
    Block.each_segment, "5.2.5-P-07", text="of a request with several segments the 2nd is left out"
)
def second_segment_left(
    original: Original, block: Block, request: Request, act: Act, **limits: int
) -> Status:
    turn = 0

    def counted(sector: int, count: int, flags: int) -> None:
        nonlocal turn
        turn += 1
        if turn != 2:
            act(sector, count, flags)

    return Status(original(block, request, act=counted, **limits))


@defect(Block.each_segment, "5.2.5-P-07", text="a segment of the whole disk is left out")
def segment_of_the_whole_disk_left(
    original: Original, block: Block, request: Request, act: Act, **limits: int
) -> Status:
    def smaller(sector: int, count: int, flags: int) -> None:
        if count < block.capacity:
            act(sector, count, flags)

    return Status(original(block, request, act=smaller, **limits))


def _last_queue_fails(queue: Queue, ring: Ring, job: Job) -> None:
    if not job.done:
        job.length, job.done = job.request.end(Status.IOERR), True
    Queue._finish(queue, ring, job)


@defect(Device.__init__, "5.2.4-P-05", text="the last of several queues does not work")
def last_queue_is_dead(
    original: Original, device: Device, *arguments: object, **named: object
) -> None:
    original(device, *arguments, **named)
    if len(device.queues) > 1:
        queue = device.queues[-1]
        vars(queue)["_finish"] = partial(_last_queue_fails, queue)


def _offers_order_platform(block: Block) -> int:
    return Block.offered(block) | Feature.ORDER_PLATFORM.mask


@defect(
    Block.__init__,
    "6.2-P-01",
    text="ORDER_PLATFORM is offered, and every read fails once it was accepted",
)
def order_platform_breaks_reads(original: Original, block: Block, *arguments: object) -> None:
    original(block, *arguments)
    vars(block)["offered"] = partial(_offers_order_platform, block)
    vars(block)["within"] = lambda sector, count: not block.has(Feature.ORDER_PLATFORM)


BORDER = 1 << 32


def _not_across(original: Original, memory: Memory, address: int, length: int) -> memoryview:
    """Refuse memory on both sides of 4 GiB."""
    if address < BORDER < address + length:
        raise BrokenError(f"{length} bytes at {address:#x} cross 4 GiB")
    return memoryview(original(memory, address, length))


@defect(Memory.bus, "2.7.4-P-02", "2.8.5-P-01", text="a buffer on both sides of 4 GiB is refused")
def buffer_across_4_gib_refused(
    original: Original, memory: Memory, address: int, length: int
) -> memoryview:
    return _not_across(original, memory, address, length)


@on_pci(Memory.user, "2.7-P-02", "2.8-P-01", text="a ring on both sides of 4 GiB is refused")
def ring_across_4_gib_refused(
    original: Original, memory: Memory, address: int, length: int
) -> memoryview:
    return _not_across(original, memory, address, length)
