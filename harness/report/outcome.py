"""What a test's report carries for the results file, from the process that ran the test.

pytest-xdist sends a report's own attributes along, if they are plain values.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest

from harness.driver.errors import DriverError
from harness.report.results import Verdict
from harness.report.verdict import about_the_device

ATTRIBUTE = "conformance"


def describe(
    report: pytest.TestReport,
    item: pytest.Item,
    call: pytest.CallInfo[None],
    excused: tuple[str, str] | None,
    device: dict[str, dict[str, str]],
    artifacts: str = "",
) -> None:
    """Put into a report what the results need of it.

    `excused` is what `judge` returned; `device` has what a target says of
    itself, "facts" and "implementations", both empty before its first disk.
    `artifacts` is the directory with what was kept of a failure.
    """
    said: dict[str, Any] = dict(device)
    if artifacts:
        said["artifacts"] = artifacts
    error = call.excinfo.value if call.excinfo else None
    if excused:
        said["verdict"] = _excuse(said, *excused)
    elif report.failed:
        about_device = call.when == "call" and about_the_device(error)
        said["verdict"] = (Verdict.BROKEN if about_device else Verdict.ERROR).value
    if call.excinfo and not isinstance(error, pytest.skip.Exception):
        said["expected"] = _expected(item, call.excinfo)
        said["seen"] = _seen(call.excinfo.value)
    elif report.failed:
        said["seen"] = _line(report.longreprtext)
    setattr(report, ATTRIBUTE, said)


def is_error(report: pytest.TestReport) -> bool:
    """Return whether a report that `describe` has seen says that the test came to no verdict."""
    said: dict[str, Any] = getattr(report, ATTRIBUTE, {})
    return said.get("verdict") == Verdict.ERROR.value


def _excuse(said: dict[str, Any], kind: str, reason: str) -> str:
    if kind == "advisory":
        return Verdict.ADVISORY.value
    statement, _, why = reason.partition(": ")
    said["deviation"] = {"statement": statement, "why": why}
    return Verdict.DEVIATION.value


def _expected(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException]) -> str:
    """The line of the suite that did not hold: of the test, or of a helper beside it."""
    for entry in reversed(excinfo.traceback):
        if item.path.parent in getattr(entry.path, "parents", ()):
            return _line(_condition(" ".join(str(entry.statement).split())))
    return ""


def _condition(statement: str) -> str:
    """What an assertion asserts, without its message; other statements as they are."""
    try:
        (node,) = ast.parse(statement).body
    except (SyntaxError, ValueError):  # it was cut, or lines were joined that may not be
        return statement.removeprefix("assert ")
    asserted = isinstance(node, ast.Assert) and ast.get_source_segment(statement, node.test)
    return asserted or statement


def _seen(error: BaseException) -> str:
    """What the error says; of an assertion with a message, the values too."""
    if not isinstance(error, AssertionError):
        told = error.message if isinstance(error, DriverError) else str(error)
        return _line(told) or type(error).__name__
    message, *rest = str(error).splitlines() or [""]
    values = [line for line in rest if line.startswith("assert ")][:1]
    return ": ".join(_line(part).removeprefix("assert ") for part in (message, *values))


def _line(text: str) -> str:
    """The first line of a text, not longer than a terminal's few."""
    first = re.sub(r"\s+", " ", (text.strip().splitlines() or [""])[0])
    return first if len(first) <= 300 else first[:299] + "…"
