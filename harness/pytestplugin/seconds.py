"""Table of where the time has gone, for each target, at the end of a run."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from harness.pytestplugin.bench import SPENT

PARTS = ("once", "start", "plug", "test", "after")


@dataclass
class Spent:
    """One test: seconds by what they were spent on."""

    target: str
    parts: dict[str, float] = field(default_factory=dict)


def of_tests(reports: Iterable[object]) -> list[Spent]:
    """Return the tests that used a disk. `reports` are of all phases."""
    by_test: dict[tuple[str, str], Spent] = {}
    for report in reports:
        if not isinstance(report, pytest.TestReport) or report.when not in ("call", "teardown"):
            continue
        spent: dict[str, float] = getattr(report, SPENT, {})
        target = str(dict(report.user_properties).get("target"))
        if not spent:
            continue
        parts = by_test.setdefault((report.nodeid, target), Spent(target)).parts
        if report.when == "call":
            parts.update(spent)
            parts["test"] = report.duration - sum(spent.values())
        else:
            parts["after"] = report.duration
    return list(by_test.values())


def table(tests: Iterable[Spent]) -> Iterator[str]:
    """Yield table lines: for every target the median and the sum of each part, in seconds."""
    by_target: defaultdict[str, list[Spent]] = defaultdict(list)
    for test in tests:
        by_target[test.target].append(test)
    width = max(map(len, by_target), default=0)
    heads = "".join(f"{part:>15}" for part in PARTS)
    yield f"{'median (sum)':<{width}} {'tests':>6}{heads}"
    for target, target_tests in by_target.items():
        cells = ""
        for part in PARTS:
            seconds = [test.parts.get(part, 0.0) for test in target_tests]
            cells += f"{statistics.median(seconds):.3f} ({sum(seconds):.1f})".rjust(15)
        yield f"{target:<{width}} {len(target_tests):>6}{cells}"


def guests(tests: Iterable[Spent]) -> Iterator[str]:
    """Yield a line for each target whose guests have served several tests."""
    by_target: defaultdict[str, list[bool]] = defaultdict(list)
    for test in tests:
        by_target[test.target].append(test.parts.get("start", 0.0) > 0)
    for target, started in by_target.items():
        if any(started) and not all(started):
            yield f"{target}: {len(started)} tests, guests started for them: {sum(started)}"


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds spent on starting guests, plugging, testing and cleaning up."""
    tests = of_tests(report for group in terminalreporter.stats.values() for report in group)
    if tests and terminalreporter.verbosity >= 0:
        terminalreporter.section("seconds, by target")
        for line in (*table(tests), *guests(tests)):
            terminalreporter.write_line(line)
