"""Scripts as text: one operation per line, in Python's syntax; `#` begins a comment."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.random import illegal, operations
from harness.random.operations import Ask, Operation, Plug

KINDS: dict[str, type[Any]] = {
    name: kind
    for name, kind in (vars(operations) | vars(illegal)).items()
    if isinstance(kind, type)
    and issubclass(kind, (Operation, Ask))
    and kind not in (Operation, Ask, illegal.Mischief)
}


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
    """Return the operations of a script. Raise ScriptError, with the line, for a bad script."""
    script: list[Operation] = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        try:
            operation = _made(ast.parse(bare, mode="eval").body)
        except (SyntaxError, TypeError, ValueError) as error:
            raise ScriptError(f"{name}, line {number}: {error}") from None
        if not isinstance(operation, Operation) or isinstance(operation, Plug) == bool(script):
            raise ScriptError(
                f"{name}, line {number}: a script is one Plug(...), followed by other operations"
            )
        script.append(operation)
    if not script:
        raise ScriptError(f"{name} has no operations")
    return script


def _made(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        kind = KINDS.get(node.func.id)
        if kind is None:
            raise ValueError(f"unknown operation {node.func.id}")
        return kind(**{word.arg or "**": _made(word.value) for word in node.keywords})
    if isinstance(node, ast.Tuple):
        return tuple(map(_made, node.elts))
    return ast.literal_eval(node)


def load(path: Path) -> list[Operation]:
    """Return the operations of a file. Raise ScriptError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptError(f"{path}: {error}") from None
    return parse(text, str(path))
