"""Defects of the split virtqueue (virtio 2.7) and of the order in any virtqueue (virtio 6.2)."""

from __future__ import annotations

import time

from harness.model.defects.registry import Original, defect, during
from harness.model.device import Device
from harness.model.memory import BrokenError, size
from harness.model.queue import Job, Queue
from harness.model.request import HEADER, Request
from harness.model.ring import Chain, Ring
from harness.model.split import SplitRing
from harness.virtio.blk import Status
from harness.virtio.features import Feature
from harness.virtio.ring import DESC_F_WRITE, DESC_SIZE

MOMENT = 0.001
"""Delay in seconds, long enough for a driver that polls to notice."""


@defect(
    Queue._announce,
    text="harmless: the device checks 1 ms after a use whether the driver wants a notification",
)
def driver_asked_late(original: Original, queue: Queue, ring: Ring) -> None:
    time.sleep(MOMENT)
    original(queue, ring)


# --- framing


@defect(Request.__init__, "2.7.4.1-D-01", text="the header has to be a descriptor of its own")
def header_in_one_descriptor(original: Original, request: Request, chain: Chain) -> None:
    original(request, chain)
    if len(chain.readable[0]) != HEADER:
        request.type = None


@defect(
    Request.end,
    "2.7.4.1-D-01",
    text="the status is written to the first byte of the last descriptor",
)
def status_in_a_descriptor_of_its_own(original: Original, request: Request, status: Status) -> int:
    if len(request._writable[-1]) > 1:
        request._writable[-1][0] = status
        return 1
    return int(original(request, status))


@defect(SplitRing.use, "2.7.5.1-D-01a", text="a request's header is overwritten")
def split_readable_buffer_written(
    original: Original, ring: SplitRing, chain: Chain, length: int
) -> None:
    chain.readable[0][:1] = b"\xee"
    original(ring, chain, length)


@defect(
    SplitRing.use,
    "2.7.5.1-D-02",
    text="the length in the first descriptor of a used chain is set to 0",
)
def descriptor_written(original: Original, ring: SplitRing, chain: Chain, length: int) -> None:
    at = DESC_SIZE * chain.id + 8
    ring._desc[at : at + 4] = bytes(4)
    original(ring, chain, length)


@defect(
    SplitRing.is_table,
    "2.7.5.3.2-D-01",
    text="an indirect descriptor with the flag WRITE is treated as a buffer",
)
def indirect_write_flag_heeded(original: Original, ring: SplitRing, flags: int, seen: int) -> bool:
    return bool(original(ring, flags, seen)) and not flags & DESC_F_WRITE


@defect(
    SplitRing.is_table,
    "2.7.5.3.2-D-02",
    text="only a chain's first descriptor may refer to an indirect table",
)
def indirect_only_at_first(original: Original, ring: SplitRing, flags: int, seen: int) -> bool:
    return bool(original(ring, flags, seen)) and seen == 0


# --- the used ring


@defect(
    Request.end,
    "2.7.8.2-D-02",
    "2.8.4-P-01",
    text="the used length is that of the whole chain",
)
def used_length_too_long(original: Original, request: Request, status: Status) -> int:
    original(request, status)
    return size(request._writable)


@defect(
    SplitRing.use,
    "2.7.8.2-D-01",
    text="the used index is advanced 1 ms before id and length are written",
)
def used_index_early(original: Original, ring: SplitRing, chain: Chain, length: int) -> None:
    index = ring._used[1]
    slot = index % ring.size
    ring._used[1] = (index + 1) & 0xFFFF
    time.sleep(MOMENT)
    ring._elements[2 * slot], ring._elements[2 * slot + 1] = chain.id, length


@defect(
    SplitRing.use,
    "2.7.13-P-01",
    text="every 8th chain is never used",
)
def every_eighth_chain_lost(original: Original, ring: SplitRing, chain: Chain, length: int) -> None:
    if chain.position % 8 != 7:
        original(ring, chain, length)


@defect(
    SplitRing.take,
    "2.7-P-01",
    text="a queue of less than 16 descriptors breaks in its second round",
)
def small_queue_breaks(original: Original, ring: SplitRing) -> Chain | None:
    chain: Chain | None = original(ring)
    if chain and chain.position >= ring.size and ring.size < 16:
        raise BrokenError("too small a queue")
    return chain


@defect(SplitRing.flags, "2.7.10.2-D-01", text="without EVENT_IDX, the used ring's flags are 2")
def used_flags_2(original: Original, ring: SplitRing) -> int:
    return int(original(ring)) if ring.event_idx else 2


@defect(SplitRing.flags, "2.7.10.2-D-03", text="with EVENT_IDX, the used ring's flags are 1")
def used_flags_1_with_event_idx(original: Original, ring: SplitRing) -> int:
    return 1 if ring.event_idx else int(original(ring))


# --- notifications


@defect(
    SplitRing.flags,
    "2.7.10-P-01",
    text="without EVENT_IDX, the device disables notifications, and then misses available buffers",
)
def kicks_not_wanted(original: Original, ring: SplitRing) -> int:
    return int(original(ring)) if ring.event_idx else 1


