"""Read files that a user or an earlier run wrote: with limits, and into types.

`read_text` reads a regular file, `toml_of` and `json_of` parse it, `build` makes a value of a type.
All errors are one line: the file, the line where it is known, what was found, what was expected.
A field with a limit of its own has it in its type: `Annotated[int, within(1, 64)]`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import stat
import tomllib
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

MIB = 1 << 20
SHOWN = 60
"""Characters of a wrong value that a message shows."""

_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\uffff]")

T = TypeVar("T")
At = tuple[str | int, ...]
"""A place in a document: keys of tables, and indices of lists from 0."""


class InputError(Exception):
    """A file cannot be used; one line with its name."""


class MissingFileError(InputError):
    """There is no such file."""


class WrongValueError(ValueError):
    """A value is not of the type that was expected; `at` is its place in the document."""

    def __init__(self, at: At, message: str) -> None:
        super().__init__(f"{dotted(at)}: {message}" if at else message)
        self.at = at


def printable(text: str) -> str:
    """Return a text as one line that cannot act on a terminal: control characters are escaped."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_lines(text: str) -> str:
    """Return a text of several lines that cannot act on a terminal."""
    return "\n".join(map(printable, text.split("\n")))


# --- files


def read_text(path: Path, limit: int = MIB) -> str:
    """Return the text of a regular file of at most `limit` bytes.

    Raises MissingFileError, or InputError for a directory, a FIFO, a file that is too long or
    one that is not UTF-8. Never waits for a writer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: {error.strerror}") from None
    except (OSError, ValueError) as error:  # ValueError: the name has a NUL in it
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{path} is {_kind_of(mode)}, not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise InputError(f"{path} is longer than {limit} bytes, which is the limit for such a file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8: {error.reason}") from None


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def toml_of(path: Path, text: str) -> dict[str, Any]:
    """Return the table of a TOML text. Raises InputError with the line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise InputError(f"{path}:{line[1] if line else 1}: {printable(str(error))}") from None
    except RecursionError:
        raise InputError(f"{path}: tables or lists are nested too deeply") from None
    except ValueError:  # the only other one: Python's limit for the digits of a number
        raise InputError(f"{path}: a number has too many digits") from None


