"""Results of a run as data: the file of `--matrix FILE.json`, and its vocabulary.

docs/reports.md describes the file. It keeps the result of each test on each target; the verdict of
a statement follows from the results of its tests.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from harness.driver.flight import Sent
from harness.inputs import (
    MIB,
    Check,
    InputError,
    WrongValueError,
    build,
    json_of,
    matching,
    printable,
    read_text,
    shown,
    within,
)
from harness.robustness.fate import Fate
from harness.virtio.catalogue import ADVISORY, VHOST_USER, Level, section_order

FORMAT = "virtio-blk-conformance results"
VERSION = 1

LIMIT = 256 * MIB
"""Largest size of a file that is read, in bytes."""

TARGET_ID = "@"
"""Prefix of the target among a test's parameters. It is the last parameter."""


class ResultsError(Exception):
    """Error of a file that contains no results. The message is one line with the reason."""


class Verdict(StrEnum):
    """Verdict of a test, or of all tests of a statement, on a target; the worst is first."""

    BROKEN = "broken"
    ERROR = "error"
    DEVIATION = "known deviation"
    ADVISORY = "advisory"
    KEPT = "kept"
    SKIPPED = "skipped"
    NOT_RUN = "not run"


ORDER = tuple(Verdict)

MEANINGS = {
    Verdict.BROKEN: "it is not kept, and that is not recorded",
    Verdict.ERROR: "the test has no verdict: an error of the harness, the machine or a record",
    Verdict.DEVIATION: "it is not kept, and that is recorded with the reason",
    Verdict.ADVISORY: "a SHOULD that is not kept",
    Verdict.KEPT: "all its tests that could run have passed",
    Verdict.SKIPPED: "none of its tests could run here; the reason is given",
    Verdict.NOT_RUN: "none of its tests was part of the run",
}


OPEN = frozenset({Verdict.SKIPPED, Verdict.NOT_RUN})
"""Verdicts that do not judge the device."""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of some verdicts; NOT_RUN if there are none."""
    return min(verdicts, key=ORDER.index, default=Verdict.NOT_RUN)


Seconds = Annotated[float, within(0, 1e9)]
Section = Annotated[
    str, matching(rf"{VHOST_USER}|\d{{1,4}}(\.\d{{1,4}}){{0,9}}", "a section's number")
]


@dataclass(frozen=True)
class Run:
    """One session of pytest.

    Times are UTC, ISO 8601; `seconds` is its duration.

    A run is not `complete` if it was cut short. `source` is a URL of its tests with the fields
    {file} and {line}; empty if it is not known.
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
    """Return implementations with their versions, as text."""
    return ", ".join(f"{name} {version}" for name, version in implementations.items())


