"""Several results as one: of other targets, other versions, or shards of one run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from harness.report.results import ORDER, Column, Result, Results, Test


def merged(parts: Iterable[Results]) -> Results:
    """All that was found, oldest run first.

    The same target on the same versions is one column. Of a test that ran there
    more than once the worst result counts, and the later of two alike. Where
    words differ (a statement's, a test's source) those of the later run stay. A
    run that comes twice counts once.
    """
    made = Results([], [], {}, {})
    for part in sorted(parts, key=lambda one: min((run.started for run in one.runs), default="")):
        numbers = []
        for run in part.runs:
            if run not in made.runs:
                made.runs.append(run)
            numbers.append(made.runs.index(run))
        for column in part.columns:
            _add_column(made, column, [numbers[index] for index in column.runs])
        made.rows.update(part.rows)
        for test in part.tests.values():
            made.tests[test.id] = _added(made.tests.get(test.id), test)
    names = list(dict.fromkeys(column.name for column in made.columns))
    made.columns.sort(key=lambda column: names.index(column.name))
    return made


def _add_column(made: Results, column: Column, runs: list[int]) -> None:
    """Versions of a target stand beside each other, in the order in which they came."""
    for index, known in enumerate(made.columns):
        if known.id == column.id:
            facts = {
                name: "; ".join(
                    dict.fromkeys(one.facts[name] for one in (known, column) if name in one.facts)
                )
                for name in known.facts | column.facts
            }
            made.columns[index] = replace(
                known, facts=facts, runs=list(dict.fromkeys((*known.runs, *runs)))
            )
            return
    made.columns.append(replace(column, runs=runs))


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
