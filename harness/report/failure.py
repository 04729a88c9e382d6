"""What a failed test's report carries besides the traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest
from _pytest._code.code import ExceptionRepr

from harness.diskspec import DiskSpec

if TYPE_CHECKING:
    from harness.targets import Disk, Target


# A console may hold sequences that would move, or question, the terminal this is shown on.
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\t\x20-\x7e\xa0-\uffff]")


def printable(text: str) -> str:
    """A text without what is no character of it."""
    return _UNPRINTABLE.sub("", text)


def attach_evidence(
    report: pytest.TestReport,
    error: BaseException | None,
    target: Target,
    disks: Iterable[Disk],
) -> None:
    """Add the error's details, the machine's evidence and every disk's state to a failure.

    They go into the failure's own text, so that a JUnit report has them too.
    """
    sections = {}
    details = getattr(error, "details", "")
    if details and details not in getattr(error, "__notes__", ()):
        sections["details"] = details
    sections.update(target.evidence())
    for number, disk in enumerate(disks):
        sections[f"disk {number}, {words_of(disk.spec)}"] = state_of(disk)
    for title, text in sections.items():
        _add(report, title, text or "(nothing)")


def words_of(spec: DiskSpec) -> str:
    """What was asked for beside the defaults."""
    usual = DiskSpec()
    asked = {name: value for name, value in vars(spec).items() if value != getattr(usual, name)}
    return ", ".join(f"{name}={value}" for name, value in asked.items()) or "as it comes"


def state_of(disk: Disk) -> str:
    """Registers and rings of a disk, a line each."""
    try:
        return "\n".join(_lines(disk.driver.state()))
    except Exception as error:  # the state is a help, and its absence no second failure
        return f"no state: {error}"


def _lines(state: dict[str, Any]) -> Iterable[str]:
    for name, value in state.items():
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            yield f"{name}: {', '.join(value) or 'none'}"
        elif isinstance(value, list):
            yield f"{name}:"
            yield from (f"    {entry}" for entry in value)
        else:
            yield f"{name}: {value}"


def _add(report: pytest.TestReport, title: str, text: str) -> None:
    text = printable(text)
    longrepr = report.longrepr
    if isinstance(longrepr, ExceptionRepr):
        longrepr.addsection(title, text, "-")
    else:
        report.longrepr = f"{longrepr}\n--- {title}\n{text}"
