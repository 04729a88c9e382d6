"""Results on the terminal: the failures, and the statements by section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from harness.report.failure import printable
from harness.report.results import ORDER, Result, Results, Test, Verdict, worst
from harness.virtio.sections import section_name

FAILURES = (Verdict.BROKEN, Verdict.ERROR)

TITLES = {Verdict.DEVIATION: "deviates"}
"""Column titles for verdicts whose names are too long."""


GROUPED = (Verdict.DEVIATION, Verdict.ADVISORY, Verdict.SKIPPED)
"""Verdicts that the end of a run shows by their reasons."""


def failures(results: Results) -> Iterator[str]:
    """Yield a line for each failure, the worst first: the statement, the expected and the seen."""
    several = len(results.columns) > 1
    for verdict in FAILURES:
        for test in results.tests.values():
            for column in results.columns:
                result = test.results.get(column.id)
                if result and result.verdict is verdict:
                    place = f", {column.name}" if several else ""
                    statements = _statements(results, test)
                    yield printable(f"{verdict} {statements}{place}: {_seen(result)} ({test.id})")


def groups(results: Results, most: int | None) -> Iterator[str]:
    """Yield a line for each recorded deviation, each SHOULD not kept, and each reason of a skip.

    A line has the number of tests, and the largest number comes first. At most `most` lines of each
    of the three kinds are yielded, and then one line for the rest.
    """
    kinds: dict[Verdict, Counter[str]] = {verdict: Counter() for verdict in GROUPED}
    for test in results.tests.values():
        for result in test.results.values():
            if result.verdict is Verdict.DEVIATION:
                why = f"{result.deviation.get('statement')}: {result.deviation.get('why')}"
                kinds[result.verdict][why] += 1
            elif result.verdict is Verdict.ADVISORY:
                kinds[result.verdict][f"{_statements(results, test)}: {_seen(result)}"] += 1
            elif result.verdict is Verdict.SKIPPED:
                kinds[result.verdict][result.reason] += 1
    for verdict, reasons in kinds.items():
        shown = reasons.most_common(most)
        for reason, count in shown:
            yield printable(f"{count} {verdict}: {reason}")
        if rest := len(reasons) - len(shown):
            left = reasons.total() - sum(count for _, count in shown)
            yield f"{left} {verdict}: {rest} other reasons; -ra lists all"


def _statements(results: Results, test: Test) -> str:
    """Return the statements by id (by section if they have none), level and words."""
    rows = [results.rows[name] for name in test.statements]
    return ", ".join(
        f'{row.id if row.kind == "catalogue" else row.section} {row.level} "{row.text}"'
        for row in rows
    )


def _seen(result: Result) -> str:
    expected = f"expected {result.expected}, " if result.expected else ""
    return f"{expected}seen {result.seen}"


def tree(results: Results, depth: int | None) -> Iterator[str]:
    """Yield a table of the tested sections, each with the verdicts of its statements.

    A statement counts once, with its worst verdict on any target, in its section and all sections
    around it. Hardening does not belong to the specification's sections, and is left out. Sections
    deeper than `depth` count in the section around them.
    """
    verdicts = results.verdicts()
    counts: dict[str, Counter[Verdict]] = {}
    for row in results.ordered_rows():
        verdict = worst(verdicts[row.id].values())
        if verdict is Verdict.NOT_RUN or row.level == "hardening":
            continue
        numbers = row.section.split(".")
        for length in range(1, min(len(numbers), depth or len(numbers)) + 1):
            counts.setdefault(".".join(numbers[:length]), Counter())[verdict] += 1
    shown = [verdict for verdict in ORDER if any(count[verdict] for count in counts.values())]
    names = {section: _name(section) for section in counts}
    width = max(map(len, names.values()), default=0)
    titles = [TITLES.get(verdict, verdict.value) for verdict in shown]
    yield f"{'section':<{width}}" + "".join(f"  {title:>8}" for title in titles)
    for section, count in counts.items():
        cells = "".join(f"  {count[verdict] or '-':>8}" for verdict in shown)
        yield f"{names[section]:<{width}}{cells}"


def _name(section: str) -> str:
    return f"{'  ' * section.count('.')}{section} {section_name(section)}"
