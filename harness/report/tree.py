"""What a run came to, for a terminal: the failures, and the statements by section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from harness.report.failure import printable
from harness.report.results import ORDER, Result, Results, Test, Verdict, worst
from harness.virtio.sections import section_name

FAILURES = (Verdict.BROKEN, Verdict.ERROR)

TITLES = {Verdict.DEVIATION: "deviates"}
"""Column titles where the verdict's own words are too long for one."""


def failures(results: Results) -> Iterator[str]:
    """A line for each failure, the worst first: the statement, what was expected, what was seen."""
    several = len(results.columns) > 1
    for verdict in FAILURES:
        for test in results.tests.values():
            for column in results.columns:
                result = test.results.get(column.id)
                if result and result.verdict is verdict:
                    place = f", {column.name}" if several else ""
                    statements = _statements(results, test)
                    yield printable(f"{verdict} {statements}{place}: {_seen(result)} ({test.id})")


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
    """A table of the sections that were part of the run, and in each its statements' verdicts.

    A statement counts once, with its worst verdict on any target, for its
    section and for all around it. Hardening is no matter of the specification's
    sections, and left out. Sections deeper than `depth` are part of the
    one around them.
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
    shown = [one for one in ORDER if any(count[one] for count in counts.values())]
    names = {section: _name(section) for section in counts}
    width = max(map(len, names.values()), default=0)
    titles = [TITLES.get(one, one.value) for one in shown]
    yield f"{'section':<{width}}" + "".join(f"  {title:>8}" for title in titles)
    for section, count in counts.items():
        cells = "".join(f"  {count[one] or '-':>8}" for one in shown)
        yield f"{names[section]:<{width}}{cells}"


def _name(section: str) -> str:
    return f"{'  ' * section.count('.')}{section} {section_name(section)}"
