"""Trouble that says nothing about the device is an error in all reports."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

pytest_plugins = ["pytester"]

SUITE = """
from harness.driver.errors import DeviceTimeoutError, DriverError

def late(self, spec, writes=True):
    raise DeviceTimeoutError("SET_MEM_TABLE was not answered")

@clause("2.4.1-D-01")
def test_not_ready(plug, bench, monkeypatch):
    plug(start=False)
    monkeypatch.setattr(type(bench.target), "plug", late)
    plug(start=False)

@clause("2.4.1-D-01")
def test_mistake_of_the_test(plug): plug(start=False); raise ValueError("4096 is not below 740")

@clause("2.1.2-D-02")
def test_mistake_at_a_should(plug): plug(start=False); raise ValueError("a mistake")

@clause("2.1.2-D-02")
def test_late_at_a_should(plug, bench, monkeypatch):
    plug(start=False)
    monkeypatch.setattr(type(bench.target), "plug", late)
    plug(start=False)

@clause("2.4.1-D-01")
def test_lost(plug): plug(start=False); raise DriverError("the back-end closed the connection")

@clause("2.4.1-D-01")
def test_assertion_of_the_harness(plug):
    plug(start=False)
    from harness.guest import wire
    exec(compile("assert False, 'a mistake'", wire.__file__, "exec"))

@clause("2.4.1-D-01")
def test_no_answer(plug): plug(start=False); raise DeviceTimeoutError("waited 5 s")

@clause("2.4.1-D-01")
def test_wrong(plug): plug(start=False); assert 1 == 2
"""

TROUBLE = {
    "test_not_ready",
    "test_mistake_of_the_test",
    "test_mistake_at_a_should",
    "test_late_at_a_should",
    "test_lost",
    "test_assertion_of_the_harness",
}


@pytest.fixture
def ran(run, pytester: pytest.Pytester) -> pytest.RunResult:
    """Run the suite, with every report."""
    result: pytest.RunResult = run(SUITE, "--junitxml=out.xml", "--matrix=out.json")
    return result


def test_the_results_say_error(ran: pytest.RunResult, pytester: pytest.Pytester) -> None:
    tests = json.loads((pytester.path / "out.json").read_text())["tests"]
    verdicts = {
        test["id"].rpartition("::")[2]: result["verdict"]
        for test in tests
        for result in test["results"].values()
    }
    assert {name for name, verdict in verdicts.items() if verdict == "error"} == TROUBLE
    assert {name for name, verdict in verdicts.items() if verdict == "broken"} == {
        "test_no_answer",
        "test_wrong",
    }


def test_junit_says_error(ran: pytest.RunResult, pytester: pytest.Pytester) -> None:
    cases = ElementTree.parse(pytester.path / "out.xml").iter("testcase")
    kinds = {case.get("name"): {child.tag for child in case} for case in cases}
    assert {name for name, tags in kinds.items() if "error" in tags} == TROUBLE
    assert {name for name, tags in kinds.items() if "failure" in tags} == {
        "test_no_answer",
        "test_wrong",
    }


def test_the_terminal_counts_errors(ran: pytest.RunResult) -> None:
    assert ran.ret == 1
    ran.assert_outcomes(failed=2, errors=len(TROUBLE))
