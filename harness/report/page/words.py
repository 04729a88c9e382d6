"""Conversion to HTML: all texts of the page pass through these functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from harness.report.results import Column, Results, Verdict

SHORT = {Verdict.DEVIATION: "deviates"}
"""Texts of a cell for verdicts whose names are too long."""

BAD = (Verdict.BROKEN, Verdict.ERROR, Verdict.DEVIATION, Verdict.ADVISORY)
"""Verdicts that need an explanation."""

# A page is text. Control characters and single surrogates have no place in it.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def text(words: object) -> str:
    """Return a text as HTML, also usable in an attribute."""
    return escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(words)))


def code(verdict: Verdict) -> str:
    """Return a verdict's class on the page: the first letter of its cell text."""
    return word(verdict)[0]


def word(verdict: Verdict) -> str:
    """Return a verdict's text in a cell."""
    return SHORT.get(verdict, verdict.value)


def tag(verdict: Verdict) -> str:
    """Return a verdict with its colour, for use in a sentence."""
    return f'<b class="v {code(verdict)}">{text(verdict.value)}</b>'


def quoted(words: str) -> str:
    """Return a string of CSS in which everything but letters and digits is escaped."""
    return '"' + re.sub(r"[^A-Za-z0-9]", lambda match: f"\\{ord(match[0]):x} ", words) + '"'


def link(url: str, words: str) -> str:
    """Return a link if the URL is one of the web; otherwise only the text."""
    if not re.match(r"https?://", url):
        return text(words)
    return f'<a href="{text(url)}" rel="noreferrer">{text(words)}</a>'


def many(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def labels(results: Results) -> dict[str, str]:
    """Return column id -> label. A target that occurs once needs no version."""
    names = [column.name for column in results.columns]
    return {
        column.id: column.name if names.count(column.name) == 1 else column.id
        for column in results.columns
    }


def versions(column: Column) -> str:
    """Return the implementations of a column with their versions."""
    return ", ".join(f"{name} {version}" for name, version in column.implementations.items())


def listed(columns: Iterable[str], all_columns: int) -> str:
    """Return the targets' labels, or "all N targets"."""
    names = list(columns)
    if len(names) == all_columns and all_columns > 1:
        return f"all {all_columns} targets"
    return ", ".join(map(text, names))
