"""What a run found, as data: the file that `--matrix FILE.json` writes, and its vocabulary.

docs/reports.md describes the file. Only one test's words are kept of each
target; what a statement's verdict is follows from its tests'.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from harness.inputs import (
    MIB,
    Check,
    InputError,
    WrongValueError,
    build,
    json_of,
    matching,
    printable,
    shown,
    text_of,
    within,
)
from harness.robustness.fate import Fate
from harness.virtio.catalogue import ADVISORY, Level, section_order

FORMAT = "virtio-blk-conformance results"
VERSION = 1

LIMIT = 256 * MIB
"""Bytes of a file that is read."""

TARGET_ID = "@"
"""What marks the target among a test's parameters: it comes last."""


class ResultsError(Exception):
    """A file holds no results; one line that says what is wrong with it."""


class Verdict(StrEnum):
    """What a test, or all tests of a statement, say of a target; the worst comes first."""

    BROKEN = "broken"
    ERROR = "error"
    DEVIATION = "known deviation"
    ADVISORY = "advisory"
    KEPT = "kept"
    SKIPPED = "skipped"
    NOT_RUN = "not run"


ORDER = tuple(Verdict)

MEANINGS = {
    Verdict.BROKEN: "the device does not keep it, and nobody knew",
    Verdict.ERROR: "the test came to no verdict: trouble with the harness, the machine or a record",
    Verdict.DEVIATION: "the device does not keep it, as recorded, with the reason",
    Verdict.ADVISORY: "a SHOULD that the device does not keep",
    Verdict.KEPT: "every test of it that could run has passed",
    Verdict.SKIPPED: "no test of it could run here; the reason is given",
    Verdict.NOT_RUN: "no test of it was part of the run",
}


