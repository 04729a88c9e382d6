"""Check whether a legal driver may do an operation in the present state of a session.

Operations of `draw` are legal where they were made. A script from which operations were removed
need not be.
"""

from __future__ import annotations

from harness.random.operations import (
    Ask,
    Burst,
    CacheMode,
    Discard,
    Flush,
    GetId,
    Operation,
    PauseMachine,
    QueueReset,
    Read,
    Resize,
    Send,
    Start,
    Write,
    WriteZeroes,
)
from harness.random.session import MOST_IN_FLIGHT, Session
from harness.random.shape import Shape
from harness.virtio.features import Feature


def objection(operation: Operation, session: Session, shape: Shape) -> str:
    """Return the reason why a legal driver must not do this now, or "" if it may.

    Operations that would only repeat a recorded deviation are objected to, too.
    """
    if isinstance(operation, Start):
        return _to_start(operation, session, shape)
    if not session.lanes:
        return "no Start has set up a virtqueue"
    queue = getattr(operation, "queue", 0)
    if queue >= len(session.lanes):
        return f"no Start has set up virtqueue {queue}"
    match operation:
        case Send():
            return _to_send(operation, session, shape)
        case Burst():
            return _to_burst(operation, session)
        case PauseMachine() if not shape.pauses:
            return "what carries the device cannot be stopped for a while"
        case CacheMode() if not session.negotiated(Feature.BLK_CONFIG_WCE):
            return "CONFIG_WCE is not negotiated"
        case Resize() if not shape.resizes:
            return "the disk has no other capacity"
        case QueueReset():
            return _to_queue_reset(operation, session, shape)
    return ""


def _to_start(start: Start, session: Session, shape: Shape) -> str:
    names = set(start.features)
    if not set(shape.required) <= names <= {*shape.required, *shape.optional}:
        return "these features are not offered, or a required one is missing"
    if session.sent and not shape.resets_in_flight:
        return "requests are in flight, and a reset then is a recorded deviation"
    most = len(shape.largest) if "BLK_MQ" in names else 1
    if not 1 <= len(start.sizes) <= most:
        return f"the device has {most} virtqueues"
    packed = "RING_PACKED" in names
    if not all(_fits(size, n, packed, shape) for n, size in enumerate(start.sizes)):
        return "a virtqueue cannot have such a size"
    vectors = start.vectors or 0
    if vectors > shape.vectors or vectors == 1:
        return f"{vectors} vectors are not enough or too many to tell interrupts apart"
    return ""


def _fits(size: int, queue: int, packed: bool, shape: Shape) -> bool:
    if shape.legacy:
        return size == shape.largest[queue]
    return 1 <= size <= shape.largest[queue] and (packed or size.bit_count() == 1)


def _to_queue_reset(reset: QueueReset, session: Session, shape: Shape) -> str:
    if not shape.queue_resets or not session.negotiated(Feature.RING_RESET):
        return "RING_RESET is not negotiated"
    if not _fits(reset.size, reset.queue, session.negotiated(Feature.RING_PACKED), shape):
        return "a virtqueue cannot have such a size"
    there = any(request.queue == reset.queue for request in session.sent)
    if there and not shape.queue_resets_in_flight:
        return "requests are in flight, and a reset of their queue is a recorded deviation"
    return ""


def _to_send(send: Send, session: Session, shape: Shape) -> str:
    if not send.asks:
        return "there is no request"
    if len(session.sent) + len(send.asks) > MOST_IN_FLIGHT:
        return f"more than {MOST_IN_FLIGHT} requests in flight"
    if sum(ask.descriptors for ask in send.asks) > session.lanes[send.queue].free:
        return "the virtqueue has too few free descriptors"
    reasons = (_to_ask(ask, send.queue, session, shape) for ask in send.asks)
    return next(filter(None, reasons), "")


def _to_burst(burst: Burst, session: Session) -> str:
    if session.negotiated(Feature.BLK_RO):
        return "the disk is read-only"
    if burst.sector + burst.span > session.capacity:
        return f"the disk has {session.capacity} sectors"
    least = Read(sector=0, count=1).descriptors
    if session.lanes[burst.queue].layout.size < least:
        return f"a request of a burst takes {least} descriptors"
    return ""


def _to_ask(ask: Ask, queue: int, session: Session, shape: Shape) -> str:
    if any(count < 1 or sector + count > session.capacity for sector, count in ask.places):
        return f"the disk has {session.capacity} sectors"
    return _to_type(ask, session, shape) or _to_framing(ask, queue, session, shape)


def _to_type(ask: Ask, session: Session, shape: Shape) -> str:
    config = session.config
    match ask:
        case Write() | Discard() | WriteZeroes() if session.negotiated(Feature.BLK_RO):
            return "the disk is read-only"
        case Flush() if not session.negotiated(Feature.BLK_FLUSH):
            return "FLUSH is not negotiated"
        case GetId() if shape.legacy:
            return "a legacy interface has no GET_ID"
        case Discard():
            most, longest = config.max_discard_seg, config.max_discard_sectors
        case WriteZeroes():
            most, longest = config.max_write_zeroes_seg, config.max_write_zeroes_sectors
        case _:
            return ""
    if len(ask.places) > (most or 0) or any(count > (longest or 0) for _, count in ask.places):
        return f"the device takes {most or 0} segments of {longest or 0} sectors"
    return ""


def _to_framing(ask: Ask, queue: int, session: Session, shape: Shape) -> str:
    if shape.legacy and (ask.readable or ask.writable or ask.indirect):
        return "a legacy interface has one framing for each type of request"
    for name, lengths, wanted in (
        ("readable", ask.readable, ask.sent),
        ("writable", ask.writable, ask.received + 1),
    ):
        if lengths and sum(lengths) != wanted:
            return f"{name} has {sum(lengths)} bytes in all, not {wanted}"
    if ask.indirect and not session.negotiated(Feature.INDIRECT_DESC):
        return "INDIRECT_DESC is not negotiated"
    most = session.lanes[queue].layout.size
    if session.config.seg_max is not None:
        most = min(most, session.config.seg_max + 2)
    return f"the device takes {most} buffers" if ask.pieces > max(most, 2) else ""
