"""Hooks for hardening tests, in which the driver or the device breaks the rules.

The specification does not say how the other side has to react, so these tests run only on request:
with `--level hardening`, or when the command line names their directory or a test in it. The fate
of the other side is a property of each report, whatever the outcome of the test.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from harness.report.hardened import DRIVER_VERDICT, LEVEL, VERDICT
from harness.report.markers import statement_of


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "hardening(section, text): a forbidden action of the driver or the device (our own words)",
    )


LEFT_OUT = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect hardening tests in a run that does not ask for them."""
    if LEVEL in config.option.vblk_level:
        return
    given = config.args_source is pytest.Config.ArgsSource.ARGS
    named = [Path(arg.partition("::")[0]).absolute() for arg in config.args if given]
    rest = [item for item in items if _is_hardening(item) and not _is_named(item, named)]
    if rest:
        config.hook.pytest_deselected(items=rest)
        config.stash[LEFT_OUT] = len(rest)
        left_out = set(rest)
        items[:] = [item for item in items if item not in left_out]


def _is_hardening(item: pytest.Item) -> bool:
    statement = statement_of(item)
    return statement is not None and statement.level == LEVEL


def _is_named(item: pytest.Item, named: list[Path]) -> bool:
    """Return True if an argument of the run names the test's directory or something in it."""
    home = item.path.parent
    return any(home == path or home in path.parents for path in named)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print how many hardening tests were left out, or the count of each verdict."""
    left_out = config.stash.get(LEFT_OUT, 0)
    if left_out:
        terminalreporter.write_line(f"{left_out} hardening tests left out; --level hardening")
    fates = Counter(
        (str(properties.get("target", "")), str(properties[name]))
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for properties in [dict(report.user_properties)]
        for name in (VERDICT, DRIVER_VERDICT)
        if name in properties
    )
    if fates:
        terminalreporter.section("hardening")
        for target in dict.fromkeys(target for target, _ in fates):
            counts = (f"{verdict} {n}" for (name, verdict), n in fates.items() if name == target)
            terminalreporter.write_line(f"{target}: {', '.join(counts)}")
