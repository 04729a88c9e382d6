"""Encode plain values as ASCII text, and decode them.

The text is JSON. A type that JSON does not have is an object with one member,
whose name is the type: `i` a large int in hexadecimal, `b` bytes in base64, `t` a
tuple, `d` a dict as keys and values in turn, `c` a dataclass's name and the
values of its fields. No text can make the reader execute code: a device may have
corrupted the memory of the guest that sends it.

Python in an emulated guest is slow, and every call of a test is encoded here. So JSON's C code
does most of the work, and the rest is a table look-up by type.
"""

from __future__ import annotations

import json
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
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
"""Dataclasses that can be encoded, by name."""

_JSON_INT_LIMIT = 1 << 64


class CodecError(Exception):
    """The value cannot be encoded, or the text cannot be decoded."""


def encode(value: object) -> bytes:
    """Return the value as ASCII text.

    An IntEnum becomes its int, bytearray and memoryview become bytes.
    Raises CodecError for a value that is not plain.
    """
    return _to_json(_pack(value)).encode("ascii")


def decode(text: bytes) -> Any:
    """Return the value of a text from `encode`. Raises CodecError for other texts."""
    try:
        return _from_json(text.decode("ascii"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CodecError(f"not a value: {error} in {text[:80]!r}") from error


def _pack(value: Any) -> Any:
    pack = _PACKERS.get(type(value))
    if pack is None:
        pack = next((found for base, found in _PLAIN.items() if isinstance(value, base)), None)
    if pack is None:
        raise CodecError(f"a {type(value).__qualname__} is not a plain value: {value!r:.80}")
    return pack(value)


def _as_it_is(value: Any) -> Any:
    return value


def _pack_int(value: int) -> Any:
    number = int(value)
    # Python limits the decimal digits of an int in a text.
    return number if abs(number) < _JSON_INT_LIMIT else {"i": hex(number)}


def _pack_bytes(value: bytes) -> Any:
    return {"b": b2a_base64(value, newline=False).decode("ascii")}


def _pack_list(value: list[Any]) -> Any:
    return [_pack(item) for item in value]


def _pack_tuple(value: tuple[Any, ...]) -> Any:
    return {"t": [_pack(item) for item in value]}


def _pack_dict(value: dict[Any, Any]) -> Any:
    return {"d": [_pack(part) for pair in value.items() for part in pair]}


def _object_packer(name: str, kind: type[Any]) -> Callable[[Any], Any]:
    names = [field.name for field in fields(kind)]
    return lambda value: {"c": [name, *(_pack(getattr(value, field)) for field in names)]}


_PLAIN: dict[type[Any], Callable[[Any], Any]] = {
    type(None): _as_it_is,
    bool: _as_it_is,
    float: _as_it_is,
    str: str,
    int: _pack_int,
    bytes: _pack_bytes,
    bytearray: _pack_bytes,
    memoryview: _pack_bytes,
    list: _pack_list,
    tuple: _pack_tuple,
    dict: _pack_dict,
}
# Apart from _PLAIN: an instance of a class that is derived from one of ours is not a plain value.
_PACKERS = _PLAIN | {kind: _object_packer(name, kind) for name, kind in CLASSES.items()}


def _unpack(packed: dict[str, Any]) -> Any:
    """Return the value of a JSON object. The values inside it are already decoded."""
    ((tag, content),) = packed.items()
    if tag == "b":
        return a2b_base64(content)
    if tag == "i":
        return int(content, 16)
    # Checked here, because the following code would also take a text as a sequence.
    if not isinstance(content, list):
        raise ValueError(f"{tag!r} of {content!r:.20}")
    if tag == "t":
        return tuple(content)
    if tag == "c":
        name, *members = content
        return CLASSES[name](*members)
    if tag == "d":
        # Keys and values alternate, so that a text of two characters is not taken as a pair.
        return dict(zip(content[::2], content[1::2], strict=True))
    raise ValueError(f"unknown tag {tag!r}")


_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder(object_hook=_unpack).decode
