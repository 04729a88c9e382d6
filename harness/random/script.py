"""Scripts as text: an operation a line, as Python would write it; `#` begins a comment."""

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
    """A script that cannot be read; one line with the place."""


def line_of(operation: Operation | Ask) -> str:
    """The operation as text, what is usual left out."""
    said = [
        f"{field.name}={_text(getattr(operation, field.name))}"
        for field in sorted(fields(operation), key=lambda one: one.name in _LAST)
        if getattr(operation, field.name) != field.default
    ]
    return f"{type(operation).__name__}({', '.join(said)})"


_LAST = ("readable", "writable", "indirect")


def _text(value: object) -> str:
    if isinstance(value, Ask):
        return line_of(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def text_of(script: Iterable[Operation], notes: Sequence[str] = ()) -> str:
    """A whole script, with notes above it."""
    lines = [f"# {line}".rstrip() for note in notes for line in note.splitlines()]
    return "\n".join([*lines, *map(line_of, script), ""])


def parse(text: str, name: str = "script") -> list[Operation]:
    """The operations of a script. ScriptError, with the line, if it is none."""
    script: list[Operation] = []
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        try:
            made = _made(ast.parse(bare, mode="eval").body)
        except (SyntaxError, TypeError, ValueError) as error:
            raise ScriptError(f"{name}, line {number}: {error}") from None
        if not isinstance(made, Operation) or isinstance(made, Plug) == bool(script):
            raise ScriptError(f"{name}, line {number}: a script is Plug(...), then operations")
        script.append(made)
    if not script:
        raise ScriptError(f"{name} has no operations")
    return script


def _made(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        kind = KINDS.get(node.func.id)
        if kind is None:
            raise ValueError(f"there is no operation {node.func.id}")
        return kind(**{word.arg or "**": _made(word.value) for word in node.keywords})
    if isinstance(node, ast.Tuple):
        return tuple(map(_made, node.elts))
    return ast.literal_eval(node)


def load(path: Path) -> list[Operation]:
    """The operations of a file. ScriptError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptError(f"{path}: {error}") from None
    return parse(text, str(path))
