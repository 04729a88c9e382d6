"""Tables of hardening runs in Markdown: cases and verdicts by target and version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from harness.report.results import Column, Result, Results
from harness.robustness.fate import Fate

RINGS = ("split", "packed")


def tables(results: Results) -> list[str]:
    """Return the lines of three tables: cases by ring, verdicts, and cases with a bad fate."""
    columns = [column for column in results.columns if any(found_on(results, column))]
    return [
        *_cases(results, columns),
        "",
        *_verdicts(results, columns),
        "",
        *_lost(results, columns),
    ]


def found_on(results: Results, column: Column) -> Iterator[tuple[str, Result]]:
    """Yield name and result of the tests with a fate on a target."""
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
        rings = Counter(case.hardening.get("ring") for _, case in found_on(results, column))
        yield _row(column.id, *(rings[ring] for ring in RINGS), rings.total())


def _verdicts(results: Results, columns: Iterable[Column]) -> Iterator[str]:
    counts = {
        column.id: Counter(case.hardening["verdict"] for _, case in found_on(results, column))
        for column in columns
    }
    seen = [verdict for verdict in Fate if any(count[verdict] for count in counts.values())]
    yield from _head("target", *seen)
    for name, count in counts.items():
        yield _row(name, *(count[verdict] or "" for verdict in seen))


def _lost(results: Results, columns: list[Column]) -> Iterator[str]:
    yield from _head("case", *(column.id for column in columns))
    for test in results.tests.values():
        cases = (test.results.get(column.id) for column in columns)
        verdicts = [
            Fate(case.hardening["verdict"]) if case and case.hardening else None for case in cases
        ]
        if any(verdict and not verdict.tolerable for verdict in verdicts):
            yield _row(f"`{test.id.rpartition('/')[2]}`", *map(_cell, verdicts))


def _cell(verdict: Fate | None) -> str:
    if verdict is None:
        return ""
    return "well" if verdict.tolerable else f"**{verdict}**"
