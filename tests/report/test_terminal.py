"""The last lines of a run: one line for each failure, and the statements by section."""

from __future__ import annotations

import pytest
from made_up import OTHER, a_test, broken, made_up

from harness.pytestplugin.reports import NOTHING_TESTED
from harness.pytestplugin.seconds import Spent, guests
from harness.report.results import Results
from harness.report.tree import failures, tree
from harness.virtio.catalogue import lookup

pytest_plugins = ["pytester"]

SUITE = """
@clause("2.1.2-D-01")
def test_kept(plug): plug(start=False)

@clause("2.2.2-D-01")
def test_broken(plug):
    plug(start=False)
    used = 513
    assert used <= 1, f"used length {used}\\x1b[2J"

@described("5.2.6-P-07")
def test_trouble(plug):
    plug(start=False)
    raise TargetError("QEMU died")

@clause("4.1.5.1.2.1-D-01")
def test_lacking(plug): plug(needs=[Feature.BLK_DISCARD])
"""


def last_lines(result: pytest.RunResult) -> list[str]:
    """Return the lines after pytest's own summary."""
    lines = result.stdout.lines
    titles = [n for n, line in enumerate(lines) if " statements, each with its worst " in line]
    return lines[titles[0] + 1 :] if titles else []


def test_failures_come_first_and_pytests_own_line_last(run) -> None:
    lines = last_lines(run(SUITE))

    assert lines[:2] == [
        f'broken 2.2.2-D-01 MUST NOT "{lookup("2.2.2-D-01").text}":'
        " expected used <= 1, seen used length 513: 513 <= 1 (test_it.py::test_broken)",
        f'error 5.2.6-P-07 described "{lookup("5.2.6-P-07").text}":'
        ' expected raise TargetError("QEMU died"), seen QEMU died (test_it.py::test_trouble)',
    ]
    assert lines[-1].strip("= ").startswith("1 failed, 1 passed, 1 skipped, 1 error in ")


def test_skips_and_sections_follow_with_counts(run) -> None:
    lines = [" ".join(line.split()) for line in last_lines(run(SUITE))[2:-1]]

    assert lines == [
        "1 skipped: the device does not offer BLK_DISCARD",
        "section broken error kept skipped",
        "2 Basic facilities 1 - 1 -",
        "2.1 Device status - - 1 -",
        "2.2 Feature bits 1 - - -",
        "4 Transports - - - 1",
        "4.1 PCI - - - 1",
        "5 Device types - 1 - -",
        "5.2 Block device - 1 - -",
    ]


MANY = """
@pytest.mark.parametrize("n", [*range(15), 14])
@clause("2.1.2-D-01")
def test_it(n, plug):
    pytest.skip(f"reason {n}")
"""


def test_the_most_frequent_reasons_are_shown_and_the_others_are_counted(run) -> None:
    result = run(MANY)
    lines = last_lines(result)

    assert "All tests were skipped (status 10)" in result.outlines
    assert lines[0] == "2 skipped: reason 14"
    assert len([line for line in lines if " skipped: reason " in line]) == 10
    assert "5 skipped: 5 other reasons; -ra lists all" in lines


def test_all_reasons_are_shown_with_v(run) -> None:
    lines = last_lines(run(MANY, "-v"))

    assert len([line for line in lines if " skipped: reason " in line]) == 15


@pytest.mark.parametrize(
    ("source", "status"),
    [
        (MANY, NOTHING_TESTED),
        (MANY + "\ndef test_other(): pass\n", pytest.ExitCode.OK),
        (MANY + "\ndef test_other(): assert False\n", pytest.ExitCode.TESTS_FAILED),
        ("def test_other(): pytest.skip('')\n", pytest.ExitCode.OK),
    ],
    ids=["all", "all but another's", "and a failure", "another's"],
)
def test_a_run_whose_tests_were_all_skipped_has_a_status_of_its_own(
    run, source: str, status: int
) -> None:
    assert run(source).ret == status


def test_deeper_sections_show_with_v(run) -> None:
    assert any("4.1.5.1.2.1 MSI-X vectors" in line for line in last_lines(run(SUITE, "-v")))


@pytest.mark.parametrize(
    ("source", "options"), [("def test_it(): pass\n", ()), (SUITE, ("-q",)), (SUITE, ("--co",))]
)
def test_there_is_nothing_to_say(run, source: str, options: tuple[str, ...]) -> None:
    assert last_lines(run(source, *options)) == []


def test_nothing_in_a_pipe_moves_a_terminal(run) -> None:
    result = run(SUITE, "-p", "no:cacheprovider")

    assert "\x1b" not in "\n".join(last_lines(result))


def test_with_several_targets_a_failure_says_which() -> None:
    results = made_up()

    assert list(failures(results)) == [
        f'broken 2.1.2-D-01 MUST "About 2.1.2-D-01.", {OTHER.name}:'
        " expected used <= 1, seen used 513 (suite/test_a.py::test_start)",
        'error 2.10.2-D-01 MUST "About 2.10.2-D-01.", pci: seen QEMU died'
        " (suite/test_a.py::test_memory)",
    ]


def test_a_statement_counts_once_with_its_worst_verdict() -> None:
    test = a_test("test_a", "2.4.1-D-02", old=broken(), new=broken(), other=broken())
    some = made_up()
    results = Results([], some.columns, {"2.4.1-D-02": some.rows["2.4.1-D-02"]}, {test.id: test})

    lines = [line.split() for line in tree(results, depth=1)]

    assert lines == [["section", "broken"], ["2", "Basic", "facilities", "1"]]


def test_guests_that_serve_several_tests_are_counted() -> None:
    tests = [
        *(Spent("guest-pci", {"start": start}) for start in (0.2, 0.0, 0.1, 0.0)),
        *(Spent("guest-mmio", {"start": 0.3}) for _ in range(2)),
        *(Spent("qtest-pci", {"start": 0.0}) for _ in range(3)),
    ]

    assert list(guests(tests)) == ["guest-pci: 4 tests, guests started for them: 2"]
