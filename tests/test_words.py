"""Plain words: checks of docstrings, comments, messages and variable names.

`WORDS_NOT_YET` and `NAMES_NOT_YET` list the folders and modules whose words are still to be
rewritten. Remove an entry as soon as its files pass; never add one. To extend the rules, add a
word to `NO_FIRST_WORD`, `NOT_PLAIN` or `NOT_NAMES`, and see the check fail on an old file.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FOLDERS = ("harness", "images", "conformance", "tests")

WORDS_NOT_YET: tuple[str, ...] = ()
"""Paths, as prefixes, whose docstrings, comments and messages are not checked yet."""

NAMES_NOT_YET = WORDS_NOT_YET
"""Paths, as prefixes, whose variable names are not checked yet."""

NO_FIRST_WORD = frozenset(
    {"What", "How", "Who", "Whose", "Whom", "Where", "Whether", "Which", "Of", "Lest"}
)
"""Words that no docstring begins with: they begin a question or an inverted sentence."""

NOT_PLAIN = re.compile(r"\b(anew|lest|so many|let be|thereof|whereupon|hitherto|ere)\b", re.I)
"""Words and phrases that a reader whose first language is not English need not know."""

NOT_NAMES = frozenset({"one", "said", "told", "made", "odd", "usual"})
"""Names that no variable has: an adjective or a participle does not say what it holds."""

MESSAGE = 200
"""Longest message in characters: two lines of the width that this project writes."""

PLACEHOLDER = 8
"""Characters that a value in an f-string counts for."""


def sources(not_yet: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the path below the project and the text of every file that is checked."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(not_yet) and path != Path(__file__):
                yield name, path.read_text(encoding="utf-8")


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of all docstrings, those below a constant or a field included."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of all comments."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def literal(node: ast.expr) -> str:
    """Return the text of a string or an f-string, with `PLACEHOLDER` dots for each value."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(literal, values))
        case ast.FormattedValue():
            return "." * PLACEHOLDER
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return literal(left) + literal(right)
    return ""


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of what is raised, and of the reasons of skips and failures."""
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call() as call):
                pass
            case ast.Call(func=ast.Attribute(attr="skip" | "fail" | "skipif" | "xfail")) as call:
                pass
            case _:
                continue
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            if text := literal(argument):
                yield call.lineno, text


def begins_badly(text: str) -> str:
    """Return the fault of a docstring's first paragraph; empty if there is none."""
    paragraph = text.strip().split("\n\n")[0]
    first, *_ = (*paragraph.split(), "")
    if first.strip(",") in NO_FIRST_WORD:
        return f"begins with {first!r}"
    if re.fullmatch(r"[a-z]+[,:;.]?", first):
        return f"begins with {first!r}: neither a capital nor the name of something in the code"
    if not paragraph.endswith((".", ":", ".)")):
        return "first paragraph ends without a full stop"
    return ""


def faults(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and fault of everything in a source text that is not plain."""
    tree = ast.parse(text)
    for line, docstring in docstrings(tree):
        if fault := begins_badly(docstring):
            yield line, fault
    for line, message in messages(tree):
        if len(message) > MESSAGE:
            yield line, f"message of {len(message)} characters, more than {MESSAGE}"
    for line, words in (*docstrings(tree), *comments(text), *messages(tree)):
        if match := NOT_PLAIN.search(" ".join(words.split())):
            yield line, f"says {match[0]!r}"


def bad_names(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of every variable and parameter that `NOT_NAMES` has."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) if name in NOT_NAMES:
                yield node.lineno, f"variable {name!r}"


def test_the_words_are_plain() -> None:
    assert [
        f"{name}:{line}: {fault}"
        for name, text in sources(WORDS_NOT_YET)
        for line, fault in faults(text)
    ] == []


def test_the_names_of_variables_are_nouns() -> None:
    assert [
        f"{name}:{line}: {fault}"
        for name, text in sources(NAMES_NOT_YET)
        for line, fault in bad_names(text)
    ] == []


def test_what_is_not_checked_yet_exists() -> None:
    assert [path for path in (*WORDS_NOT_YET, *NAMES_NOT_YET) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "text",
    [
        '"""What a disk is."""',
        'X = 1\n"""bytes of a sector."""',
        'def f():\n    """Return it"""',
        'def f():\n    """Return it anew."""',
        "x = 1  # lest it ends",
        f"raise ValueError('{'x' * 201}')",
        f"pytest.skip(f'{{x}}{'x' * 201}')",
        "raise ValueError('so ' 'many of them')",
    ],
)
def test_words_that_are_not_plain_are_found(text: str) -> None:
    assert list(faults(text))


@pytest.mark.parametrize(
    "text",
    [
        '"""Disks, by name."""',
        'X = 1\n"""`type`, `sector`."""',
        'X = 1\n"""nr_zones of a report."""',
        'def f():\n    """Return the sectors\n    of a disk.\n\n    More, of any form\n    """',
        f"raise ValueError(f'{'x' * 190}')  # any more",
    ],
)
def test_plain_words_are_not_found(text: str) -> None:
    assert not list(faults(text))


@pytest.mark.parametrize(
    "text", ["for one in x: pass", "[one for one in x]", "said = 1", "def f(told): pass"]
)
def test_a_variable_that_is_no_noun_is_found(text: str) -> None:
    assert list(bad_names(text))