@dataclass(frozen=True)
class Column:
    """A column of the matrix: a target with the implementations of its device, or a driver.

    `party` is "device" or "driver".

    `implementations` maps names to versions; `facts` describes the machine; `runs` are the indices
    of the runs that included the target. `served` are different requests that passed tests sent.
    """

    name: str
    implementations: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    runs: list[Annotated[int, within(0, 1 << 20)]] = field(default_factory=lambda: [0])
    party: Literal["device", "driver"] = "device"
    served: list[Sent] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Return a name that differs for the same target with other versions."""
        versions = made_of(self.implementations)
        return f"{self.name} ({versions})" if versions else self.name


@dataclass(frozen=True)
class Row:
    """A row of the matrix: a statement.

    `kind` is "catalogue", or the marker of a statement that has no id there. `untested` is the
    reason why no test is possible.
    """

    id: str
    section: Section
    level: Level
    party: str
    text: str
    kind: str = "catalogue"
    untested: str = ""


def _is_hardening(table: dict[str, str]) -> bool:
    """Return True if a table is empty, or contains the fate of a device."""
    keys = {"verdict", "evidence", "ring"}
    return not table or (keys <= table.keys() and table["verdict"] in set(Fate))


Hardening = Annotated[
    dict[str, str], Check("a verdict of hardening, its evidence and the ring", _is_hardening)
]


@dataclass(frozen=True)
class Result:
    """Result of one test on one target.

    `expected` and `seen` are one line each, for a test that failed, excused or not; `reason` is the
    reason of a skip. `deviation` has the keys "statement" and "why". `evidence` is the failure's
    whole text, `artifacts` a directory with more (in a file, relative to that file's directory).
    `hardening` is the fate of a device whose driver broke a rule: "verdict", "evidence", "ring".
    `requests` are the last requests of a test that failed, in the order in which they were sent.
    `trace` has the lines of its trace, and the rings before and after the offending event.
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
    requests: list[Sent] = field(default_factory=list)
    trace: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Test:
    """A test with its results by column id. `line` counts from 1."""

    __test__ = False  # pytest must not collect this class

    id: str
    file: str
    line: int
    statements: list[str]
    source: str = ""
    results: dict[str, Result] = field(default_factory=dict)


@dataclass
class Results:
    """All results of one or several runs."""

    runs: list[Run]
    columns: list[Column]
    rows: dict[str, Row]
    tests: dict[str, Test]

    def tests_of(self, row: Row) -> list[Test]:
        """Return the tests of a statement."""
        return [test for test in self.tests.values() if row.id in test.statements]

    def verdicts(self) -> dict[str, dict[str, Verdict]]:
        """Return row id -> column id -> worst verdict of the statement's tests on the target."""
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
        """Return the statements in the specification's order."""
        return sorted(self.rows.values(), key=lambda row: (section_order(row.section), row.id))


def proves(result: Result, row: Row) -> Verdict:
    """Return the verdict of a test's result for one of its statements.

    If the test ended at another statement's known deviation, or was excused because of a SHOULD
    among its statements, the other statements count as skipped.
    """
    if result.verdict is Verdict.DEVIATION:
        about = result.deviation.get("statement")
        return result.verdict if about in (row.id, _place(row)) else Verdict.SKIPPED
    if result.verdict is Verdict.ADVISORY and row.level not in ADVISORY:
        return Verdict.SKIPPED
    return result.verdict


def _place(row: Row) -> str:
    """Return the name in deviation records: the id, or the section of a row without one."""
    return row.id if row.kind == "catalogue" else row.section


def plain_node(node: str) -> str:
    """Return a test's node id without the target among its parameters."""
    return re.sub(rf"\[{TARGET_ID}[^]]*]$|-{TARGET_ID}[^]]*(?=]$)", "", node)


def bare_name(node: str) -> str:
    """Return a test's id without directory and parameters."""
    return node.rpartition("/")[2].partition("[")[0]


def relocated(results: Results, place: Callable[[str], str]) -> Results:
    """Return the results with the directories of artifacts changed by `place`."""

    def moved(result: Result) -> Result:
        return replace(result, artifacts=place(result.artifacts)) if result.artifacts else result

    tests = {
        test.id: replace(
            test, results={name: moved(result) for name, result in test.results.items()}
        )
        for test in results.tests.values()
    }
    return replace(results, tests=tests)


def dumped(results: Results) -> str:
    """Return the results as the JSON that `load` reads."""
    verdicts = results.verdicts()
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "runs": [asdict(run) for run in results.runs],
        "targets": [{"id": column.id, **asdict(column)} for column in results.columns],
        "statements": [
            {
                **asdict(row),
                "verdicts": {name: verdict.value for name, verdict in verdicts[row.id].items()},
            }
            for row in results.ordered_rows()
        ],
        "tests": [
            {
                **asdict(test),
                "results": {
                    name: {
                        key: value
                        for key, value in asdict(result).items()
                        if value not in ("", []) and (value or key != "trace")
                    }
                    for name, result in test.results.items()
                },
            }
            for test in results.tests.values()
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def load(path: Path) -> Results:
    """Return the results in a file. Raise ResultsError, in one line, if that fails."""
    try:
        results = parsed(json_of(path, read_text(path, LIMIT)))
    except InputError as error:
        raise ResultsError(str(error)) from None
    except ValueError as error:
        raise ResultsError(f"{path}: {printable(str(error))}") from None
    return relocated(results, lambda place: os.path.normpath(path.absolute().parent / place))


def parsed(document: Any) -> Results:
    """Return the results in a JSON document. Raise ValueError, in one line, for anything else."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(
            "these are not results of a conformance run; --matrix FILE.json writes them"
        )
    if document.get("version") != VERSION:
        raise ValueError(
            f"the format has version {shown(document.get('version'))}; this program reads {VERSION}"
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
    """The lists of a results file, with their names in the file."""

    runs: list[Run]
    targets: list[Column]
    statements: list[Row]
    tests: list[Test]


def _check_references(results: Results) -> None:
    """Raise WrongValueError for a reference to something that the file does not contain."""
    for number, column in enumerate(results.columns):
        if any(run >= len(results.runs) for run in column.runs):
            message = f"there are {len(results.runs)} runs, not {shown(column.runs)}"
            raise WrongValueError(("targets", number, "runs"), message)
    columns = {column.id for column in results.columns}
    for number, test in enumerate(results.tests.values()):
        for name in test.results:
            if name not in columns:
                raise WrongValueError(("tests", number, "results", name), "no such target")
