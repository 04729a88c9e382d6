"""Tables for the docs: how much of the specification the suite covers, and the verdicts of runs.

`docs/coverage.json` keeps the verdicts of some runs by target and section. The tables in
`docs/coverage.md` and `README.md` are made from it, from the catalogue and from the suite's
markers. Comments in these files name the places of the tables.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.inputs import (
    InputError,
    MissingFileError,
    WrongValueError,
    build,
    json_of,
    read_text,
)
from harness.outputs import replace_text
from harness.report.merge import merged
from harness.report.results import (
    LIMIT,
    ORDER,
    Column,
    Results,
    Seconds,
    Section,
    Verdict,
    made_of,
)
from harness.virtio.catalogue import VHOST_USER, clauses, section_order
from harness.virtio.sections import section_url

PAGE, SUMMARY, README = Path("docs/coverage.md"), Path("docs/coverage.json"), Path("README.md")

MAKE = "vblk matrix counts"
"""Command that makes the tables."""

CHAPTERS = ("2", "3", "4.1", "4.2", "5.2", "6", "7")
"""Parts of the specification, for a short table."""

LETTER = {
    Verdict.BROKEN: "b",
    Verdict.ERROR: "e",
    Verdict.DEVIATION: "d",
    Verdict.ADVISORY: "a",
}


class CoverageError(Exception):
    """Error of a file that is not as required. The message is one line that says what to do."""


@dataclass(frozen=True)
class Bound:
    """The ids that the markers in a suite name."""

    clauses: frozenset[str]

    @classmethod
    def by(cls, suite: Path) -> Bound:
        """Read the markers from the test modules in a directory, without running the modules."""
        named: set[str] = set()
        for path in sorted(suite.rglob("test_*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                    continue
                if node.func.id in ("clause", "described"):
                    named |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
        return cls(frozenset(named))


@dataclass(frozen=True)
class Group:
    """Numbers of a part of the specification.

    `statements` are those whose violation can be seen, `tested` those with a test, `reasoned` those
    with a reason for having none; `described` is behaviour without a keyword.
    """

    name: str
    statements: int
    tested: int
    reasoned: int
    described: int


def group(name: str, bound: Bound, below: bool = True) -> Group:
    """Count a section, with or without its subsections; an empty name counts all of virtio."""

    def inside(section: str) -> bool:
        return _within(section, name) if below else section == name

    within = [clause for clause in clauses().values() if inside(clause.section)]
    stated = [clause for clause in within if clause.level != "described"]
    return Group(
        name,
        len(stated),
        sum(clause.id in bound.clauses for clause in stated),
        sum(bool(clause.untested) for clause in stated),
        sum(clause.id in bound.clauses for clause in within if clause.level == "described"),
    )


def _within(section: str, wanted: str) -> bool:
    """Return True for a section inside the wanted one; an empty name contains all of virtio."""
    if not wanted:
        return section != VHOST_USER
    return section == wanted or section.startswith(wanted + ".")


def sections() -> list[str]:
    """Return all sections with a statement or a description, in the specification's order."""
    return sorted({clause.section for clause in clauses().values()}, key=section_order)


Counts = Mapping[str, Mapping[Verdict, int]]
"""Section -> number of its statements with each verdict."""


@dataclass(frozen=True)
class Verdicts:
    """Verdicts of a target's runs by section, for statements with a keyword only.

    `implementations` make up the device: name -> version. `tests` counts tests; `seconds` is their
    total duration.
    """

    target: str
    implementations: Mapping[str, str]
    sections: Counts
    tests: Mapping[Verdict, int]
    seconds: float

    @classmethod
    def of(cls, results: Results, column: Column) -> Verdicts:
        """Count the verdicts of a column."""
        verdicts = results.verdicts()
        counts: dict[str, Counter[Verdict]] = {}
        for row in results.rows.values():
            if row.kind == "catalogue" and row.level != "described":
                found = counts.setdefault(row.section, Counter())
                found[verdicts[row.id][column.id]] += 1
        ran = [
            test.results[column.id] for test in results.tests.values() if column.id in test.results
        ]
        return cls(
            column.name,
            dict(column.implementations),
            counts,
            Counter(result.verdict for result in ran),
            sum(result.seconds for result in ran),
        )

    def within(self, name: str) -> Counter[Verdict]:
        """Return the verdicts of a section and its subsections; an empty name returns all."""
        total: Counter[Verdict] = Counter()
        for section, counts in self.sections.items():
            if _within(section, name):
                total.update(counts)
        return total


