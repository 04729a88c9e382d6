"""The codec: plain values arrive unchanged, and other values are refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.driver.interface import Completion, Negotiation, QueueLayout, Request, Used
from harness.guest.codec import CLASSES, CodecError, decode, encode
from harness.virtio.blk import BlockConfig, RequestType

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 300), 1 << 300),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.builds(Used, st.integers(0), st.integers(0)),
    st.builds(BlockConfig, st.integers(0), blk_size=st.none() | st.integers(0)),
    st.builds(Request, st.integers(0), data=st.binary(), readable=st.tuples(st.integers(0))),
)
KEYS = st.one_of(st.integers(), st.text(), st.binary(), st.tuples(st.integers(), st.text()))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


def shape(value: Any) -> Any:
    """Return the value with its types, since 1 == True == 1.0."""
    if isinstance(value, (list, tuple)):
        return type(value), [shape(item) for item in value]
    if isinstance(value, dict):
        return dict, [(shape(key), shape(item)) for key, item in value.items()]
    return type(value), value


@given(VALUES)
def test_a_value_comes_back_as_it_went(value: Any) -> None:
    text = encode(value)
    assert text.isascii()
    assert shape(decode(text)) == shape(value)


def test_nan_comes_back() -> None:
    assert math.isnan(decode(encode(math.nan)))


def test_a_mebibyte_of_bytes_comes_back() -> None:
    data = bytes(range(256)) * 4096
    assert decode(encode((data, bytearray(data), memoryview(data)))) == (data, data, data)


def test_an_int_of_any_size_comes_back() -> None:
    huge = 1 << 100_000
    assert decode(encode((huge, -huge))) == (huge, -huge)


def test_an_enum_goes_as_its_int() -> None:
    back = decode(encode(Request(type=RequestType.FLUSH))).type
    assert (type(back), back) == (int, 4)


def test_the_dataclasses_of_the_driver_can_cross() -> None:
    assert {Request, Completion, Negotiation, QueueLayout, Used, BlockConfig} <= set(
        CLASSES.values()
    )


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, ValueError(), 1j, [object()]])
def test_what_is_not_plain_is_refused(value: object) -> None:
    with pytest.raises(CodecError, match="not a plain value"):
        encode(value)


def test_a_class_of_the_same_name_is_not_taken_for_ours() -> None:
    stranger = type("Request", (), {"__dataclass_fields__": {}})
    with pytest.raises(CodecError, match="not a plain value"):
        encode(stranger())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[1",
        b"\xff",
        b"{}",
        b'{"x":1}',
        b'{"t":[],"b":""}',
        b'{"c":["Popen"]}',
        b'{"c":["Used",1]}',
        b'{"c":["Used",1,1,1]}',
        b'{"c":[]}',
        b'{"c":1}',
        b'{"c":"Used"}',
        b'{"b":"A"}',
        b'{"b":5}',
        b'{"i":"xyz"}',
        b'{"d":[{"d":[]},1]}',
        b'{"d":[1]}',
        b'{"d":"ab"}',
        b'{"t":5}',
        b'{"t":"ab"}',
        b"[" * 100_000,
    ],
)
def test_a_text_that_is_no_value_is_refused(text: bytes) -> None:
    with pytest.raises(CodecError, match="not a value"):
        decode(text)
