"""Report files (`--matrix`, `--artifacts`), and the table of statements at the end of a run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import pytest

from harness.inputs import printable
from harness.outputs import reason
from harness.pytestplugin.arguments import add_option
from harness.report import causes
from harness.report.collect import Collector
from harness.report.files import complaint, directory, report_file, writable, write
from harness.report.junit import reshape
from harness.report.tree import failures, groups, tree

DEPTH = 2
"""Levels of sections that the terminal shows; -v shows all."""

REASONS = 10
"""Reasons of skips, and recorded deviations, that the terminal shows; -v shows all."""

NOTHING_TESTED = 10
"""Exit status of a run whose tests were all skipped; pytest has statuses of its own up to 6."""

CAUSES = 5
"""Groups of failures, the largest ones, that the terminal shows; -v shows all."""

COLLECTOR = pytest.StashKey[Collector]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for reports."""
    add_option(
        parser,
        "matrix",
        action="append",
        default=[],
        metavar="FILE",
        type=report_file,
        help="write the verdict of every statement on every target to FILE.html (a page) or"
        " FILE.json (data); repeatable",
    )
    add_option(
        parser,
        "artifacts",
        metavar="DIR",
        type=_directory,
        help="directory for each failed test's trace, console, logs, state and a command that"
        " repeats it",
    )
    add_option(
        parser,
        "trace",
        action="store_true",
        help="write the trace of every test to the directory of --artifacts, not only of a failed"
        " one",
    )


def _directory(text: str) -> Path:
    return directory(Path(text).absolute())


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Start to collect results, in the controller only: workers send their reports to it."""
    if not hasattr(config, "workerinput"):
        config.stash[COLLECTOR] = collector = Collector(
            config.rootpath, config.invocation_params.args
        )
        junit = _junit_file(config)
        config.pluginmanager.register(_Listener(collector, config.option.vblk_matrix, junit))


def _junit_file(config: pytest.Config) -> Path | None:
    """Return the file of --junitxml. pytest.UsageError if it cannot be written."""
    text: str | None = config.option.xmlpath
    if not text:
        return None
    try:
        # This is how pytest finds the file.
        return writable(Path(os.path.expandvars(text)).expanduser().absolute())
    except argparse.ArgumentTypeError as error:
        raise pytest.UsageError(f"--junitxml: {error}") from None


class _Listener:
    """Collect pytest's reports, and write the files when the run is done or was stopped."""

    def __init__(self, collector: Collector, files: list[Path], junit: Path | None) -> None:
        self._collector = collector
        self._files = files
        self._junit = junit
        self._complaints: list[str] = []
        self._tested = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._collector.add(report)
        skipped = report.skipped and not hasattr(report, "wasxfail")
        self._tested |= report.failed or (report.when == "call" and not skipped)

    # The innermost wrapper: around the plugin that writes pytest's own report, and inside the one
    # that prints the summary.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, object, object]:
        """Write each report by itself: one that fails is a line of the summary."""
        done: object = None
        try:
            done = yield
        except OSError as error:
            if self._junit is None or error.filename not in (None, str(self._junit)):
                raise
            self._complaints.append(printable(f"{self._junit} is not written: {reason(error)}"))
        else:
            if self._junit and self._junit.exists():
                junit, family = self._junit, session.config.getini("junit_family")
                found = self._collector.causes()
                self._write(junit, lambda: reshape(junit, family, found))
        ran = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        cut_short = session.shouldfail or session.shouldstop
        results = self._collector.results(complete=ran and not cut_short)
        for path in self._files:
            self._write(path, partial(write, path, results))
        if self._complaints and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        elif session.exitstatus == pytest.ExitCode.OK and results.tests and not self._tested:
            session.exitstatus = NOTHING_TESTED
            self._complaints.append(f"All tests were skipped (status {NOTHING_TESTED})")
        return done

    def _write(self, path: Path, write: Callable[[], None]) -> None:
        if line := complaint(path, write):
            self._complaints.append(line)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Generator[None, None, None]:
        """Print the table of statements last, where the reader looks first."""
        yield
        for line in self._complaints:
            terminalreporter.write_line(line, red=True)
        verbosity = terminalreporter.verbosity
        if verbosity < 0:
            return
        results = self._collector.results(complete=True)
        if not results.tests:
            return
        terminalreporter.section("statements, each with its worst verdict")
        for line in failures(results):
            terminalreporter.write_line(line, red=True)
        for line in causes.lines(results, None if verbosity > 0 else CAUSES):
            terminalreporter.write_line(line, red=True)
        for line in groups(results, None if verbosity > 0 else REASONS):
            terminalreporter.write_line(line)
        for line in tree(results, None if verbosity > 0 else DEPTH):
            terminalreporter.write_line(line)
