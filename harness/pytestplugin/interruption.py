"""Deadlines of tests and of the run, and an end in order when a signal comes.

A test that takes too long is an error of that test. It names the deadline, and its report has the
state of the device. What it had is given up, so that the next test begins on a device of its own.
A signal ends the run with its summary and its reports, whatever it interrupts.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from harness import interrupt
from harness.pytestplugin.arguments import seconds

TEST_TIMEOUT = 120.0
"""Seconds, unless told otherwise; the slowest test of the suite takes a tenth of it."""

TEARDOWN = 30.0
"""Seconds that a test has at least to give back what it took, also when it is overdue."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options about time."""
    group = parser.getgroup("virtio-blk", "virtio-blk conformance")
    group.addoption(
        "--vblk-test-timeout",
        type=seconds,
        default=TEST_TIMEOUT,
        metavar="SECONDS",
        help="a test that takes longer is an error (120); what is made once for all does not count",
    )
    group.addoption(
        "--vblk-run-timeout",
        type=seconds,
        metavar="SECONDS",
        help="end the run after this time, with its reports and exit status 2",
    )


class _Clock:
    """The deadlines of one run."""

    def __init__(self, config: pytest.Config) -> None:
        self._test: float = config.option.vblk_test_timeout
        self._run: float | None = config.option.vblk_run_timeout
        self._begun = time.monotonic()
        self._left = self._test

    def run_is_over(self) -> str:
        """Return why the run ends, in one line; nothing while it has time left."""
        if self._run is None or time.monotonic() < self._begun + self._run:
            return ""
        return f"the run took longer than {self._run:g} s (--vblk-run-timeout)"

    def new_test(self) -> None:
        """Give the next test all its time."""
        self._left = self._test

    @contextmanager
    def phase(self, at_least: float = 0.01) -> Iterator[None]:
        """Raise OverdueError once the test, or the run, has taken all its time."""
        begun = time.monotonic()
        with ExitStack() as alarms:
            if self._run is not None:
                left = max(self._begun + self._run - begun, at_least)
                words = f"the run took longer than {self._run:g} s (--vblk-run-timeout)"
                alarms.enter_context(interrupt.alarm(left, words))
            words = f"the test took longer than {self._test:g} s (--vblk-test-timeout)"
            alarms.enter_context(interrupt.alarm(max(self._left, at_least), words, pausable=True))
            yield
        self._left -= time.monotonic() - begun


def pytest_sessionstart(session: pytest.Session) -> None:
    """Take over signals, and start the clock of the run."""
    interrupt.install()
    session.config.pluginmanager.register(_Guard(session.config), "vblk-interruption")


class _Guard:
    """The hooks of a run whose signals are ours."""

    def __init__(self, config: pytest.Config) -> None:
        self._clock = _Clock(config)
        self._workers: list[int] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Make an interruption of what a signal has turned into another error.

        Python's own locks may raise RuntimeError when they are interrupted.
        """
        try:
            return (yield)
        except Exception:
            interrupt.check()
            raise

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """End the run before a test if a signal came and was lost; after it if time is up."""
        interrupt.check()
        self._clock.new_test()
        result = yield
        if reason := self._clock.run_is_over():
            item.session.shouldstop = reason
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        """Set the test's deadline."""
        with self._clock.phase():
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """Set the test's deadline, as far as its time is not used up."""
        with self._clock.phase():
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        """Set the deadline of what gives back."""
        with self._clock.phase(TEARDOWN):
            return (yield)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        """Note the process of a worker of pytest-xdist that runs on this machine."""
        process = getattr(getattr(node.gateway, "_io", None), "popen", None)
        if process is not None:
            self._workers.append(process.pid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        """Only note signals from now on, and have the workers end at once, too."""
        interrupt.finish()
        for pid in self._workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Write all reports, whatever signals come now; a run that one came in has status 2."""
        interrupt.finish()
        yield
        if interrupt.received() is not None and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.INTERRUPTED

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Give signals back to a program that goes on; one that is pytest ends now."""
        if not _ends_with_pytest():
            interrupt.uninstall()


def _ends_with_pytest() -> bool:
    """Return whether this process is the command `pytest`, or a worker of pytest-xdist."""
    main = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    return main.stem in ("pytest", "py.test") or main.parent.name == "pytest"
