"""Judgement of a test's outcome: advisories and recorded deviations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from traceback import walk_tb

import pytest

from harness.driver.errors import DeviceTimeoutError, DriverError, FeaturesRefusedError
from harness.report.deviations import Deviation
from harness.report.markers import Statement

ABOUT_THE_DEVICE = (AssertionError, DeviceTimeoutError, FeaturesRefusedError)
"""Errors that can say something about the device; any other is trouble with the harness."""

HARNESS = Path(__file__).parents[1]


def about_the_device(error: BaseException | None) -> bool:
    """Return whether what a test raised says something about the device.

    An assertion of the harness itself, and a disk that was not ready for the test, do not.
    """
    if not isinstance(error, ABOUT_THE_DEVICE):
        return False
    if not isinstance(error, AssertionError):
        return True
    files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    return not files or HARNESS not in Path(files[-1]).parents


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
    if not report.failed or not about_the_device(error):
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
