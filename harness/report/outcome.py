"""Data that a test's report carries from the process of the test to the results file.

pytest-xdist transfers a report's attributes if they are plain values.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from harness.driver.errors import DriverError
from harness.report.results import Verdict
from harness.report.verdict import about_the_device

ATTRIBUTE = "conformance"

NOTHING: Mapping[str, list[str]] = {}


def describe(
    report: pytest.TestReport,
    item: pytest.Item,
    call: pytest.CallInfo[None],
    excused: tuple[str, str] | None,
    device: dict[str, dict[str, str]],
    artifacts: str = "",
    requests: Iterable[dict[str, Any]] = (),
    trace: Mapping[str, list[str]] = NOTHING,
) -> None:
    """Store in a report the data that the results need.

    `excused` is the return value of `judge`; `device` has a target's description, "facts" and
    "implementations", both empty before its first disk. `artifacts` is the directory with the
    artifacts of a failure. `requests` are the properties of the requests that the test sent,
    `trace` is what a page shows of the trace.
    """
    attributes: dict[str, Any] = dict(device)
    if artifacts:
        attributes["artifacts"] = artifacts
    error = call.excinfo.value if call.excinfo else None
    if excused:
        attributes["verdict"] = _excuse(attributes, *excused)
    elif report.failed:
        about_device = call.when == "call" and about_the_device(error)
        attributes["verdict"] = (Verdict.BROKEN if about_device else Verdict.ERROR).value
    if call.excinfo and not isinstance(error, pytest.skip.Exception):
        attributes["expected"], attributes["seen"] = expectation(item, call.excinfo)
    elif report.failed:
        attributes["seen"] = _line(report.longreprtext)
    if report.failed:
        attributes["requests"] = list(requests)
        attributes["trace"] = dict(trace)
    elif report.passed and not excused:
        different = {tuple(request.items()): request for request in requests}
        attributes["served"] = list(different.values())
    setattr(report, ATTRIBUTE, attributes)


def is_error(report: pytest.TestReport) -> bool:
    """Return whether a report that `describe` has seen says that the test came to no verdict."""
    attributes: dict[str, Any] = getattr(report, ATTRIBUTE, {})
    return attributes.get("verdict") == Verdict.ERROR.value


def _excuse(attributes: dict[str, Any], kind: str, reason: str) -> str:
    if kind == "advisory":
        return Verdict.ADVISORY.value
    statement, _, why = reason.partition(": ")
    attributes["deviation"] = {"statement": statement, "why": why}
    return Verdict.DEVIATION.value


def expectation(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException]) -> tuple[str, str]:
    """Return the line of the suite that failed, and what was seen, as one line each."""
    return _expected(item, excinfo), _seen(excinfo.value)


def _expected(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException]) -> str:
    """Return the line of the suite that failed: of the test, or of a helper in the same folder."""
    for entry in reversed(excinfo.traceback):
        if item.path.parent in getattr(entry.path, "parents", ()):
            return _line(_condition(" ".join(str(entry.statement).split())))
    return ""


def _condition(statement: str) -> str:
    """Return the condition of an assertion, without its message; other statements unchanged."""
    try:
        (node,) = ast.parse(statement).body
    except (SyntaxError, ValueError):  # it was cut, or joined from lines that cannot be joined
        return statement.removeprefix("assert ")
    asserted = isinstance(node, ast.Assert) and ast.get_source_segment(statement, node.test)
    return asserted or statement


def _seen(error: BaseException) -> str:
    """Return the error's message; for an assertion with a message, also the values."""
    if not isinstance(error, AssertionError):
        message = error.message if isinstance(error, DriverError) else str(error)
        return _line(message) or type(error).__name__
    message, *rest = str(error).splitlines() or [""]
    values = [line for line in rest if line.startswith("assert ")][:1]
    return ": ".join(_line(part).removeprefix("assert ") for part in (message, *values))


def _line(text: str) -> str:
    """Return the first line of a text, at most 300 characters long."""
    first = re.sub(r"\s+", " ", (text.strip().splitlines() or [""])[0])
    return first if len(first) <= 300 else first[:299] + "…"
