"""Evidence in a failed test's report, in addition to the traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from _pytest._code.code import ExceptionRepr

from harness.diskspec import DiskSpec
from harness.driver.block import BlockDriver

if TYPE_CHECKING:
    from harness.targets import Disk


# A console may contain sequences that move the cursor of, or query, the reader's terminal.
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\t\x20-\x7e\xa0-\uffff]")


class Subject(Protocol):
    """A target, or a driver, with its present state and its logs."""

    def evidence(self) -> dict[str, str]:
        """Return title -> text about its present state."""

    def logs(self) -> dict[str, str]:
        """Return file name -> text of its logs."""


def printable(text: str) -> str:
    """Return a text without control sequences and unprintable characters."""
    return _UNPRINTABLE.sub("", text)


def attach_evidence(
    report: pytest.TestReport,
    error: BaseException | None,
    target: Subject,
    disks: Iterable[Disk],
) -> None:
    """Add the error's details, the machine's evidence and every disk's state to a failure.

    They become part of the failure's text, so that a JUnit report contains them, too.
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
    """Return the properties of a disk that differ from the defaults, as text."""
    default = DiskSpec()
    asked = {name: value for name, value in vars(spec).items() if value != getattr(default, name)}
    return ", ".join(f"{name}={value}" for name, value in asked.items()) or "default properties"


def state_of(disk: Disk) -> str:
    """Return the registers and rings of a disk, line by line."""
    try:
        return "\n".join(_lines(disk.driver.state()))
    except Exception as error:  # the state is only a help: its absence is not a second failure
        return f"the state cannot be read: {error}"


def requests_of(disks: Iterable[Disk], failed: bool) -> list[dict[str, Any]]:
    """Return the properties of the last requests that a test sent, disk by disk.

    A driver in a guest is asked only if the test has `failed`, because that takes time.
    """
    requests: list[dict[str, Any]] = []
    for disk in disks:
        with suppress(Exception):  # they are only a help: the device or the guest may be gone
            driver = disk.driver
            if isinstance(driver, BlockDriver):
                requests += (sent.plain() for sent in driver.sent)
            elif failed:
                requests += driver.state().get("requests", ())
    return requests


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
