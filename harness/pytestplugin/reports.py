"""Report files (`--matrix`, `--artifacts`), and the table of statements at the end of a run."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from harness.report.collect import Collector
from harness.report.files import make_directory, report_file, write
from harness.report.junit import reshape
from harness.report.tree import failures, tree

DEPTH = 3
"""Levels of sections that the terminal shows; -v shows all."""

COLLECTOR = pytest.StashKey[Collector]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for reports."""
    group = parser.getgroup("virtio-blk", "virtio-blk conformance")
    group.addoption(
        "--matrix",
        action="append",
        default=[],
        metavar="FILE",
        type=report_file,
        help="write the verdict of every statement on every target to FILE.html (a page) or"
        " FILE.json (data); repeatable",
    )
    group.addoption(
        "--artifacts",
        metavar="DIR",
        type=_directory,
        help="directory for each failed test's console, logs, state and a command that repeats it",
    )


def _directory(text: str) -> Path:
    path = Path(text).absolute()
    make_directory(path)
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Start to collect results, in the controller only: workers send their reports to it."""
    if not hasattr(config, "workerinput"):
        config.stash[COLLECTOR] = collector = Collector(
            config.rootpath, config.invocation_params.args
        )
        config.pluginmanager.register(_Listener(collector, config.option.matrix))


class _Listener:
    """Collect pytest's reports, and write the files when the run is done or was stopped."""

    def __init__(self, collector: Collector, files: list[Path]) -> None:
        self._collector = collector
        self._files = files

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._collector.add(report)

    @pytest.hookimpl(trylast=True)  # runs after pytest has written its own report
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        ran = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        cut_short = session.shouldfail or session.shouldstop
        results = self._collector.results(complete=ran and not cut_short)
        for path in self._files:
            write(path, results)
        if session.config.option.xmlpath:
            reshape(Path(session.config.option.xmlpath), session.config.getini("junit_family"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Generator[None, None, None]:
        """Print the table of statements last, where the reader looks first."""
        yield
        results = self._collector.results(complete=True)
        verbosity = terminalreporter.verbosity
        if not results.tests or verbosity < 0:
            return
        terminalreporter.section("statements, each with its worst verdict")
        for line in failures(results):
            terminalreporter.write_line(line, red=True)
        for line in tree(results, None if verbosity > 0 else DEPTH):
            terminalreporter.write_line(line)
