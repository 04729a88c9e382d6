"""Strategies of hypothesis for legal operations, given a session and the shape of its device.

The simplest choice is always first, because hypothesis shrinks a failure towards it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from harness.random.operations import (
    Ask,
    Burst,
    CacheMode,
    Collect,
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
    Suppress,
    WantInterrupts,
    Write,
    WriteZeroes,
)
from harness.random.session import MOST_IN_FLIGHT, Session
from harness.random.shape import Shape
from harness.virtio.blk import SECTOR
from harness.virtio.features import Feature

MOST_SECTORS = 64
"""Sectors of the longest usual request. A few requests are as long as the disk."""

MOST_BYTES = 16 << 20
"""Bytes of the largest requests in flight, so that the driver's memory has room for them."""

LONGEST_PAUSE = 60
"""Milliseconds of the longest pause."""

CAPACITY_STEP = 8
CAPACITIES = st.integers(4, 512).map(lambda steps: steps * CAPACITY_STEP)


@st.composite
def starts(draw: DrawFn, shape: Shape) -> Start:
    """Return a start with any legal set of features, number of queues, sizes, and INTx or MSI-X."""
    chosen = set(draw(st.sets(st.sampled_from(shape.optional)))) if shape.optional else set()
    most = len(shape.largest) if "BLK_MQ" in chosen else 1
    queues = draw(st.integers(1, most))
    packed = "RING_PACKED" in chosen
    sizes = [draw(_sizes(shape, index, packed)) for index in range(queues)]
    features = [name for name in shape.optional if name in chosen]
    # With one vector a used buffer and a configuration change could not be told apart.
    counts = [None, 0, *range(2, shape.vectors + 1)] if shape.vectors else [None]
    vectors = draw(st.sampled_from(counts))
    return Start(features=(*shape.required, *features), sizes=tuple(sizes), vectors=vectors)


def _sizes(shape: Shape, index: int, packed: bool) -> st.SearchStrategy[int]:
    largest = shape.largest[index]
    if shape.legacy:
        return st.just(largest)
    if packed:
        return st.one_of(st.integers(min(3, largest), min(20, largest)), st.just(largest))
    powers = [size for size in (8, 4, 2, 16, 32, 64, 128, 256, 1024) if size <= largest]
    return st.sampled_from(powers or [largest])


def can_send(session: Session) -> bool:
    """Return True if a queue has room for another request."""
    return len(session.sent) < MOST_IN_FLIGHT and any(
        lane.free >= _least(session) for lane in session.lanes
    )


def _least(session: Session) -> int:
    """Return the number of descriptors of the smallest request."""
    return 1 if session.negotiated(Feature.INDIRECT_DESC) else 3