OPEN = frozenset({Verdict.SKIPPED, Verdict.NOT_RUN})
"""Verdicts that say nothing of the device."""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of some verdicts; NOT_RUN if there are none."""
    return min(verdicts, key=ORDER.index, default=Verdict.NOT_RUN)


Seconds = Annotated[float, within(0, 1e9)]
Section = Annotated[str, matching(r"\d{1,4}(\.\d{1,4}){0,9}", "a section's number")]


@dataclass(frozen=True)
class Run:
    """One session of pytest. Times are UTC, ISO 8601; `seconds` is how long it took.

    A run is not `complete` if it was cut short. `source` is a URL with the
    fields {file} and {line} where its tests can be read, empty if not known.
    """

    started: str
    seconds: Seconds
    complete: bool
    specification: str
    suite: str
    arguments: list[str] = field(default_factory=list)
    host: dict[str, str] = field(default_factory=dict)
    source: str = ""


def made_of(implementations: Mapping[str, str]) -> str:
    """Implementations with their versions, in words."""
    return ", ".join(f"{name} {version}" for name, version in implementations.items())


@dataclass(frozen=True)
class Column:
    """A target with the implementations that made it up: what the matrix has columns for.

    `implementations` are names with their versions; `facts` are what the target
    says of its machine; `runs` are the indices of the runs that it was part of.
    """

    name: str
    implementations: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    runs: list[Annotated[int, within(0, 1 << 20)]] = field(default_factory=lambda: [0])

    @property
    def id(self) -> str:
        """Tells a target on one version from the same target on another."""
        versions = made_of(self.implementations)
        return f"{self.name} ({versions})" if versions else self.name


@dataclass(frozen=True)
class Row:
    """A statement. `kind` is "catalogue", or the marker that brings it without an id there.

    `untested` says why no test of it is possible.
    """

    id: str
    section: Section
    level: Level
    party: str
    text: str
    kind: str = "catalogue"
    untested: str = ""


def _is_hardening(table: dict[str, str]) -> bool:
    """Return whether a table is empty, or says what became of a device."""
    keys = {"verdict", "evidence", "ring"}
    return not table or (keys <= table.keys() and table["verdict"] in set(Fate))


Hardening = Annotated[
    dict[str, str], Check("a verdict of hardening, its evidence and the ring", _is_hardening)
]


@dataclass(frozen=True)
class Result:
    """What one test said of one target.

    `expected` and `seen` are a line each, of a test that failed, excused or
    not; `reason` is a skip's. `deviation` has the keys "statement" and "why".
    `evidence` is the failure's whole text, `artifacts` a directory with more
    (in a file, relative to that file's).
    `hardening` says what became of a device whose driver broke a rule:
    "verdict", "evidence", "ring".
    """

    verdict: Verdict
    seconds: Seconds = 0.0
    expected: str = ""
    seen: str = ""
    reason: str = ""
    deviation: dict[str, str] = field(default_factory=dict)
    evidence: str = ""
    artifacts: str = ""
    hardening: Hardening = field(default_factory=dict)


@dataclass
class Test:
    """A test with what it said of each target, by column id. `line` counts from 1."""

    __test__ = False  # no test case of pytest's

    id: str
    file: str
    line: int
    statements: list[str]
    source: str = ""
    results: dict[str, Result] = field(default_factory=dict)


@dataclass
class Results:
    """All that one or several runs found."""

    runs: list[Run]
    columns: list[Column]
    rows: dict[str, Row]
    tests: dict[str, Test]

    def tests_of(self, row: Row) -> list[Test]:
        """The tests that are about a statement."""
        return [test for test in self.tests.values() if row.id in test.statements]

    def verdicts(self) -> dict[str, dict[str, Verdict]]:
        """Row id -> column id -> what all tests of a statement say of a target: the worst."""
        tests: dict[str, list[Test]] = {}
        for test in self.tests.values():
            for name in test.statements:
                tests.setdefault(name, []).append(test)
        return {
            row.id: {
                column.id: worst(
                    proves(test.results[column.id], row)
                    for test in tests.get(row.id, ())
                    if column.id in test.results
                )
                for column in self.columns
            }
            for row in self.rows.values()
        }

    def ordered_rows(self) -> list[Row]:
        """The statements in the specification's order."""
        return sorted(self.rows.values(), key=lambda row: (section_order(row.section), row.id))


def proves(result: Result, row: Row) -> Verdict:
    """What a test's result says of one of its statements.

    A test that ends at another statement's known deviation, or that was excused
    because of a SHOULD among its statements, leaves the rest of them open.
    """
    if result.verdict is Verdict.DEVIATION:
        about = result.deviation.get("statement")
        return result.verdict if about in (row.id, _place(row)) else Verdict.SKIPPED
    if result.verdict is Verdict.ADVISORY and row.level not in ADVISORY:
        return Verdict.SKIPPED
    return result.verdict


def _place(row: Row) -> str:
    """What a record of deviations calls it: the section, of a statement without an id."""
    return row.id if row.kind == "catalogue" else row.section


def plain_node(node: str) -> str:
    """A test's node id without the target among its parameters."""
    return re.sub(rf"\[{TARGET_ID}[^]]*]$|-{TARGET_ID}[^]]*(?=]$)", "", node)


def bare_name(node: str) -> str:
    """A test's id without its directory and its parameters."""
    return node.rpartition("/")[2].partition("[")[0]


def relocated(results: Results, place: Callable[[str], str]) -> Results:
    """The same results, with directories of artifacts as `place` makes them."""

    def moved(result: Result) -> Result:
        return replace(result, artifacts=place(result.artifacts)) if result.artifacts else result

    tests = {
        test.id: replace(test, results={name: moved(one) for name, one in test.results.items()})
        for test in results.tests.values()
    }
    return replace(results, tests=tests)


def dumped(results: Results) -> str:
    """The results as the JSON that `load` reads."""
    verdicts = results.verdicts()
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "runs": [asdict(run) for run in results.runs],
        "targets": [{"id": column.id, **asdict(column)} for column in results.columns],
        "statements": [
            {
                **asdict(row),
                "verdicts": {name: one.value for name, one in verdicts[row.id].items()},
            }
            for row in results.ordered_rows()
        ],
        "tests": [
            {
                **asdict(test),
                "results": {
                    name: {key: value for key, value in asdict(result).items() if value != ""}
                    for name, result in test.results.items()
                },
            }
            for test in results.tests.values()
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def load(path: Path) -> Results:
    """Return the results in a file. Raises ResultsError for one that cannot be read or has others.

    The error is one line.
    """
    try:
        results = parsed(json_of(path, text_of(path, LIMIT)))
    except InputError as error:
        raise ResultsError(str(error)) from None
    except ValueError as error:
        raise ResultsError(f"{path}: {printable(str(error))}") from None
    return relocated(results, lambda place: os.path.normpath(path.absolute().parent / place))


def parsed(document: Any) -> Results:
    """Return the results in a JSON document; ValueError, in one line, for anything else."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("no results of a conformance run; --matrix FILE.json writes them")
    if document.get("version") != VERSION:
        raise ValueError(
            f"version {shown(document.get('version'))} of the format; this reads {VERSION}"
        )
    try:
        # A later version of the same number may add keys.
        parts = build(_Document, document, extra=True)
        results = Results(
            runs=parts.runs,
            columns=parts.targets,
            rows={row.id: row for row in parts.statements},
            tests={test.id: test for test in parts.tests},
        )
        _check_references(results)
    except WrongValueError as error:
        raise ValueError(f"damaged: {error}") from None
    return results


@dataclass
class _Document:
    """The lists of a file, as they are named there."""

    runs: list[Run]
    targets: list[Column]
    statements: list[Row]
    tests: list[Test]


def _check_references(results: Results) -> None:
    """Raise WrongValueError for a reference to what the file does not have."""
    for number, column in enumerate(results.columns):
        if any(run >= len(results.runs) for run in column.runs):
            message = f"there are {len(results.runs)} runs, not {shown(column.runs)}"
            raise WrongValueError(("targets", number, "runs"), message)
    columns = {column.id for column in results.columns}
    for number, test in enumerate(results.tests.values()):
        for name in test.results:
            if name not in columns:
                raise WrongValueError(("tests", number, "results", name), "no such target")
