"""How much of the specification the suite covers, and what came of it: tables for the docs.

`docs/coverage.json` keeps the verdicts of some runs by target and section. The
tables in `docs/coverage.md` and `README.md` are made of it, of the catalogue
and of the suite's markers, and stand between comments that name them.
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
    text_of,
)
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
from harness.virtio.catalogue import clauses, section_order

PAGE, SUMMARY, README = Path("docs/coverage.md"), Path("docs/coverage.json"), Path("README.md")

MAKE = "vblk matrix counts"
"""The command that makes the tables."""

CHAPTERS = ("2", "3", "4.1", "4.2", "5.2", "6", "7")
"""The parts of the specification, for a short table."""

LETTER = {
    Verdict.BROKEN: "b",
    Verdict.ERROR: "e",
    Verdict.DEVIATION: "d",
    Verdict.ADVISORY: "a",
}


class CoverageError(Exception):
    """A file is not as it has to be; one line that says what to do."""


@dataclass(frozen=True)
class Bound:
    """What the markers in a suite name: ids of the catalogue, and (section, words) without one."""

    clauses: frozenset[str]
    prose: frozenset[tuple[str, str]]

    @classmethod
    def by(cls, suite: Path) -> Bound:
        """Read it from the test modules in a directory; nothing of them is run."""
        named: set[str] = set()
        prose: set[tuple[str, str]] = set()
        for path in sorted(suite.glob("test_*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                    continue
                words = [one.value for one in node.args if isinstance(one, ast.Constant)]
                if node.func.id == "clause":
                    named |= {str(word) for word in words}
                elif node.func.id == "described" and len(words) == 2:
                    prose.add((str(words[0]), str(words[1])))
        return cls(frozenset(named), frozenset(prose))


@dataclass(frozen=True)
class Group:
    """A part of the specification in numbers: statements that can be seen broken, those with a
    test, those with a reason for none, and behaviour that is described without a keyword."""

    name: str
    statements: int
    tested: int
    reasoned: int
    described: int


def group(name: str, bound: Bound, below: bool = True) -> Group:
    """The numbers of a section, with all below it or without; of everything, without a name."""

    def inside(section: str) -> bool:
        return _within(section, name) if below else section == name

    within = [one for one in clauses().values() if inside(one.section)]
    return Group(
        name,
        len(within),
        sum(one.id in bound.clauses for one in within),
        sum(bool(one.untested) for one in within),
        sum(inside(section) for section, _ in bound.prose),
    )


def _within(section: str, wanted: str) -> bool:
    return not wanted or section == wanted or section.startswith(wanted + ".")


def sections(bound: Bound) -> list[str]:
    """Every section that states or describes something, in the specification's order."""
    there = {one.section for one in clauses().values()} | {section for section, _ in bound.prose}
    return sorted(there, key=section_order)


Counts = Mapping[str, Mapping[Verdict, int]]
"""Section -> how many of its statements have each verdict."""


