"""Defects that show after a reset, or in large requests (virtio 2.4, 5.2.3)."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from harness.diskspec import SECTOR
from harness.model.block import Block
from harness.model.defects.registry import Original, defect, during, on_pci
from harness.model.device import Device
from harness.model.pci.function import Function
from harness.model.pci.registers import Register
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


@on_pci(
    Function._reset_registers,
    "4.1.4.3-P-01",
    text="the largest queue has half of the descriptors that the device was made with",
)
def half_of_the_largest_queue(original: Original, function: Function) -> None:
    original(function)
    for queue in function.device.queues:
        queue.size = max(queue.size // 2, 1)


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


# --- initial values


@on_pci(Function._reset_registers, "4.1.4.5-P-01", text="a reset leaves ISR status as it is")
def reset_keeps_isr(original: Original, function: Function) -> None:
    isr = function.interrupts.isr
    original(function)
    function.interrupts.isr = isr


@on_pci(Function._power_on, "4.1.4.5-P-01", text="ISR status is 1 in a new device")
def isr_of_a_new_device(original: Original, function: Function) -> None:
    original(function)
    function.interrupts.isr = 1


@on_pci(
    Function._power_on, "4.1.5.1.2.1-D-07", text="all events are mapped to vector 0 in a new device"
)
def vectors_of_a_new_device(original: Original, function: Function) -> None:
    original(function)
    function._config_vector = 0
    for registers in function._queue_registers:
        registers.vector = 0


@on_pci(Function._power_on, "4.1.4.3.1-D-08", text="the queues of a new device are enabled")
def queues_of_a_new_device(original: Original, function: Function) -> None:
    original(function)
    for queue in function.device.queues:
        queue.enabled = True


@on_pci(Function._power_on, "2.4-P-02", text="device_status of a new device is 1")
def status_of_a_new_device(original: Original, function: Function) -> None:
    original(function)
    function.device.status = 1


@on_pci(Function._common_registers, "4.1.4.3-P-02", text="num_queues counts a virtqueue too few")
def num_queues_of_the_function(original: Original, function: Function) -> dict[str, Register]:
    registers: dict[str, Register] = original(function)
    there = registers["num_queues"]
    registers["num_queues"] = replace(there, read=lambda: there.read() - 1)
    return registers


@on_pci(Function._common_registers, "4.1.4.3-P-03", text="queue_select always reads 0")
def queue_select_reads_0(original: Original, function: Function) -> dict[str, Register]:
    registers: dict[str, Register] = original(function)
    registers["queue_select"] = replace(registers["queue_select"], read=lambda: 0)
    return registers


# --- requests in flight


def _begin_and_remember(queue: Queue, ring: Ring, chain: Chain) -> None:
    vars(queue)["last"] = Request(chain)
    Queue._begin(queue, ring, chain)


def _again_after_a_stop(original: Original, queue: Queue, kind: RequestType) -> None:
    """Stop a queue, and execute its last request, if it is of this type, again 10 ms later."""
    last: Request | None = vars(queue).pop("last", None)
    vars(queue)["_begin"] = partial(_begin_and_remember, queue)
    original(queue)
    if last and last.type == kind:
        queue._loop.at(time.monotonic() + 0.01, partial(_execute, queue, last))


def _execute(queue: Queue, request: Request) -> None:
    queue._block.execute(request)


@defect(Queue.stop, "2.4.1-D-02", text="the last read is done again 10 ms after a reset")
def last_read_again_after_a_reset(original: Original, queue: Queue) -> None:
    _again_after_a_stop(original, queue, RequestType.IN)


@defect(Queue.stop, "2.4.1-D-02", text="the last write is done again 10 ms after a reset")
def last_write_again_after_a_reset(original: Original, queue: Queue) -> None:
    _again_after_a_stop(original, queue, RequestType.OUT)