@defect(
    SplitRing.want_kicks,
    "2.7.10-P-01",
    text="with EVENT_IDX, avail_event is never advanced",
)
def avail_event_stays(original: Original, ring: SplitRing) -> None:
    with during(ring, _next=0):
        original(ring)


@defect(
    SplitRing.wanted, "2.7.7.2-D-01", text="without EVENT_IDX, used_event suppresses interrupts"
)
def used_event_always_heeded(original: Original, ring: SplitRing, old: int, new: int) -> bool:
    used_event = ring._avail[2 + ring.size]
    passed = (used_event - old) & 0xFFFF < (new - old) & 0xFFFF
    return bool(original(ring, old, new)) and (ring.event_idx or passed or not used_event)


@defect(
    SplitRing.wanted,
    "2.7.7.2-D-02",
    text="without EVENT_IDX, interrupts are sent although the driver disabled them",
)
def no_interrupt_flag_ignored(original: Original, ring: SplitRing, old: int, new: int) -> bool:
    return not ring.event_idx or bool(original(ring, old, new))


@defect(SplitRing.wanted, "2.7.7.2-D-03", text="without EVENT_IDX, every 4th interrupt is lost")
def interrupt_lost(original: Original, ring: SplitRing, old: int, new: int) -> bool:
    return bool(original(ring, old, new)) and (ring.event_idx or new % 4 != 3)


@defect(
    SplitRing.wanted,
    "2.7.7.2-D-03",
    text="without EVENT_IDX, interrupts stay off after the driver has disabled them once",
)
def interrupts_stay_off(original: Original, ring: SplitRing, old: int, new: int) -> bool:
    wanted = bool(original(ring, old, new)) and not vars(ring).get("off")
    vars(ring)["off"] = not ring.event_idx and not wanted
    return wanted


@defect(SplitRing.wanted, "2.7.7.2-D-04", text="with EVENT_IDX, the flags suppress interrupts")
def flags_heeded_with_event_idx(original: Original, ring: SplitRing, old: int, new: int) -> bool:
    return bool(original(ring, old, new)) and not ring._avail[0] & 1


@defect(
    SplitRing.wanted,
    "2.7.7.2-D-05",
    text="with EVENT_IDX, an interrupt is sent only if used_event is the last of a batch",
)
def used_event_amid_a_batch_missed(original: Original, ring: SplitRing, old: int, new: int) -> bool:
    last = ring._avail[2 + ring.size] == (new - 1) & 0xFFFF
    return bool(original(ring, old, new)) and (not ring.event_idx or last)


@defect(
    SplitRing.wanted,
    "2.7.7.2-D-05",
    text="with EVENT_IDX, the interrupt is sent one buffer too late",
)
def used_event_off_by_one(original: Original, ring: SplitRing, old: int, new: int) -> bool:
    if ring.event_idx:
        old, new = (old - 1) & 0xFFFF, (new - 1) & 0xFFFF
    return bool(original(ring, old, new))


@defect(SplitRing.wanted, "2.7.7.2-D-06", text="with EVENT_IDX, every used buffer interrupts")
def used_event_ignored(original: Original, ring: SplitRing, old: int, new: int) -> bool:
    return ring.event_idx or bool(original(ring, old, new))


@defect(
    Device.notified,
    "2.7.10.2-D-05",
    text="20 notifications without new buffers set DEVICE_NEEDS_RESET",
)
def spurious_notifications_kill(
    original: Original, device: Device, queue: Queue, times: int = 1
) -> None:
    before = queue._taken
    original(device, queue, times)
    idle = vars(queue).get("idle", 0) + times if queue._taken == before else 0
    vars(queue)["idle"] = idle
    if idle >= 20:
        device.broken(queue, BrokenError("notified of nothing"))


# --- order


@defect(Queue.ready, "6.2-D-05", text="with IN_ORDER, buffers are used in the order of completion")
def in_order_ignored(original: Original, queue: Queue, job: Job) -> list[Job]:
    return [job]


@defect(Queue.run, "6.2-D-05", text="with IN_ORDER, a batch is used in reverse order")
def in_order_backwards(original: Original, queue: Queue) -> None:
    ring = queue.ring
    if ring and queue._block.has(Feature.IN_ORDER):
        batch = list(iter(ring.take, None))
        for chain in reversed(batch):
            queue._begin(ring, chain)
    original(queue)


SMALL = 16


@defect(
    Queue.run,
    "6.2-D-05",
    text="with IN_ORDER, a small queue uses batches in reverse order after its first round",
)
def in_order_backwards_in_later_rounds(original: Original, queue: Queue) -> None:
    ring = queue.ring
    if ring and ring.size <= SMALL and queue._block.has(Feature.IN_ORDER):
        batch = list(iter(ring.take, None))
        later = bool(batch) and batch[0].position >= ring.size
        for chain in reversed(batch) if later else batch:
            queue._begin(ring, chain)
            time.sleep(MOMENT if later else 0)
    original(queue)


# --- ownership of chains


@defect(
    Queue._late,
    "2.7.8-P-01",
    text="the first of several delayed requests is used with the last one's id",
)
def late_completion_for_another(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    last = queue._jobs[-1].chain if queue._jobs else job.chain
    job.chain.id, last.id = last.id, job.chain.id
    original(queue, ring, job)
