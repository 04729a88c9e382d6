"""Deadlines of tests and of runs, on the target that is not there (see tests/conftest.py)."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

SLOW = """
import time

@clause("5.2.6.2-D-02")
def test_slow(plug, request):
    clock = request.config.pluginmanager.get_plugin("vblk-interruption")._clock
    clock._test = max(clock._test, 60)  # for the next test: a busy machine may be slow
    plug(start=False)
    {wait}

@clause("5.2.6.2-D-02")
def test_next(plug):
    plug(start=False)
"""

WAITS = {
    "sleeps": "time.sleep(60)",
    "swallows errors": """while True:
        try:
            time.sleep(60)
        except Exception:
            pass""",
    "in a destructor": """class Odd:
        def __del__(self):
            time.sleep(60)
    Odd()
    time.sleep(60)""",
}


def verdicts(pytester: pytest.Pytester) -> dict[str, str]:
    """Return the verdicts in the results file, by the name of the test."""
    tests = json.loads((pytester.path / "m.json").read_text())["tests"]
    return {
        test["id"].rpartition("::")[2]: result["verdict"]
        for test in tests
        for result in test["results"].values()
    }


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_test_that_is_overdue_is_an_error_and_the_run_goes_on(
    run: Run, pytester: pytest.Pytester, wait: str
) -> None:
    result = run(
        SLOW.format(wait=wait), "--vblk-test-timeout", "2", "--matrix=m.json", "--junitxml=j.xml"
    )

    result.assert_outcomes(passed=1, errors=1)
    text = result.stdout.str()
    assert "the test took longer than 2 s (--vblk-test-timeout)" in text
    assert "guest console, last lines" in text  # the state
    assert verdicts(pytester) == {"test_slow": "error", "test_next": "kept"}
    assert len(list(ElementTree.parse(pytester.path / "j.xml").iter("testcase"))) == 2


def test_what_is_not_overdue_is_left_alone(run: Run) -> None:
    result = run(SLOW.format(wait="time.sleep(0.1)"), "--vblk-test-timeout", "30")
    result.assert_outcomes(passed=2)


def test_a_run_that_is_overdue_ends_with_its_reports(run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        SLOW.format(wait="time.sleep(60)"),
        *("--vblk-run-timeout", "3.5", "--matrix=m.json", "--junitxml=j.xml"),
    )

    assert result.ret == pytest.ExitCode.INTERRUPTED
    text = result.stdout.str()
    assert "the run took longer than 3.5 s (--vblk-run-timeout)" in text
    assert "test_next" not in text
    assert verdicts(pytester) == {"test_slow": "error"}
    assert len(list(ElementTree.parse(pytester.path / "j.xml").iter("testcase"))) == 1


@pytest.mark.parametrize("option", ["--vblk-test-timeout", "--vblk-run-timeout"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_is_none(run: Run, option: str, value: str) -> None:
    result = run(SLOW.format(wait="pass"), f"{option}={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option}: '{value}' is not a number of seconds greater*"])


pytest_plugins = ["pytester"]
