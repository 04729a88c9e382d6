"""Collection of a session's reports into `Results`; under pytest-xdist from all workers."""

from __future__ import annotations

import inspect
import os
import platform
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from _pytest.junitxml import mangle_test_address

from harness.driver.flight import Sent
from harness.report.causes import causes
from harness.report.hardened import LEVEL
from harness.report.markers import Statement
from harness.report.outcome import ATTRIBUTE
from harness.report.results import (
    Column,
    Result,
    Results,
    Row,
    Run,
    Test,
    Verdict,
    plain_node,
    worst,
)
from harness.virtio.catalogue import SPECIFICATION, Clause, clauses, driver_clauses, lookup

SUITE = "virtio-blk-conformance"

HARDENING = "hardening-"
"""Prefix of the properties about the fate of a device."""


class Collector:
    """Collects the reports of tests, in the order in which the tests ended."""

    def __init__(self, root: Path, arguments: Iterable[str]) -> None:
        self._root = root
        self._arguments = list(arguments)
        self._started = datetime.now(UTC)
        self._began = time.monotonic()
        self._reports: dict[tuple[str, str], list[pytest.TestReport]] = {}

    def add(self, report: pytest.TestReport) -> None:
        """Store the report of one phase of a test, if the test is about a statement on a target."""
        target = dict(report.user_properties).get("target")
        if target is not None and Statement.parse(report.user_properties):
            self._reports.setdefault((report.nodeid, str(target)), []).append(report)

    def results(self, complete: bool) -> Results:
        """Return the results up to now. `complete` means that no test is missing."""
        results = Results([self._run(complete)], [], {}, {})
        columns = self._columns()
        parties = {column.party for column in columns.values()} or {"device"}
        for clause in clauses().values() if "device" in parties else ():
            results.rows[clause.id] = _row(clause)
        for clause in driver_clauses().values() if "driver" in parties else ():
            results.rows.setdefault(clause.id, _row(clause))
        results.columns += columns.values()
        for (node, target), reports in self._reports.items():
            test = results.tests.setdefault(
                plain_node(node), self._test(plain_node(node), reports[0])
            )
            for row in _rows(reports[0]):
                results.rows.setdefault(row.id, row)
                if row.id not in test.statements:
                    test.statements.append(row.id)
            test.results[columns[target].id] = _result(reports)
        return results

    def causes(self) -> dict[tuple[str, str], str]:
        """Return the probable common causes of failed tests, by class name and name in JUnit."""
        results = self.results(complete=True)
        common = [cause for cause in causes(results) if len(cause.tests) > 1]
        of = {(test, cause.column): cause.text for cause in common for test in cause.tests}
        ids = {column.name: column.id for column in results.columns}
        named = {}
        for node, target in self._reports:
            if text := of.get((plain_node(node), ids[target])):
                *classes, name = mangle_test_address(node)
                named[".".join(classes), name] = text
        return named

    def _columns(self) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        served: defaultdict[str, dict[Sent, None]] = defaultdict(dict)
        for (_, target), reports in self._reports.items():
            driver = ("party", "driver") in reports[0].user_properties
            column = columns.setdefault(
                target, Column(target, party="driver" if driver else "device")
            )
            for report in reports:
                facts = _attributes(report)
                column.implementations.update(facts.get("implementations", {}))
                column.facts.update(facts.get("facts", {}))
                served[target].update((Sent(**sent), None) for sent in facts.get("served", ()))
        return {
            name: replace(column, served=list(served[name])) for name, column in columns.items()
        }

    def _run(self, complete: bool) -> Run:
        try:
            suite = version(SUITE)
        except PackageNotFoundError:  # a checkout that was not installed
            suite = "unknown"
        return Run(
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._began, 3),
            complete=complete,
            specification=SPECIFICATION,
            suite=suite,
            arguments=self._arguments,
            host={
                "system": f"{platform.system()} {platform.release()}",
                "machine": platform.machine(),
                "python": platform.python_version(),
                "processors": str(os.cpu_count()),
            },
            source=source_url(os.environ),
        )

    def _test(self, node: str, report: pytest.TestReport) -> Test:
        file, line, _ = report.location
        return Test(node, file, (line or 0) + 1, [], source_of(self._root / file, line or 0))


def source_url(environ: Mapping[str, str]) -> str:
    """Return the URL of CI's checkout, with {file} and {line}; "" outside GitHub and GitLab."""
    if environ.get("GITHUB_SHA"):
        server, name = environ.get("GITHUB_SERVER_URL"), environ.get("GITHUB_REPOSITORY")
        return f"{server}/{name}/blob/{environ['GITHUB_SHA']}/{{file}}#L{{line}}"
    if environ.get("CI_PROJECT_URL"):
        return (
            f"{environ['CI_PROJECT_URL']}/-/blob/{environ.get('CI_COMMIT_SHA')}/{{file}}#L{{line}}"
        )
    return ""


@cache
def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []


@cache
def source_of(path: Path, line: int) -> str:
    """Return the source text of a test, from its first decorator on. Lines count from 0."""
    lines = _lines(path)[line:]
    return "".join(inspect.getblock(lines)) if lines else ""


def _row(clause: Clause) -> Row:
    return Row(
        clause.id,
        clause.section,
        clause.level,
        clause.party,
        clause.text,
        untested=clause.untested,
    )


def _rows(report: pytest.TestReport) -> Iterator[Row]:
    """Yield a test's statements, from the properties that its markers made."""
    statement = Statement.parse(report.user_properties)
    if statement is None:
        return
    for name in statement.clauses:
        yield _row(lookup(name))
    for section, text in statement.hardening:
        yield Row(f"{section}: {text}", section, LEVEL, "device", text, kind=LEVEL)


def _attributes(report: pytest.TestReport) -> dict[str, Any]:
    attributes: dict[str, Any] = getattr(report, ATTRIBUTE, {})
    return attributes


def _result(reports: list[pytest.TestReport]) -> Result:
    """Return the worst result of a test's phases, with its details."""
    verdicts = [_verdict(report) for report in reports]
    verdict = worst(verdicts)
    report = reports[verdicts.index(verdict)]
    attributes = _attributes(report)
    skip = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    failed = verdict not in (Verdict.KEPT, Verdict.SKIPPED)
    return Result(
        verdict,
        round(sum(phase.duration for phase in reports), 4),
        attributes.get("expected", ""),
        attributes.get("seen", ""),
        skip.removeprefix("Skipped: "),
        attributes.get("deviation", {}),
        report.longreprtext if failed else "",
        attributes.get("artifacts", ""),
        {
            name.removeprefix(HARDENING): str(value)
            for phase in reports
            for name, value in phase.user_properties
            if name.startswith(HARDENING)
        },
        [Sent(**sent) for sent in attributes.get("requests", ())],
        attributes.get("trace", {}),
    )


def _verdict(report: pytest.TestReport) -> Verdict:
    if "verdict" in _attributes(report):
        return Verdict(_attributes(report)["verdict"])
    if report.failed:
        return Verdict.ERROR
    if report.skipped:
        return Verdict.SKIPPED
    return Verdict.KEPT if report.when == "call" else Verdict.NOT_RUN
