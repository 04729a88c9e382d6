"""Merging of several results: of other targets, other versions, or shards of one run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from harness.report.results import ORDER, Column, Result, Results, Test


def merged(parts: Iterable[Results]) -> Results:
    """Return all results in one, the oldest run first.

    The same target with the same versions is one column. If a test ran there more than once, its
    worst result counts, or the later one of two equal results. If texts differ (of a statement, or
    a test's source), the text of the later run is kept. A run that occurs twice counts once.
    """
    union = Results([], [], {}, {})
    for part in sorted(
        parts, key=lambda results: min((run.started for run in results.runs), default="")
    ):
        numbers = []
        for run in part.runs:
            if run not in union.runs:
                union.runs.append(run)
            numbers.append(union.runs.index(run))
        for column in part.columns:
            _add_column(union, column, [numbers[index] for index in column.runs])
        union.rows.update(part.rows)
        for test in part.tests.values():
            union.tests[test.id] = _added(union.tests.get(test.id), test)
    names = list(dict.fromkeys(column.name for column in union.columns))
    union.columns.sort(key=lambda column: names.index(column.name))
    return union


def _add_column(union: Results, column: Column, runs: list[int]) -> None:
    """Add a column, or merge it into the column with the same id."""
    for index, known in enumerate(union.columns):
        if known.id == column.id:
            facts = {
                name: "; ".join(
                    dict.fromkeys(
                        source.facts[name] for source in (known, column) if name in source.facts
                    )
                )
                for name in known.facts | column.facts
            }
            union.columns[index] = replace(
                known,
                facts=facts,
                runs=list(dict.fromkeys((*known.runs, *runs))),
                served=list(dict.fromkeys((*known.served, *column.served))),
            )
            return
    union.columns.append(replace(column, runs=runs))


def _added(known: Test | None, test: Test) -> Test:
    if known is None:
        return replace(test, results=dict(test.results))
    results = dict(known.results)
    for name, result in test.results.items():
        results[name] = _worse(results[name], result) if name in results else result
    return replace(
        test, statements=list(dict.fromkeys(known.statements + test.statements)), results=results
    )


def _worse(earlier: Result, later: Result) -> Result:
    return min((later, earlier), key=lambda result: ORDER.index(result.verdict))