@dataclass(frozen=True)
class Verdicts:
    """What a target's runs came to, by section. Statements of the catalogue only.

    `implementations` make up the device: name -> version. `tests` counts tests, which
    took `seconds` together.
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
            if row.kind == "catalogue":
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
        """The verdicts of a section with all below it; all of them, with an empty name."""
        total: Counter[Verdict] = Counter()
        for section, counts in self.sections.items():
            if _within(section, name):
                total.update(counts)
        return total


def dumped(verdicts: Iterable[Verdicts]) -> str:
    """The JSON that `loaded` reads."""
    document = [
        {
            "target": one.target,
            "implementations": dict(one.implementations),
            "sections": {
                section: _words(counts)
                for section, counts in sorted(
                    one.sections.items(), key=lambda entry: section_order(entry[0])
                )
            },
            "tests": _words(one.tests),
            "seconds": round(one.seconds),
        }
        for one in verdicts
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
    """The verdicts in a file, none if there is no such file. CoverageError for a damaged one."""
    try:
        kept = build(list[_Kept], json_of(path, text_of(path, LIMIT)))
    except MissingFileError:
        return []
    except InputError as error:
        raise CoverageError(f"{error}; {MAKE} RESULTS.json makes it") from None
    except WrongValueError as error:
        raise CoverageError(f"{path} is damaged: {error}; {MAKE} RESULTS.json makes it") from None
    return [
        Verdicts(
            one.target,
            one.implementations,
            {section: Counter(counts) for section, counts in one.sections.items()},
            Counter(one.tests),
            one.seconds,
        )
        for one in kept
    ]


# --- tables


def statements_table(bound: Bound, names: Iterable[str], below: bool) -> list[str]:
    """A line for each section named, with all below it or without, and one for everything."""
    lines = [
        "| section | statements | tested | with a reason for none | described, tested |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for one in (*(group(name, bound, below) for name in names), group("", bound)):
        numbers = " | ".join(
            f"{number or ''}" for number in (one.statements, one.tested, one.reasoned)
        )
        lines.append(f"| {one.name or '**all**'} | {numbers} | {one.described or ''} |")
    return lines


def totals_table(verdicts: Iterable[Verdicts]) -> list[str]:
    """How many statements have each verdict, a line for a target and version."""
    shown = [verdict for verdict in ORDER if verdict is not Verdict.NOT_RUN]
    lines = [
        f"| target | version | {' | '.join(shown)} |",
        f"| --- | --- |{' ---: |' * len(shown)}",
    ]
    for one in verdicts:
        total = one.within("")
        # A statement that has no test cannot run here either.
        total[Verdict.SKIPPED] += total[Verdict.NOT_RUN]
        numbers = " | ".join(str(total[verdict]) for verdict in shown)
        lines.append(f"| `{one.target}` | {made_of(one.implementations)} | {numbers} |")
    return lines


def runs_table(verdicts: Iterable[Verdicts]) -> list[str]:
    """What the whole suite said and how long it took, a line for a target and version."""
    lines = [
        "| target | version | passed | expected failures | failed | skipped | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in verdicts:
        tests = Counter(one.tests)
        numbers = (
            tests[Verdict.KEPT],
            tests[Verdict.DEVIATION] + tests[Verdict.ADVISORY],
            tests[Verdict.BROKEN] + tests[Verdict.ERROR],
            tests[Verdict.SKIPPED],
            round(one.seconds),
        )
        cells = " | ".join(map(str, numbers))
        lines.append(f"| `{one.target}` | {made_of(one.implementations)} | {cells} |")
    return lines


def sections_tables(verdicts: Iterable[Verdicts]) -> list[str]:
    """Section by section, a table for each version: QEMU and what comes with it are of one."""
    by_version: dict[frozenset[str], list[Verdicts]] = {}
    for one in verdicts:
        by_version.setdefault(frozenset(one.implementations.values()), []).append(one)
    lines = []
    for columns in by_version.values():
        parts = {name: version for one in columns for name, version in one.implementations.items()}
        names = sorted({name for one in columns for name in one.sections}, key=section_order)
        lines += ["", f"### {made_of(parts)}", ""]
        lines.append(f"| section | {' | '.join(f'`{one.target}`' for one in columns)} |")
        lines.append(f"| --- |{' --- |' * len(columns)}")
        for name in names:
            cells = " | ".join(_cell(Counter(one.sections.get(name, {}))) for one in columns)
            lines.append(f"| {name} | {cells} |")
    return lines


def _cell(counts: Counter[Verdict]) -> str:
    """Kept of all, and what is not kept: "7/9 1d" has a known deviation, and one skipped."""
    others = [f"{counts[verdict]}{letter}" for verdict, letter in LETTER.items() if counts[verdict]]
    return " ".join([f"{counts[Verdict.KEPT]}/{counts.total()}", *others])


# --- files


def keep(root: Path, parts: Iterable[Results]) -> None:
    """Put the verdicts of these results, and of no others, into the summary."""
    results = merged(parts)
    verdicts = [Verdicts.of(results, column) for column in results.columns]
    (root / SUMMARY).write_text(dumped(verdicts), encoding="utf-8")


def made(root: Path) -> dict[Path, str]:
    """What the files with tables have to say, by their paths. CoverageError if one cannot."""
    bound = Bound.by(root / "conformance")
    verdicts = loaded(root / SUMMARY)
    blocks = {
        PAGE: {
            "statements": statements_table(bound, sections(bound), below=False),
            "reasons": [
                f"- {one.id}: {one.untested}" for one in clauses().values() if one.untested
            ],
            "totals": totals_table(verdicts),
            "verdicts": sections_tables(verdicts),
        },
        README: {
            "statements": statements_table(bound, CHAPTERS, below=True),
            "totals": totals_table(verdicts),
            "runs": runs_table(verdicts),
        },
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
    """A text with other lines between two comments; `make` is the command that makes them.

    CoverageError if the text has no such place.
    """
    begin, end = f"<!-- {part}: made by {make} -->", f"<!-- {part}: end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise CoverageError(f"{path} has no place between {begin} and {end}")
    return "\n".join([head + begin, "", *lines, "", end + tail])


def stale(root: Path) -> list[Path]:
    """The files whose tables are not current."""
    return [path for path, text in made(root).items() if path.read_text(encoding="utf-8") != text]
