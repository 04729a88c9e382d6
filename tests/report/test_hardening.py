"""Hardening tests: left out unless asked for, at a level of their own, with a record of theirs."""

from __future__ import annotations

import json

import pytest

pytest_plugins = ["pytester"]

SUITE = """
from harness.report import hardening

@clause("2.1.2-D-01")
def test_must(plug): plug(start=False)

@hardening("2.7.5", "a loop")
def test_loop(plug, record_property):
    plug(start=False)
    record_property("hardening-verdict", "spins")
    assert False, "spins: QEMU used 3 s"

@hardening("2.7.5", "a hole")
def test_hole(plug, record_property):
    plug(start=False)
    record_property("hardening-verdict", "rejected")
"""

RECORD = """
[[deviation]]
clause = "2.7.5"
tests = ["test_it.py::test_loop"]
versions = ">=2"
seen = "spins: QEMU used"
why = "it has no end"
"""


def test_a_run_leaves_them_out_and_says_so(run) -> None:
    result = run(SUITE)

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["2 hardening tests left out; --level hardening"])


def test_the_level_asks_for_them(run) -> None:
    result = run(SUITE, "--level", "hardening")

    result.assert_outcomes(passed=1, failed=1, deselected=1)
    result.stdout.fnmatch_lines(["guest-pci: *spins 1*"])


@pytest.mark.parametrize("argument", [".", "test_it.py", "test_it.py::test_hole"])
def test_their_directory_and_what_is_in_it_asks_for_them(run, argument: str) -> None:
    result = run(SUITE, argument)

    assert result.parseoutcomes()["passed"] >= 1
    result.stdout.no_fnmatch_line("*left out*")


def test_a_directory_above_does_not_ask_for_them(run, pytester: pytest.Pytester) -> None:
    run(SUITE, "--collect-only")
    inside = pytester.mkpydir("inside")
    (pytester.path / "test_it.py").rename(inside / "test_it.py")

    result = pytester.runpytest_subprocess("-s", ".")

    result.assert_outcomes(passed=1)


def test_a_recorded_deviation_is_expected(run) -> None:
    result = run(SUITE, "--level", "hardening", deviations=RECORD)

    result.assert_outcomes(passed=1, xfailed=1, deselected=1)


def test_results_tell_them_from_the_specifications_statements(run, pytester) -> None:
    run(SUITE, "--level", "hardening", "--matrix", "results.json")

    results = json.loads((pytester.path / "results.json").read_text())

    rows = {row["id"]: row for row in results["statements"] if row["kind"] == "hardening"}
    assert set(rows) == {"2.7.5: a loop", "2.7.5: a hole"}
    assert {row["level"] for row in rows.values()} == {"hardening"}


def test_a_marker_without_a_text_is_refused(run) -> None:
    result = run('@pytest.mark.hardening("2.7")\ndef test_it(): pass\n')

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_it.py::test_it: @hardening takes a section*"])