def json_of(path: Path, text: str) -> Any:
    """Return the value of a JSON text. Raises InputError with the line."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: no JSON: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{path}: no JSON that is used here: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{path}: no JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def line_in_toml(text: str, at: At) -> int:
    """Return the line of a key or of a table's header, or the nearest that is found; from 1."""
    nearest, depth = 1, 0
    table: At = ()
    here: At
    counts: dict[At, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            table = _header(stripped, counts)
            here = table
        elif key := re.match(r"\s*(?:\"([^\"]*)\"|'([^']*)'|([\w-]+))\s*[=.]", line):
            here = (*table, next(filter(None, key.groups()), ""))
        else:
            continue
        common = min(len(here), len(at))
        if here[:common] == at[:common] and common > depth:
            nearest, depth = number, common
    return nearest


def _header(line: str, counts: dict[At, int]) -> At:
    """Return the place that a line like `[a.b]` or `[[a]]` begins; `counts` those of `[[a]]`."""
    try:
        document: Any = tomllib.loads(line)
    except (ValueError, RecursionError):
        return ()
    at: At = ()
    while isinstance(document, dict) and document:
        key, document = next(iter(document.items()))
        at = (*at, key)
    if isinstance(document, list):
        counts[at] = counts.get(at, -1) + 1
        at = (*at, counts[at])
    return at


def dotted(at: At) -> str:
    """Return a place in words, like `tests[3].seconds`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at)
    return printable(text.removeprefix("."))


# --- types


@dataclasses.dataclass(frozen=True)
class Check:
    """A limit of a field beyond its type: `holds` for right values, `words` for the message."""

    words: str
    holds: Callable[[Any], bool]


def within(least: float, most: float) -> Check:
    """Limit a number, both ends included."""
    return Check(f"{least} to {most}", lambda value: least <= value <= most)


def one_of(*values: object) -> Check:
    """Limit a value to some."""
    return Check(f"one of {', '.join(map(str, values))}", lambda value: value in values)


def matching(pattern: str, words: str) -> Check:
    """Limit a string to a regular expression, which has to match all of it."""
    compiled = re.compile(pattern)
    return Check(words, lambda value: compiled.fullmatch(value) is not None)


def at_most(count: int) -> Check:
    """Limit the length of a string, a list or a table."""
    return Check(f"at most {count} of them", lambda value: len(value) <= count)


def shown(value: object) -> str:
    """Return a value as a message shows it: short, and printable."""
    try:
        text = printable(repr(value))
    except (ValueError, RecursionError):  # a number with too many digits, or what is nested
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def build(kind: type[T], value: object, at: At = (), extra: bool = False) -> T:
    """Make a value of a type from what a parser returned. Raises WrongValueError.

    Knows str, bool, int, float, Any, None, lists, tuples, dictionaries, Literal, enumerations,
    unions, Annotated with `Check`, and dataclasses, which are made of tables. A key that a
    dataclass does not have is refused unless `extra`. Numbers are finite.
    """
    return cast(T, _build(kind, value, at, extra))


def _build(kind: Any, value: Any, at: At, extra: bool) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        inner, *checks = get_args(kind)
        value = _build(inner, value, at, extra)
        for check in checks:
            if isinstance(check, Check) and not check.holds(value):
                raise WrongValueError(at, f"expected {check.words}, not {shown(value)}")
        return value
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), value, at, extra)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in get_args(kind)):
            raise _wrong(at, f"one of {', '.join(map(str, get_args(kind)))}", value)
        return value
    if origin in (list, tuple):
        return _sequence(kind, origin, value, at, extra)
    if origin in (dict, Mapping):
        return _dictionary(kind, value, at, extra)
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, cast(type, kind)) else _fields(kind, value, at, extra)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise _wrong(
                at, f"one of {', '.join(str(member.value) for member in kind)}", value
            ) from None
    return _plain(kind, value, at)


WORDS = {
    str: "text in quotation marks",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "nothing",
}


def _plain(kind: Any, value: Any, at: At) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 64 else math.inf
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise _wrong(at, WORDS[kind], value)
    if kind is str and re.search("[\ud800-\udfff]", value):
        raise WrongValueError(at, f"expected Unicode text, not {shown(value)}")
    return value


def _wrong(at: At, words: str, value: Any) -> WrongValueError:
    return WrongValueError(at, f"expected {words}, not {shown(value)}")


def _one_of(kinds: tuple[Any, ...], value: Any, at: At, extra: bool) -> Any:
    wrong: list[WrongValueError] = []
    for kind in kinds:
        try:
            return _build(kind, value, at, extra)
        except WrongValueError as error:
            wrong.append(error)
    # The words of the kind that the value is nearest to: the error that lies deepest.
    raise max(wrong, key=lambda error: len(error.at))


def _sequence(kind: Any, origin: Any, value: Any, at: At, extra: bool) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong(at, "a list", value)
    kinds = get_args(kind)
    if origin is tuple and kinds[-1] is not Ellipsis:
        if len(value) != len(kinds):
            raise _wrong(at, f"a list of {len(kinds)}", value)
    else:
        kinds = kinds[:1] * len(value)
    return origin(
        _build(item_kind, item, (*at, index), extra)
        for index, (item_kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _dictionary(kind: Any, value: Any, at: At, extra: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(at, "a table", value)
    key_kind, value_kind = get_args(kind)
    return {
        _build(key_kind, key, (*at, key), extra): _build(value_kind, item, (*at, key), extra)
        for key, item in value.items()
    }


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _fields(kind: Any, value: Any, at: At, extra: bool) -> Any:
    if not isinstance(value, dict):
        raise _wrong(at, "a table", value)
    known = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in value:
        if key not in known and not extra:
            raise WrongValueError((*at, key), f"no such key; there are: {', '.join(known)}")
    for name, field in known.items():
        no_default = field.default is field.default_factory is dataclasses.MISSING
        if no_default and name not in value:
            raise WrongValueError(at, f"needs {name}")
    hints = _hints(kind)
    return kind(
        **{
            name: _build(hints[name], item, (*at, name), extra)
            for name, item in value.items()
            if name in known
        }
    )
