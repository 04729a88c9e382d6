"""Judgement of a test's outcome: advisories and recorded deviations."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from harness.driver.errors import DeviceTimeoutError, DriverError, FeaturesRefusedError
from harness.report.deviations import Deviation
from harness.report.markers import Statement

ABOUT_THE_DEVICE = (AssertionError, DeviceTimeoutError, FeaturesRefusedError)
"""Failures that are about the device. Any other failure is an error of the harness."""


def judge(
    report: pytest.TestReport,
    error: BaseException | None,
    statement: Statement | None,
    deviations: Iterable[Deviation],
    strict: bool,
) -> tuple[str, str] | None:
    """Change a test's report as its statement and the recorded deviations require.

    `error` is what the test raised, None if it passed. `deviations` are those of this test that
    affect the device's version. Return a property for the test case ("deviation" or "advisory",
    with the reason) if the test was excused.
    """
    recorded = list(deviations)
    if report.passed:
        if gone := [deviation for deviation in recorded if not deviation.sometimes]:
            _fail(report, gone)
        return None
    if not report.failed or not isinstance(error, ABOUT_THE_DEVICE):
        return None
    message = error.message if isinstance(error, DriverError) else str(error)
    for deviation in recorded:
        if deviation.explains(message):
            return _excuse(report, "deviation", f"{deviation.clause}: {deviation.why}")
    if statement and statement.advisory and not strict:
        first = (message.splitlines() or [type(error).__name__])[0]
        return _excuse(report, "advisory", f"{statement.level}: {first}")
    return None


def _excuse(report: pytest.TestReport, kind: str, reason: str) -> tuple[str, str]:
    report.outcome = "skipped"
    report.wasxfail = f"{kind}: {reason}"
    return kind, reason


def _fail(report: pytest.TestReport, recorded: list[Deviation]) -> None:
    report.outcome = "failed"
    clauses = ", ".join(deviation.clause for deviation in recorded)
    report.longrepr = (
        f"The recorded deviation ({clauses}) is gone: this test passes on a version that the"
        " record includes. Remove the record from the deviations file, or narrow its versions."
    )
