"""Frames on a noisy line: they arrive, and a damaged frame is never delivered."""

from __future__ import annotations

import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.guest.wire import (
    HEADER_LENGTH,
    MAGIC,
    MAX_PAYLOAD,
    Frame,
    Kind,
    Parser,
    join,
    split,
)

ASCII = st.text(st.characters(max_codepoint=127), max_size=200).map(str.encode)
FRAMES = st.builds(Frame, st.sampled_from(Kind), st.integers(1, 0xFFFFFFFF), ASCII)
# Also noise that looks like frames: the magic, parts of it, incomplete frames.
CUT = st.builds(lambda frame, at: frame.encode()[:at], FRAMES, st.integers(1, HEADER_LENGTH - 1))
NOISE = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.integers(1, len(MAGIC)).map(lambda length: MAGIC[:length]),
        CUT,
        FRAMES.map(lambda frame: frame.encode()[:-1]),
    ),
    max_size=4,
).map(b"".join)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(st.tuples(NOISE, FRAMES), max_size=6), st.lists(st.integers(0), max_size=8))
def test_every_frame_is_found_among_noise(line: list[tuple[bytes, Frame]], cuts: list[int]) -> None:
    data = b"".join(noise + frame.encode() for noise, frame in line)
    parser = Parser()

    found = [frame for piece in in_pieces(data, cuts) for frame in parser.feed(piece)]

    # Noise may complete a cut frame, so more frames may arrive; all of these do, in order.
    rest = iter(found)
    assert all(frame in rest for _, frame in line)


@given(FRAMES, st.data())
def test_a_damaged_frame_is_never_delivered(frame: Frame, data: st.DataObject) -> None:
    good = frame.encode()
    at = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :]
    after = Frame(Kind.ACK, 7)

    assert Parser().feed(damaged + after.encode()) == [after]


@given(FRAMES, st.data())
def test_lost_bytes_cost_one_frame_only(frame: Frame, data: st.DataObject) -> None:
    good = frame.encode()
    start = data.draw(st.integers(0, len(good) - 1))
    end = data.draw(st.integers(start + 1, len(good)))
    after = Frame(Kind.CALL, 7, b"next")

    assert Parser().feed(good[:start] + good[end:] + after.encode()) == [after]


def test_a_frame_cut_short_does_not_take_the_next_one_with_it() -> None:
    long, after = Frame(Kind.CALL, 1, b"x" * 9000).encode(), Frame(Kind.PROBE, 1)
    parser = Parser()

    assert parser.feed(long[:5000]) == []
    assert parser.feed(after.encode()) == [after]
    assert parser.damaged == 1


def test_a_damaged_length_is_not_trusted() -> None:
    long = bytearray(Frame(Kind.CALL, 1, b"x").encode())
    long[9:13] = (0x7FFFFFFF).to_bytes(4, "little")
    after = Frame(Kind.CALL, 2, b"y")
    parser = Parser()

    assert parser.feed(bytes(long) + after.encode()) == [after]
    assert parser.damaged == 1


def test_noise_is_not_kept() -> None:
    parser = Parser()
    for _ in range(100):
        assert parser.feed(b"\xf5" * 10_000) == []
    assert len(parser._buffer) < len(MAGIC)


@pytest.mark.parametrize("payload", [b"\x80", MAGIC, b"x" * (MAX_PAYLOAD + 1)])
def test_no_payload_can_look_like_a_frame(payload: bytes) -> None:
    with pytest.raises(ValueError, match="ASCII"):
        Frame(Kind.CALL, 1, payload).encode()


@given(ASCII.map(lambda text: text * 400))
def test_messages_of_any_length_are_put_together_again(message: bytes) -> None:
    parts = split(message)
    assert all(0 < len(part) <= MAX_PAYLOAD and part.isascii() for part in parts)
    assert join(parts) == message


def test_a_long_regular_message_is_short_on_the_line() -> None:
    assert len(b"".join(split(b"\0" * (1 << 20)))) < 10_000


def test_a_message_too_short_to_be_worth_it_is_not_compressed() -> None:
    short, long = b"\0" * 99, b"\0" * 100
    assert split(short, 100) == [b"p" + short]
    (part,) = split(long, 100)
    assert len(part) < 50
    assert join([part]) == long


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"?x"],
        [b"zAAAA"],
        [b"z\x01"],
        [split(b"a" * 9999)[0][:-8]],
        split(b"\0" * (64 * 1024 * 1024 + 1)),
    ],
    ids=["empty", "mark", "not zlib", "not base64", "cut", "too long"],
)
def test_what_is_no_message_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(ValueError):
        join(parts)


def test_both_checksums_are_of_the_right_bytes() -> None:
    data = Frame(Kind.CALL, 1, b"payload").encode()
    assert int.from_bytes(data[13:17], "little") == zlib.crc32(b"payload")
    assert int.from_bytes(data[17:21], "little") == zlib.crc32(data[:17])
