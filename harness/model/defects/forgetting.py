"""Defects that show after a reset, or in large requests (virtio 2.4, 5.2.3)."""

from __future__ import annotations

from harness.diskspec import SECTOR
from harness.model.block import Block
from harness.model.defects.registry import Original, defect, during, on_pci
from harness.model.device import Device
from harness.model.queue import Queue
from harness.model.request import Request
from harness.model.ring import Chain, Ring
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature

# --- what a reset forgets


@defect(Queue.make_ring, "2.4-P-01", text="a queue that once had EVENT_IDX keeps it after a reset")
def reset_keeps_event_idx(original: Original, queue: Queue, event_idx: bool) -> Ring:
    kept = vars(queue)["kept"] = vars(queue).get("kept", False) or event_idx
    ring: Ring = original(queue, kept)
    return ring


@defect(Queue.make_ring, "2.4-P-01", text="a queue that once was packed stays packed after a reset")
def reset_keeps_packed(original: Original, queue: Queue, event_idx: bool) -> Ring:
    packed = queue._block.features & Feature.RING_PACKED.mask
    kept = vars(queue)["kept"] = vars(queue).get("kept", 0) | packed
    with during(queue._block, features=queue._block.features | kept):
        ring: Ring = original(queue, event_idx)
    return ring


@on_pci(
    Device.set_queue_size,
    "4.1.4.3-P-01",
    text="after a reset a queue has the size that the driver chose first, and shows the largest",
)
def reset_keeps_the_first_size(original: Original, device: Device, queue: Queue, size: int) -> None:
    driver_chose = device.status & 8 and not device.status & 4
    if driver_chose:
        size = vars(queue).setdefault("first", size)
    original(device, queue, size)


# --- large requests


@defect(Block.execute, "5.2.4-P-06", text="requests of more than 1 MiB fail")
def large_requests_fail(original: Original, block: Block, request: Request) -> Status:
    if max(request.sent, request.room) > 2048 * SECTOR:
        return Status.IOERR
    return Status(original(block, request))


@defect(
    Block.execute, "5.2.4-P-06", text="without SEG_MAX accepted, requests of 128 KiB or more fail"
)
def large_requests_fail_without_seg_max(
    original: Original, block: Block, request: Request
) -> Status:
    large = max(request.sent, request.room) >= 256 * SECTOR
    if large and not block.has(Feature.BLK_SEG_MAX):
        return Status.IOERR
    return Status(original(block, request))


@defect(
    Request.__init__,
    "5.2.3-P-04",
    text="of a read with many segments only the first 100 are filled, and its status",
)
def segments_beyond_100_dropped(original: Original, request: Request, chain: Chain) -> None:
    original(request, chain)
    if request.type == RequestType.IN and len(chain.writable) > 101:
        request._writable = [*chain.writable[:100], chain.writable[-1]]
        request.room = sum(map(len, chain.writable[:100]))
