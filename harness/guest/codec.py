"""Plain values as ASCII text, and back.

The text is JSON. What JSON has no word for is an object with one member, whose
name says what it is: `i` a large int in hexadecimal, `b` bytes in base64,
`t` a tuple, `d` a dict as keys and values in turn, `c` a dataclass's name and
the values of its fields.
Nothing in such a text can make the reader execute anything: the host reads what
a guest sends whose memory a device may have corrupted.

Python in an emulated guest is slow, and every call of a test comes through here: so the work is
done by JSON's own C code where it can be, and looked up where not.
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
"""The dataclasses that can cross, by name."""

_JSON_INT_LIMIT = 1 << 64


class CodecError(Exception):
    """A value that cannot cross, or a text that is no value."""


def encode(value: object) -> bytes:
    """The value as ASCII text.

    An IntEnum becomes its int, bytearray and memoryview become bytes.
    CodecError for anything that is not plain.
    """
    return _to_json(_pack(value)).encode("ascii")


def decode(text: bytes) -> Any:
    """The value of a text that `encode` made. CodecError for any other."""
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
    # Python limits the decimal digits of an int that it reads or writes.
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
    return lambda value: {"c": [name, *(_pack(getattr(value, one)) for one in names)]}


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
# Apart from the others: a class derived from one of ours is no plain value.
_PACKERS = _PLAIN | {kind: _object_packer(name, kind) for name, kind in CLASSES.items()}


def _unpack(packed: dict[str, Any]) -> Any:
    """What an object of JSON stands for; whatever is in it has been unpacked."""
    ((tag, content),) = packed.items()
    if tag == "b":
        return a2b_base64(content)
    if tag == "i":
        return int(content, 16)
    # Only now: a text is as good a sequence to what follows.
    if not isinstance(content, list):
        raise ValueError(f"{tag!r} of {content!r:.20}")
    if tag == "t":
        return tuple(content)
    if tag == "c":
        name, *members = content
        return CLASSES[name](*members)
    if tag == "d":
        # In turns, so that no pair can be a text of two characters.
        return dict(zip(content[::2], content[1::2], strict=True))
    raise ValueError(f"unknown tag {tag!r}")


_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder(object_hook=_unpack).decode