@st.composite
def sends(draw: DrawFn, session: Session, shape: Shape) -> Send:
    """Return one request or several, on a queue that has room."""
    with_room = [n for n, lane in enumerate(session.lanes) if lane.free >= _least(session)]
    queue = draw(st.sampled_from(with_room))
    free = session.lanes[queue].free
    room = MOST_IN_FLIGHT - len(session.sent)
    many = min(room, 12)
    wanted = draw(
        st.one_of(st.integers(1, min(3, many)), st.integers(1, many), st.just(min(room, free // 3)))
    )
    wanted = max(wanted, 1)
    asks: list[Ask] = []
    for _ in range(wanted):
        ask = _asks(draw, session, shape, queue, free, _bytes(asks))
        asks.append(ask)
        free -= ask.descriptors
        if free < _least(session):
            break
    return Send(asks=tuple(asks), queue=queue)


def _asks(draw: DrawFn, session: Session, shape: Shape, queue: int, free: int, used: int) -> Ask:
    """Return a request; `used` are the bytes of those that are sent together with it."""
    kinds: list[type[Ask]] = [Read, Write, Read, Write]
    config = session.config
    if session.negotiated(Feature.BLK_RO):
        kinds = [Read]
    elif session.negotiated(Feature.BLK_FLUSH):
        kinds.append(Flush)
    if not shape.legacy:
        kinds.append(GetId)
    if config.max_discard_seg and config.max_discard_sectors and Write in kinds:
        kinds.append(Discard)
    if config.max_write_zeroes_seg and config.max_write_zeroes_sectors and Write in kinds:
        kinds.append(WriteZeroes)
    kind = draw(st.sampled_from(kinds))
    ask: Ask
    if kind is Read:
        sector, count = _places(draw, session.capacity, largest=_largest(session, shape, used))
        ask = Read(sector=sector, count=count)
    elif kind is Write:
        sector, count = _places(draw, session.capacity, largest=_largest(session, shape, used))
        ask = Write(sector=sector, count=count)
    elif kind is Discard:
        most = config.max_discard_sectors or 0
        ask = Discard(segments=_segments(draw, session, config.max_discard_seg or 1, most))
    elif kind is WriteZeroes:
        most = config.max_write_zeroes_sectors or 0
        segments = _segments(draw, session, config.max_write_zeroes_seg or 1, most)
        ask = WriteZeroes(segments=segments, unmap=draw(st.booleans()))
    else:
        ask = kind()
    return _framed(draw, ask, session, shape, queue, free)


def _bytes(asks: Iterable[Ask]) -> int:
    return sum(ask.sent + ask.received for ask in asks)


def _largest(session: Session, shape: Shape, used: int) -> int:
    """Return the sectors of the largest request that the driver has memory for now.

    `used` are the bytes of requests that are not sent yet. It is at most what one buffer may have
    (size_max), since the data may be one buffer.
    """
    if not shape.large:
        return 4 * MOST_SECTORS
    used += _bytes(request.ask for request in session.sent)
    bytes_left = min(session.config.size_max or MOST_BYTES, MOST_BYTES - used)
    return max(bytes_left // SECTOR, 4 * MOST_SECTORS)


def _places(
    draw: DrawFn, capacity: int, most: int | None = None, largest: int = 4 * MOST_SECTORS
) -> tuple[int, int]:
    """Return a first sector and a number of sectors, often close to others, or at the end.

    A few have up to `largest` sectors.
    """
    longest = min(capacity, most or capacity)
    sizes = [
        st.integers(1, min(8, longest)),
        st.integers(1, min(MOST_SECTORS, longest)),
        st.integers(1, min(4 * MOST_SECTORS, longest)),
    ]
    if min(longest, largest) > 4 * MOST_SECTORS:
        sizes += [st.integers(1, min(largest, longest))]
    count = draw(st.one_of(sizes))
    last = capacity - count
    sector = draw(st.one_of(st.integers(0, min(31, last)), st.integers(0, last), st.just(last)))
    return sector, count


def _segments(
    draw: DrawFn, session: Session, most: int, sectors: int
) -> tuple[tuple[int, int], ...]:
    number = draw(st.integers(1, min(most, 4)))
    return tuple(_places(draw, session.capacity, sectors) for _ in range(number))


def _framed(draw: DrawFn, ask: Ask, session: Session, shape: Shape, queue: int, free: int) -> Ask:
    """Return the request with any legal division into descriptors (virtio 2.7.4)."""
    if shape.legacy:
        return ask  # a legacy interface requires a fixed framing (virtio 5.2.6.4)
    size = session.lanes[queue].layout.size
    indirect = session.negotiated(Feature.INDIRECT_DESC) and (free < 3 or draw(st.booleans()))
    most = size if indirect else free
    if session.config.seg_max is not None:
        most = min(most, session.config.seg_max + 2)
    most = max(most, 2)
    readable = _cuts(draw, ask.sent, most - 1, default=2 if ask.sent > 16 else 1)
    default = 2 if ask.received else 1
    left = most - (len(readable) or (2 if ask.sent > 16 else 1))
    writable = _cuts(draw, ask.received + 1, left, default)
    return replace(ask, readable=readable, writable=writable, indirect=indirect)


def _cuts(draw: DrawFn, total: int, most: int, default: int) -> tuple[int, ...]:
    """Return up to `most` lengths whose sum is `total`; () for the `default` number of them."""
    if most < default:
        return (total,)
    most = min(most, total)
    how = draw(st.sampled_from(("usual", "usual", "here and there", "many")))
    if how == "usual" or most < 2:
        return ()
    if how == "many":
        pieces = draw(st.integers(2, most))
        borders = [total * n // pieces for n in range(1, pieces)]
    else:
        places = st.sets(st.integers(1, total - 1), min_size=1, max_size=min(most, 6) - 1)
        borders = sorted(draw(places))
    ends = [*borders, total]
    return tuple(end - begin for begin, end in zip([0, *borders], ends, strict=True))


@st.composite
def others(draw: DrawFn, session: Session, shape: Shape) -> list[Operation]:
    """Return operations that change how the device runs, after a Collect if they need one."""
    queue = draw(st.integers(0, len(session.lanes) - 1))
    kinds = ["interrupts"]
    if session.negotiated(Feature.BLK_CONFIG_WCE):
        kinds.append("cache")
    if shape.resizes:
        kinds.append("resize")
    if shape.queue_resets and session.negotiated(Feature.RING_RESET):
        kinds.append("queue-reset")
    kinds.append("suppress")
    if shape.pauses:
        kinds.append("pause")
    kind = draw(st.sampled_from(kinds))
    if kind == "suppress":
        return [Suppress(enabled=not session.suppressed)]
    if kind == "pause":
        return [PauseMachine(milliseconds=draw(st.sampled_from((0, 1, 10, LONGEST_PAUSE))))]
    if kind == "interrupts":
        return [WantInterrupts(queue=queue, wanted=not session.lanes[queue].wanted)]
    if kind == "cache":
        return [CacheMode(writeback=draw(st.booleans()))]
    if kind == "resize":
        return [Resize(capacity=draw(CAPACITIES))]
    size = draw(_sizes(shape, queue, session.negotiated(Feature.RING_PACKED)))
    there = any(request.queue == queue for request in session.sent)
    first = [] if shape.queue_resets_in_flight or not there else [Collect(count=len(session.sent))]
    return [*first, QueueReset(queue=queue, size=size)]


@st.composite
def bursts(draw: DrawFn, session: Session) -> Burst | None:
    """Return a burst on a queue that has room for a request, None if there is none."""
    least = Read(sector=0, count=1).descriptors
    wide = [n for n, lane in enumerate(session.lanes) if lane.layout.size >= least]
    if not wide or session.negotiated(Feature.BLK_RO):
        return None
    span = draw(st.integers(1, min(16, session.capacity)))
    return Burst(
        queue=draw(st.sampled_from(wide)),
        count=draw(st.integers(1, 120)),
        together=draw(st.integers(1, MOST_IN_FLIGHT)),
        span=span,
        sector=draw(st.integers(0, min(31, session.capacity - span))),
    )
