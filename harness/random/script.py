"""Scripts as text: one operation per line, in Python's syntax; `#` begins a comment."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.inputs import InputError, build, printable, read_text, shown
from harness.random import illegal, operations
from harness.random.operations import Ask, Operation, Plug

KINDS: dict[str, type[Any]] = {
    name: kind
    for name, kind in (vars(operations) | vars(illegal)).items()
    if isinstance(kind, type)
    and issubclass(kind, (Operation, Ask))
    and kind not in (Operation, Ask, illegal.Mischief)
}


MOST_OPERATIONS = 10_000
HOSTILE = (Plug, operations.Start, operations.Resize, illegal.Mischief)
"""Operations of a script that breaks rules."""


class ScriptError(Exception):
    """Error of a script that cannot be read. The message is one line with the place."""


def line_of(operation: Operation | Ask) -> str:
    """Return an operation as text, without fields that have their default value."""
    arguments = [
        f"{field.name}={_text(getattr(operation, field.name))}"
        for field in sorted(fields(operation), key=lambda field: field.name in _LAST)
        if getattr(operation, field.name) != field.default
    ]
    return f"{type(operation).__name__}({', '.join(arguments)})"


_LAST = ("readable", "writable", "indirect")


def _text(value: object) -> str:
    if isinstance(value, Ask):
        return line_of(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def text_of(script: Iterable[Operation], notes: Sequence[str] = ()) -> str:
    """Return a whole script as text, with notes as comments at the top."""
    lines = [f"# {line}".rstrip() for note in notes for line in note.splitlines()]
    return "\n".join([*lines, *map(line_of, script), ""])


def parse(text: str, name: str = "script") -> list[Operation]:
    """Return the operations of a script. ScriptError, in one line with the place, if it is none."""
    script: list[Operation] = []
    hostile = False
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        where = f"{name}, line {number}"
        try:
            operation = _made(ast.parse(bare, mode="eval").body)
        except SyntaxError as error:
            raise ScriptError(f"{where}: {printable(error.msg)}") from None
        except (RecursionError, MemoryError):
            raise ScriptError(f"{where}: nested too deeply") from None
        except ValueError as error:
            raise ScriptError(f"{where}: {printable(str(error))}") from None
        if not isinstance(operation, Operation) or isinstance(operation, Plug) == bool(script):
            raise ScriptError(f"{where}: a script is one Plug(...), followed by other operations")
        hostile = hostile or isinstance(operation, illegal.Mischief)
        script.append(operation)
        if len(script) > MOST_OPERATIONS:
            raise ScriptError(f"{where}: more than {MOST_OPERATIONS} operations")
        if hostile and not all(isinstance(played, HOSTILE) for played in script):
            raise ScriptError(f"{where}: a script with {type(operation).__name__} has no requests")
    if not script:
        raise ScriptError(f"{name} has no operations")
    return script


def _made(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        kind = KINDS.get(node.func.id)
        if kind is None:
            raise ValueError(f"unknown operation {node.func.id}")
        return build(kind, {word.arg or "**": _made(word.value) for word in node.keywords})
    if isinstance(node, ast.Tuple):
        return tuple(map(_made, node.elts))
    value = ast.literal_eval(node)
    if not isinstance(value, (int, str, type(None))):
        raise ValueError(f"{shown(value)} is no number, text, True, False, None or (...)")
    return value


def load(path: Path) -> list[Operation]:
    """Return the operations of a file. ScriptError if it cannot be read."""
    try:
        return parse(read_text(path), str(path))
    except InputError as error:
        raise ScriptError(str(error)) from None
