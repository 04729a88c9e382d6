"""Output that is lost, as the terminal was closed or the file is full.

A run of tests goes on to its reports. A listing ends.
"""

from __future__ import annotations

from typing import Any, TextIO

import pytest

from harness.pytestplugin.lost import discard, report_loss


class _Lossy:
    """A text file whose errors end the output, and not the run.

    If it shows a listing, a reader that has read enough (`| head`) is no error.
    """

    def __init__(self, file: TextIO, listing: bool) -> None:
        self._file = file
        self._listing = listing
        self._lost = False
        self.failed = False
        """True if it shows a listing, and an error kept the reader from having all of it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write a text, or lose it."""
        if self._lost:
            return len(text)
        try:
            return self._file.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or lose it."""
        if self._lost:
            return
        try:
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._lost = True
        discard(self._file)
        if not self._listing:
            report_loss(error, "; the reports follow")
        elif not isinstance(error, BrokenPipeError):
            self.failed = True
            report_loss(error)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Put the terminal reporter on a file that never fails."""
    listing = config.option.vblk_list_statements or config.option.collectonly
    writer = _writer(config)
    if getattr(writer, "_file", None) is not None:
        writer._file = _Lossy(writer._file, listing)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let the run fail if its only result is a listing and that could not be written."""
    file = getattr(_writer(session.config), "_file", None)
    if isinstance(file, _Lossy):
        file.flush()
        if file.failed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Write what is still buffered: Python's own attempt at its end would not be lossy."""
    file = getattr(_writer(config), "_file", None)
    if isinstance(file, _Lossy):
        file.flush()


def _writer(config: pytest.Config) -> Any:
    """Return the file writer of the terminal reporter, None if there is none."""
    return getattr(config.pluginmanager.getplugin("terminalreporter"), "_tw", None)
