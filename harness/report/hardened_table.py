"""What hardening runs found, as tables in Markdown: cases and verdicts by target and version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from harness.report.results import Column, Result, Results
from harness.robustness.fate import Fate

RINGS = ("split", "packed")


def tables(results: Results) -> list[str]:
    """The lines of three tables: cases by ring, verdicts, and the cases that were lost."""
    columns = [column for column in results.columns if any(found_on(results, column))]
    return [
        *_cases(results, columns),
        "",
        *_verdicts(results, columns),
        "",
        *_lost(results, columns),
    ]


def found_on(results: Results, column: Column) -> Iterator[tuple[str, Result]]:
    """The tests that have a verdict on a target, by name, and their results there."""
    for test in results.tests.values():
        if column.id in test.results and test.results[column.id].hardening:
            yield test.id, test.results[column.id]


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _head(*titles: str) -> list[str]:
    return [_row(*titles), _row(*["---"] * len(titles))]


def _cases(results: Results, columns: Iterable[Column]) -> Iterator[str]:
    yield from _head("target", *RINGS, "cases")
    for column in columns:
        rings = Counter(one.hardening.get("ring") for _, one in found_on(results, column))
        yield _row(column.id, *(rings[ring] for ring in RINGS), rings.total())


def _verdicts(results: Results, columns: Iterable[Column]) -> Iterator[str]:
    counts = {
        column.id: Counter(one.hardening["verdict"] for _, one in found_on(results, column))
        for column in columns
    }
    seen = [verdict for verdict in Fate if any(count[verdict] for count in counts.values())]
    yield from _head("target", *seen)
    for name, count in counts.items():
        yield _row(name, *(count[verdict] or "" for verdict in seen))


def _lost(results: Results, columns: list[Column]) -> Iterator[str]:
    yield from _head("case", *(column.id for column in columns))
    for test in results.tests.values():
        found = (test.results.get(column.id) for column in columns)
        verdicts = [
            Fate(one.hardening["verdict"]) if one and one.hardening else None for one in found
        ]
        if any(verdict and not verdict.tolerable for verdict in verdicts):
            yield _row(f"`{test.id.rpartition('/')[2]}`", *map(_cell, verdicts))


def _cell(verdict: Fate | None) -> str:
    if verdict is None:
        return ""
    return "well" if verdict.tolerable else f"**{verdict}**"
