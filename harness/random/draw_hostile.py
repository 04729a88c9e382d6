"""Strategies of hypothesis for the operations of a driver that follows no rule."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from harness.random.draw import CAPACITIES
from harness.random.hostile import ARENA, HostileSession
from harness.random.illegal import (
    Chain,
    Describe,
    Kick,
    Offer,
    Pause,
    Piece,
    Place,
    Poke,
    PokeAddress,
    PokeConfig,
    Scribble,
)
from harness.random.operations import Operation, Resize
from harness.random.shape import Shape
from harness.virtio.blk import RequestType
from harness.virtio.pci import COMMON_REGISTERS
from harness.virtio.ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
)

PLACES = st.sampled_from(
    ("arena", "arena", "table", "desc", "driver", "device", "own", "low", "beyond", "top")
)
OFFSETS = st.one_of(
    st.sampled_from((0, 16, 32, 512, 4096, 1, 2, 4, 8, 4095)),
    st.integers(0, ARENA - 1),
    st.integers(-64, -1),
)
LENGTHS = st.one_of(
    st.sampled_from((512, 0, 1, 16, 15, 17, 20, 511, 513, 4096, 65536)),
    st.integers(0, 2048),
    st.sampled_from((0x7FFFFFFF, 0x80000000, 0xFFFFFE00, 0xFFFFFFFF)),
)
ODD_FLAGS = st.sampled_from(
    (
        *(0, 0, 0, DESC_F_NEXT, DESC_F_INDIRECT, DESC_F_INDIRECT | DESC_F_NEXT),
        *(PACKED_DESC_F_AVAIL, PACKED_DESC_F_USED, PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED),
        *(1 << 3, 0xFFFF),
    )
)
FLAGS = st.builds(
    lambda direction, extra: direction ^ extra, st.sampled_from((0, DESC_F_WRITE)), ODD_FLAGS
)
KINDS = st.one_of(
    st.sampled_from([int(kind) for kind in RequestType]),
    st.sampled_from((0x80000000, 0x80000001, 9, 99, 0xFFFFFFFF)),
)
SECTORS = st.one_of(
    st.integers(0, 64), st.sampled_from((2047, 2048, 1 << 32, 1 << 55, (1 << 64) - 1))
)
NUMBERS = st.one_of(
    st.integers(0, 300), st.sampled_from((0x7FFF, 0x8000, 0xFFFF)), st.integers(0, 0xFFFF)
)
ADDRESSES = ("queue_desc", "queue_driver", "queue_device")
PLAIN = tuple(
    name
    for name in COMMON_REGISTERS
    if name not in ADDRESSES and not name.startswith(("admin", "queue_notif_config"))
)


def _pieces(most: int) -> st.SearchStrategy[tuple[Piece, ...]]:
    piece = st.tuples(PLACES, OFFSETS, LENGTHS, FLAGS)
    sound = st.tuples(
        st.just("arena"),
        st.integers(0, 64).map(lambda n: 512 * n),
        st.sampled_from((512, 1024, 4096)),
        st.sampled_from((0, DESC_F_WRITE)),
    )
    return st.lists(st.one_of(sound, piece), max_size=most).map(tuple)


@st.composite
def mischief(draw: DrawFn, session: HostileSession, shape: Shape) -> Operation:
    """Return one operation, forbidden or allowed."""
    kinds = ["chain", "chain", "chain", "describe", "scribble", "kick", "config", "pause"]
    if not session.packed:
        kinds.append("offer")
    if shape.registers:
        kinds += ["poke", "address"]
    if shape.resizes:
        kinds.append("resize")
    kind = draw(st.sampled_from(kinds))
    queue = draw(st.integers(0, max(0, len(session.lanes) - 1)))
    place: Place = draw(st.tuples(PLACES, OFFSETS))
    if kind == "chain":
        return draw(_chains(queue))
    if kind == "describe":
        return Describe(
            slot=draw(st.integers(0, 16)),
            place=place,
            length=draw(LENGTHS),
            flags=draw(FLAGS),
            last=draw(NUMBERS),
            queue=queue,
        )
    if kind == "scribble":
        names = st.sampled_from(("desc", "table", "driver", "device", "arena"))
        where = draw(st.tuples(names, st.integers(0, 255)))
        return Scribble(place=where, value=draw(NUMBERS))
    if kind == "offer":
        heads = tuple(draw(st.lists(NUMBERS, max_size=4)))
        return Offer(heads=heads, jump=draw(st.one_of(st.just(0), NUMBERS)), queue=queue)
    if kind == "kick":
        return Kick(queue=queue)
    if kind == "config":
        width = draw(st.sampled_from((1, 2, 4)))
        offset = draw(st.integers(0, 24)) * 4
        return PokeConfig(
            offset=offset, width=width, value=draw(st.integers(0, (1 << 8 * width) - 1))
        )
    if kind == "poke":
        return Poke(register=draw(st.sampled_from(PLAIN)), value=draw(NUMBERS))
    if kind == "address":
        return PokeAddress(register=draw(st.sampled_from(ADDRESSES)), place=place)
    if kind == "resize":
        return Resize(capacity=draw(CAPACITIES))
    return Pause()


@st.composite
def _chains(draw: DrawFn, queue: int) -> Chain:
    header = draw(st.one_of(st.tuples(KINDS, SECTORS), st.none()))
    in_table = draw(st.booleans())
    return Chain(
        pieces=draw(_pieces(40 if in_table and draw(st.booleans()) else 4)),
        header=header,
        status=draw(st.sampled_from((True, True, True, False))),
        table=draw(st.integers(0, 64)) * 16 if in_table else None,
        spare=draw(st.sampled_from((0, 0, 0, 1, -1, 16, -16, 8, 0x7FFFFFF0))) if in_table else 0,
        queue=queue,
    )
