"""Selection of tests by level, section and statement, on a fake target."""

from __future__ import annotations

import pytest

from harness.virtio.catalogue import lookup

pytest_plugins = ["pytester"]

SUITE = """
@clause("2.1.2-D-01")
def test_must(plug): plug(start=False)

@clause("5.2.6.2-D-03b")
def test_must_not(plug): plug(start=False)

@clause("2.1.2-D-02")
def test_should(plug): plug(start=False); assert 1 == 2

@clause("2.7.7.2-D-01")
@described("2.7.10-P-01")
def test_prose(plug): plug(start=False)

def test_about_nothing(plug): plug(start=False)
"""


def passed(result: pytest.RunResult) -> list[str]:
    return [
        line.split("::")[1].split()[0]
        for line in result.outlines
        if line.startswith(("PASSED", "XFAIL"))
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--level", "must"], ["test_must", "test_must_not"]),
        (["--level", "MUST"], ["test_must", "test_must_not"]),
        (["--level", "should"], ["test_should"]),
        (["--level", "described", "--level", "should"], ["test_prose", "test_should"]),
        (["--section", "2.1"], ["test_must", "test_should"]),
        (["--section", "2.1", "--level", "must"], ["test_must"]),
        (["--section", "2.7"], ["test_prose"]),
        (["--section", "2.7.10"], ["test_prose"]),
        (["--section", "2"], ["test_must", "test_prose", "test_should"]),
        (["--clause", "5.2.6.2-D-03b"], ["test_must_not"]),
        (["--clause", "5.2.6.2-D-03"], ["test_must_not"]),
        (["--clause", "5.2.6.2-D-03a"], []),
        (["--clause", "2.1.2-D-01", "--section", "2.7.10"], ["test_must", "test_prose"]),
    ],
    ids=" ".join,
)
def test_what_was_asked_for_is_run_and_nothing_else(run, options, expected) -> None:
    result = run(SUITE, "-rpx", *options)

    assert sorted(passed(result)) == expected
    assert result.parseoutcomes().get("deselected", 0) == 5 - len(expected)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--level", "may"],
            "*argument --vblk-level/--level: unknown level 'may'; known: must, described, *",
        ),
        (
            ["--section", "capacity"],
            "*argument --vblk-section/--section: 'capacity' is not a section number; *2.7*",
        ),
        (["--section", "2.99"], "ERROR: --section 2.99: no such section; known: 2.1, *"),
        (["--section", "9"], "ERROR: --section 9: no such section; known: the chapters 2, *"),
        (["--clause", "2.1.2-D-9"], "*no statement '2.1.2-D-9' *; known: 2.1.2-D-01, *"),
        (["--clause", "2.2-D-01"], "*no statement '2.2-D-01' *; known: 2.1, *"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_there_is_one_line_that_says_what_is(run, options, line) -> None:
    result = run(SUITE, *options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])


def test_strict_is_an_option_of_pytest_alone(run) -> None:
    run(SUITE, "--strict").assert_outcomes(passed=4, xfailed=1)
    run(SUITE, "--vblk-strict-should").assert_outcomes(passed=4, failed=1)


def test_a_statement_without_a_test_says_why(run) -> None:
    result = run(SUITE, "--clause", "4.1.4.11.0.1-D-01")

    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["4.1.4.11.0.1-D-01 has no test: This binds only a device *"])


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_statements_are_listed_with_their_words_and_tests(run, workers) -> None:
    result = run(SUITE, "--list-statements", "--section", "2.1.2", *workers)

    assert result.ret == 0
    assert not result.parseoutcomes().keys() & {"passed", "failed", "xfailed", "errors"}
    lines = result.outlines
    start = lines.index("2.1.2-D-01 MUST NOT")
    assert lines[start + 2 : start + 4] == ["    test_it.py::test_must", "2.1.2-D-02 SHOULD"]
    assert lines[start + 1] == f"    {lookup('2.1.2-D-01').text}"
    assert "    no test: none was collected" in lines
    assert not any(line.startswith(("2.4", "2.7", "PASSED", "TARGET")) for line in lines)


def test_statements_are_listed_for_a_party(run) -> None:
    device = run(SUITE, "--list-statements", "--section", "2.1", "--party", "device")
    driver = run(SUITE, "--list-statements", "--section", "2.1", "--party", "driver")

    device.stdout.fnmatch_lines(["2.1.2-D-01 MUST NOT"])
    device.stdout.no_fnmatch_line("2.1.1-R-02 *")
    driver.stdout.fnmatch_lines(["2.1.1-R-02 MUST NOT, driver"])
    driver.stdout.no_fnmatch_line("2.1.2-D-01 *")