def dumped(verdicts: Iterable[Verdicts]) -> str:
    """Return the JSON that `loaded` reads."""
    document = [
        {
            "target": entry.target,
            "implementations": dict(entry.implementations),
            "sections": {
                section: _words(counts)
                for section, counts in sorted(
                    entry.sections.items(), key=lambda item: section_order(item[0])
                )
            },
            "tests": _words(entry.tests),
            "seconds": round(entry.seconds),
        }
        for entry in verdicts
    ]
    return json.dumps(document, indent=1) + "\n"


def _words(counts: Mapping[Verdict, int]) -> dict[str, int]:
    return {verdict.value: counts[verdict] for verdict in ORDER if counts.get(verdict)}


@dataclass
class _Kept:
    """An entry of the summary, as it is written there."""

    target: str
    implementations: dict[str, str]
    sections: dict[Section, dict[Verdict, int]]
    tests: dict[Verdict, int]
    seconds: Seconds


def loaded(path: Path) -> list[Verdicts]:
    """Return the verdicts in a file; none if there is no file.

    Raise CoverageError for a damaged file.
    """
    try:
        kept = build(list[_Kept], json_of(path, read_text(path, LIMIT)))
    except MissingFileError:
        return []
    except InputError as error:
        raise CoverageError(f"{error}; {MAKE} RESULTS.json makes it") from None
    except WrongValueError as error:
        raise CoverageError(f"{path} is damaged: {error}; {MAKE} RESULTS.json makes it") from None
    return [
        Verdicts(
            entry.target,
            entry.implementations,
            {section: Counter(counts) for section, counts in entry.sections.items()},
            Counter(entry.tests),
            entry.seconds,
        )
        for entry in kept
    ]


# --- tables


