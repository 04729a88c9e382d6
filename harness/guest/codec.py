"""Plain values as ASCII text, and back.

The text is JSON. What JSON has no word for is an object with one member, whose
name says what it is: `i` a large int in hexadecimal, `b` bytes in base64,
`t` a tuple, `d` a dict as pairs, `c` a dataclass by name with its fields.
Nothing in such a text can make the reader execute anything: the host reads what
a guest sends whose memory a device may have corrupted.
"""

from __future__ import annotations

import json
from binascii import a2b_base64, b2a_base64
from dataclasses import fields, is_dataclass
from typing import Any

from harness.driver import interface
from harness.virtio import blk

CLASSES: dict[str, type[Any]] = {
    name: value
    for module in (interface, blk)
    for name, value in vars(module).items()
    if isinstance(value, type) and is_dataclass(value)
}
"""The dataclasses that can cross, by name."""

_JSON_INT_LIMIT = 1 << 64


class CodecError(Exception):
    """A value that cannot cross, or a text that is no value."""


def encode(value: object) -> bytes:
    """The value as ASCII text.

    An IntEnum becomes its int, bytearray and memoryview become bytes.
    CodecError for anything that is not plain.
    """
    return json.dumps(_pack(value), separators=(",", ":")).encode("ascii")


def decode(text: bytes) -> Any:
    """The value of a text that `encode` made. CodecError for any other."""
    try:
        return _unpack(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CodecError(f"not a value: {error} in {text[:80]!r}") from error


def _pack(value: Any) -> Any:
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        number = int(value)
        # Python limits the decimal digits of an int that it reads or writes.
        return number if abs(number) < _JSON_INT_LIMIT else {"i": hex(number)}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"b": b2a_base64(value, newline=False).decode("ascii")}
    if isinstance(value, list):
        return [_pack(item) for item in value]
    if isinstance(value, tuple):
        return {"t": [_pack(item) for item in value]}
    if isinstance(value, dict):
        return {"d": [[_pack(key), _pack(item)] for key, item in value.items()]}
    name = type(value).__name__
    if CLASSES.get(name) is type(value):
        members = {field.name: _pack(getattr(value, field.name)) for field in fields(value)}
        return {"c": [name, members]}
    raise CodecError(f"a {type(value).__qualname__} is not a plain value: {value!r:.80}")


def _unpack(packed: Any) -> Any:
    if isinstance(packed, list):
        return [_unpack(item) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((tag, content),) = packed.items()
    if tag == "i":
        return int(content, 16)
    if tag == "b":
        return a2b_base64(content)
    if tag == "t":
        return tuple(_unpack(item) for item in content)
    if tag == "d":
        return {_unpack(key): _unpack(item) for key, item in content}
    if tag == "c":
        name, members = content
        return CLASSES[name](**{field: _unpack(item) for field, item in members.items()})
    raise ValueError(f"unknown tag {tag!r}")
