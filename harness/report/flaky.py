"""Tests whose verdicts differ between runs on the same device: `vblk matrix flaky`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.report.results import Result, Results, Verdict


@dataclass(frozen=True)
class FlakyResult:
    """A test whose verdict on a target is not the same in all runs.

    `seen` has a verdict for each run, in order; `why` is the reason given by the first run with the
    rarest verdict.
    """

    test: str
    column: str
    seen: tuple[Verdict, ...]
    why: str


def flaky_results(runs: Sequence[Results]) -> list[FlakyResult]:
    """Return all flaky results. A test that is missing in a run counts as not run there."""
    tests = dict.fromkeys(test for run in runs for test in run.tests)
    columns = dict.fromkeys(column.id for run in runs for column in run.columns)
    flaky = []
    for test in tests:
        for column in columns:
            results = [_result(run, test, column) for run in runs]
            seen = tuple(result.verdict for result in results)
            if len(set(seen)) > 1:
                counts = Counter(seen)
                rarest = min(results, key=lambda result: counts[result.verdict])
                why = rarest.deviation.get("why", "") or rarest.seen or rarest.reason
                flaky.append(FlakyResult(test, column, seen, why))
    return flaky


def _result(run: Results, test: str, column: str) -> Result:
    results = run.tests[test].results if test in run.tests else {}
    return results.get(column, Result(Verdict.NOT_RUN))


def lines(runs: Sequence[Results], flaky: Sequence[FlakyResult]) -> Iterator[str]:
    """Yield the report's lines: the compared runs, and each flaky result."""
    tests = {test for run in runs for test in run.tests}
    columns = dict.fromkeys(column.id for run in runs for column in run.columns)
    yield f"{len(runs)} runs, {len(tests)} tests, on {', '.join(columns)}"
    for result in flaky:
        counts = Counter(result.seen)
        verdicts = ", ".join(f"{verdict} in {counts[verdict]}" for verdict in counts)
        rare = min(counts, key=lambda verdict: counts[verdict])
        numbers = ", ".join(str(n) for n, verdict in enumerate(result.seen, 1) if verdict is rare)
        why = f": {result.why}" if result.why else ""
        yield f"{result.test}, {result.column}: {verdicts}; {rare} in run {numbers}{why}"
    yield f"{len(flaky)} verdicts are not the same in all runs"