def statements_table(bound: Bound, names: Iterable[str], below: bool) -> list[str]:
    """Return a table of the named sections, with or without subsections, and a total."""
    lines = [
        "| section | statements | tested | with a reason for none | described, tested |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for part in (*(group(name, bound, below) for name in names), group("", bound)):
        numbers = " | ".join(
            f"{number or ''}" for number in (part.statements, part.tested, part.reasoned)
        )
        name = section_link(part.name) if part.name else "**all**"
        lines.append(f"| {name} | {numbers} | {part.described or ''} |")
    return lines


def section_link(section: str) -> str:
    """Return a section's number, linked to the specification."""
    return f"[{section}]({section_url(section)})"


def summary_line(bound: Bound, verdicts: Iterable[Verdicts]) -> str:
    """Return the numbers of statements and of recorded results in two sentences."""
    whole = group("", bound)
    tests: Counter[Verdict] = Counter()
    runs = 0
    for run in verdicts:
        runs += 1
        tests.update(run.tests)
    failed = tests[Verdict.BROKEN] + tests[Verdict.ERROR]
    expected = tests[Verdict.DEVIATION] + tests[Verdict.ADVISORY]
    return (
        f"The suite tests {whole.tested} of {whole.statements} statements that bind a device, and"
        f" {whole.described} behaviours that are described without MUST or SHOULD;"
        f" {whole.reasoned} statements cannot be tested. The {runs} recorded runs have"
        f" {tests[Verdict.KEPT]} passed tests, {expected} expected failures, {failed} failures and"
        f" {tests[Verdict.SKIPPED]} skips."
    )


def totals_table(verdicts: Iterable[Verdicts]) -> list[str]:
    """Return a table of the statements with each verdict, for each target and version."""
    shown = [verdict for verdict in ORDER if verdict is not Verdict.NOT_RUN]
    lines = [
        f"| target | version | {' | '.join(shown)} |",
        f"| --- | --- |{' ---: |' * len(shown)}",
    ]
    for target in verdicts:
        total = target.within("")
        # A statement without a test counts as one that cannot run here.
        total[Verdict.SKIPPED] += total[Verdict.NOT_RUN]
        numbers = " | ".join(str(total[verdict]) for verdict in shown)
        lines.append(f"| `{target.target}` | {made_of(target.implementations)} | {numbers} |")
    return lines


def runs_table(verdicts: Iterable[Verdicts]) -> list[str]:
    """Return a table of the suite's outcomes and durations, for each target and version."""
    lines = [
        "| target | version | passed | expected failures | failed | skipped | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for target in verdicts:
        tests = Counter(target.tests)
        numbers = (
            tests[Verdict.KEPT],
            tests[Verdict.DEVIATION] + tests[Verdict.ADVISORY],
            tests[Verdict.BROKEN] + tests[Verdict.ERROR],
            tests[Verdict.SKIPPED],
            round(target.seconds),
        )
        cells = " | ".join(map(str, numbers))
        lines.append(f"| `{target.target}` | {made_of(target.implementations)} | {cells} |")
    return lines


def sections_tables(verdicts: Iterable[Verdicts]) -> list[str]:
    """Return a table of the verdicts by section for each version of QEMU and its tools."""
    by_version: dict[frozenset[str], list[Verdicts]] = {}
    for target in verdicts:
        by_version.setdefault(frozenset(target.implementations.values()), []).append(target)
    lines = []
    for columns in by_version.values():
        parts = {
            name: version for target in columns for name, version in target.implementations.items()
        }
        names = sorted({name for target in columns for name in target.sections}, key=section_order)
        lines += ["", f"### {made_of(parts)}", ""]
        lines.append(f"| section | {' | '.join(f'`{target.target}`' for target in columns)} |")
        lines.append(f"| --- |{' --- |' * len(columns)}")
        for name in names:
            cells = " | ".join(_cell(Counter(target.sections.get(name, {}))) for target in columns)
            lines.append(f"| {section_link(name)} | {cells} |")
    return lines


def _cell(counts: Counter[Verdict]) -> str:
    """Return the kept statements of all, and the others.

    "7/9 1d" has one known deviation, and one skipped.
    """
    others = [f"{counts[verdict]}{letter}" for verdict, letter in LETTER.items() if counts[verdict]]
    return " ".join([f"{counts[Verdict.KEPT]}/{counts.total()}", *others])


def protocol_table() -> list[str]:
    """Return a table of the statements about the vhost-user protocol, with their places."""
    lines = ["| statement | heading in the document | what it demands |", "| --- | --- | --- |"]
    for clause in clauses().values():
        if clause.section == VHOST_USER:
            lines.append(f"| {clause.id} | {clause.place} | {clause.text} |")
    return lines


# --- files


def keep(root: Path, parts: Iterable[Results]) -> None:
    """Write the verdicts of these results, and no others, to the summary."""
    results = merged(parts)
    verdicts = [Verdicts.of(results, column) for column in results.columns]
    replace_text(root / SUMMARY, dumped(verdicts))


def made(root: Path) -> dict[Path, str]:
    """Return the new texts of the files with tables, by path. Raise CoverageError if that fails."""
    bound = Bound.by(root / "conformance")
    verdicts = loaded(root / SUMMARY)
    blocks = {
        PAGE: {
            "statements": statements_table(bound, sections(), below=False),
            "reasons": [
                f"- {clause.id}: {clause.untested}"
                for clause in clauses().values()
                if clause.untested
            ],
            "protocol": protocol_table(),
            "chapters": statements_table(bound, CHAPTERS, below=True),
            "totals": totals_table(verdicts),
            "verdicts": sections_tables(verdicts),
            "runs": runs_table(verdicts),
        },
        README: {"totals": [summary_line(bound, verdicts)]},
    }
    texts = {}
    for name, parts in blocks.items():
        path = root / name
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise CoverageError(f"{path}: {error.strerror}; run it in a checkout") from None
        for part, lines in parts.items():
            text = replaced(path, text, part, lines, MAKE)
        texts[path] = text
    return texts


def replaced(path: Path, text: str, part: str, lines: Iterable[str], make: str) -> str:
    """Return the text with new lines between two comments.

    `make` is the command that makes them.

    Raise CoverageError if the text does not contain the two comments.
    """
    begin, end = f"<!-- {part}: made by {make} -->", f"<!-- {part}: end -->"
    head, opened, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not opened or not closed:
        raise CoverageError(f"{path} has no place between {begin} and {end}")
    return "\n".join([head + begin, "", *lines, "", end + tail])


def stale(root: Path) -> list[Path]:
    """Return the files whose tables are out of date."""
    return [path for path, text in made(root).items() if path.read_text(encoding="utf-8") != text]
