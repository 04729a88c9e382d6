"""How the page says things: everything in it passes through here on its way to HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from harness.report.results import Column, Results, Verdict

SHORT = {Verdict.DEVIATION: "deviates"}
"""Words of a cell where the verdict's own are too long for one."""

BAD = (Verdict.BROKEN, Verdict.ERROR, Verdict.DEVIATION, Verdict.ADVISORY)
"""Verdicts that need to be explained."""

# A page is text: what would ring, move or hide has no place in it, nor has half a character.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def text(words: object) -> str:
    """Words as HTML text, fit for an attribute too."""
    return escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(words)))


def code(verdict: Verdict) -> str:
    """A verdict's class on the page: the first letter of its word."""
    return word(verdict)[0]


def word(verdict: Verdict) -> str:
    """A verdict as a cell has it."""
    return SHORT.get(verdict, verdict.value)


def tag(verdict: Verdict) -> str:
    """A verdict in its colour, within a sentence."""
    return f'<b class="v {code(verdict)}">{text(verdict.value)}</b>'


def quoted(words: str) -> str:
    """Words as a string of CSS: whatever is no letter or digit is escaped."""
    return '"' + re.sub(r"[^A-Za-z0-9]", lambda found: f"\\{ord(found[0]):x} ", words) + '"'


def link(url: str, words: str) -> str:
    """A link to the web, if that is what the URL is; the words alone if not."""
    if not re.match(r"https?://", url):
        return text(words)
    return f'<a href="{text(url)}" rel="noreferrer">{text(words)}</a>'


def many(count: int, noun: str, plural: str = "") -> str:
    """A number and what is counted."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def labels(results: Results) -> dict[str, str]:
    """Column id -> what it is called: a target that is there once needs no version."""
    names = [column.name for column in results.columns]
    return {
        column.id: column.name if names.count(column.name) == 1 else column.id
        for column in results.columns
    }


def versions(column: Column) -> str:
    """What made a column up."""
    return ", ".join(f"{name} {version}" for name, version in column.implementations.items())


def listed(columns: Iterable[str], all_columns: int) -> str:
    """Targets by their labels; all of them have one word."""
    some = list(columns)
    if len(some) == all_columns and all_columns > 1:
        return f"all {all_columns} targets"
    return ", ".join(map(text, some))
