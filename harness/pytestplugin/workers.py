"""Worker names and progress lines, also for tests that run in workers of pytest-xdist."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext

import pytest


def worker_of(config: pytest.Config) -> str:
    """Return the name of this worker of pytest-xdist; empty in the process that reports."""
    return str(getattr(config, "workerinput", {}).get("workerid", ""))


def progress_of(config: pytest.Config) -> Callable[[str], None]:
    """Return a function that shows a line on the terminal in spite of pytest's capture."""
    worker = worker_of(config)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")

    def progress(line: str) -> None:
        if config.option.verbose < 0:
            return
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            if worker:
                # A worker has no reporter; its stderr reaches the same terminal.
                print(f"[{worker}] {line}", file=sys.stderr, flush=True)
            elif reporter:
                reporter.ensure_newline()
                reporter.write_line(line)
                reporter.flush()

    return progress
