"""A terminal that closes, or a file in its place that is full: the run goes on to its reports."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

import pytest


class _Lossy:
    """A text file whose errors end the output, and not the run."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lost = False

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
        # What is buffered is discarded now: pytest's capturing puts the lost file back at the
        # descriptor, and Python would write to it once more at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._file.fileno())
        os.close(nowhere)
        self._file.flush()
        if sys.stderr is not None:
            print(f"vblk: no more output ({error.strerror}); the reports follow", file=sys.stderr)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Put the terminal reporter on a file that never fails."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    writer = getattr(reporter, "_tw", None)
    if writer is not None and getattr(writer, "_file", None) is not None:
        writer._file = _Lossy(writer._file)
