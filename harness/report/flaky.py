"""Whether runs of the suite on the same device came to the same verdicts: `vblk matrix steady`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.report.results import Result, Results, Verdict


@dataclass(frozen=True)
class FlakyResult:
    """A test whose verdict on a target is not the same in all runs.

    `seen` has a verdict for each run, in order; `why` is what the first run with
    the rarest verdict has to say.
    """

    test: str
    column: str
    seen: tuple[Verdict, ...]
    why: str


def flaky_results(runs: Sequence[Results]) -> list[FlakyResult]:
    """Every such test; one that a run does not have was not run there."""
    tests = dict.fromkeys(test for run in runs for test in run.tests)
    columns = dict.fromkeys(column.id for run in runs for column in run.columns)
    found = []
    for test in tests:
        for column in columns:
            results = [_result(run, test, column) for run in runs]
            seen = tuple(result.verdict for result in results)
            if len(set(seen)) > 1:
                counts = Counter(seen)
                odd = min(results, key=lambda one: counts[one.verdict])
                why = odd.deviation.get("why", "") or odd.seen or odd.reason
                found.append(FlakyResult(test, column, seen, why))
    return found


def _result(run: Results, test: str, column: str) -> Result:
    results = run.tests[test].results if test in run.tests else {}
    return results.get(column, Result(Verdict.NOT_RUN))


def lines(runs: Sequence[Results], found: Sequence[FlakyResult]) -> Iterator[str]:
    """What was compared, and each test that was found to waver, as text."""
    tests = {test for run in runs for test in run.tests}
    columns = dict.fromkeys(column.id for run in runs for column in run.columns)
    yield f"{len(runs)} runs, {len(tests)} tests, on {', '.join(columns)}"
    for one in found:
        counts = Counter(one.seen)
        told = ", ".join(f"{verdict} in {counts[verdict]}" for verdict in counts)
        rare = min(counts, key=lambda verdict: counts[verdict])
        numbers = ", ".join(str(n) for n, verdict in enumerate(one.seen, 1) if verdict is rare)
        why = f": {one.why}" if one.why else ""
        yield f"{one.test}, {one.column}: {told}; {rare} in run {numbers}{why}"
    yield f"{len(found)} verdicts are not the same in all runs"
