"""The results file: its entry for each outcome, and interruptions that it survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.outputs import replace_text
from harness.report.collect import source_url
from harness.report.results import (
    Column,
    Result,
    Results,
    ResultsError,
    Row,
    Run,
    Test,
    Verdict,
    dumped,
    load,
    parsed,
    plain_node,
    worst,
)

pytest_plugins = ["pytester"]

SUITE = """
import time

@clause("2.1.2-D-01")
def test_kept(plug): plug(start=False)

@clause("2.2.2-D-01")
def test_broken(plug):
    plug(start=False)
    used = 513
    assert used <= 1, (
        f"used length {used}"
    )

@clause("2.2.2-D-03")
def test_trouble(plug): plug(start=False); raise TargetError("QEMU died")

@clause("2.1.2-D-02")
def test_should(plug): plug(start=False); assert 1 == 2, "no needs_reset"

@clause("2.4.1-D-01", "2.4.1-D-02")
def test_deviates(plug): plug(start=False); assert 1 == 2, "known"

@described("5.2.6-P-07")
def test_lacking(plug): plug(needs=[Feature.BLK_DISCARD])

@clause("2.5.2-D-01")
def test_stuck(plug): plug(start=False, serial="stuck")

def test_of_nothing(plug): plug(start=False)
"""

DEVIATION = """
[[deviation]]
clause = "2.4.1-D-01"
tests = ["test_it.py::test_deviates"]
versions = ">=2"
seen = "known"
why = "because"
"""


@pytest.fixture
def found(run, pytester: pytest.Pytester):
    """Function that runs a suite and returns the results document."""

    def found(source: str = SUITE, *options: str) -> dict[str, Any]:
        run(source, "--matrix", "r.json", *options, deviations=DEVIATION)
        return json.loads((pytester.path / "r.json").read_text())

    return found


TARGET = "guest-pci (fake 2.1)"


def verdicts(document: dict[str, Any], target: str = TARGET) -> dict[str, str]:
    ran = {entry["id"]: entry["verdicts"][target] for entry in document["statements"]}
    return {name: verdict for name, verdict in ran.items() if verdict != "not run"}


def result(document: dict[str, Any], test: str, target: str = TARGET) -> dict[str, Any]:
    (entry,) = [entry for entry in document["tests"] if entry["id"].endswith(test)]
    return entry["results"][target]


def test_every_outcome_becomes_a_verdict_of_its_statements(found) -> None:
    document = found()

    assert verdicts(document) == {
        "2.1.2-D-01": "kept",
        "2.2.2-D-01": "broken",
        "2.2.2-D-03": "error",
        "2.1.2-D-02": "advisory",
        "2.4.1-D-01": "known deviation",
        "2.4.1-D-02": "skipped",  # the test ended at the deviation of its other statement
        "5.2.6-P-07": "skipped",
        "2.5.2-D-01": "error",
    }


def test_the_run_and_its_target_are_described(found) -> None:
    document = found()

    (run,) = document["runs"]
    assert run["complete"] is True
    assert run["specification"] == "virtio 1.4"
    assert run["seconds"] > 0
    (target,) = document["targets"]
    assert target["implementations"] == {"fake": "2.1"}
    assert target["facts"] == {"qemu": "a fake", "guest-kernel": "none"}


def test_a_failure_has_what_was_expected_and_what_was_seen(found) -> None:
    document = found()

    broken = result(document, "test_broken")
    assert broken["expected"] == "used <= 1"
    assert broken["seen"] == "used length 513: 513 <= 1"
    assert "vblk# panic" in broken["evidence"]
    assert result(document, "test_trouble")["seen"] == "QEMU died"
    assert result(document, "test_stuck")["seen"] == "it does not come out"
    assert result(document, "test_deviates")["deviation"] == {
        "statement": "2.4.1-D-01",
        "why": "because",
    }
    assert result(document, "test_lacking")["reason"] == "the device does not offer BLK_DISCARD"
    assert "evidence" not in result(document, "test_kept")


def test_a_test_has_its_place_and_its_source(found, pytester: pytest.Pytester) -> None:
    (test,) = [entry for entry in found()["tests"] if entry["id"].endswith("test_broken")]

    assert (test["file"], test["statements"]) == ("test_it.py", ["2.2.2-D-01"])
    assert test["source"].startswith('@clause("2.2.2-D-01")\ndef test_broken')
    assert test["source"].endswith("    )\n")
    lines = (pytester.path / "test_it.py").read_text().splitlines()
    assert lines[test["line"] - 1] == '@clause("2.2.2-D-01")'


def test_with_several_targets_a_test_is_one_with_two_results(found) -> None:
    document = found(SUITE, "--target", "guest-pci", "--target", "other")

    assert len(document["tests"]) == 7
    assert result(document, "test_kept")["verdict"] == "kept"
    lacking = result(document, "test_kept", "other")
    assert (lacking["verdict"], lacking["reason"]) == ("skipped", "it is somebody's")


def test_a_record_of_a_deviation_that_is_gone_is_not_a_failure_of_the_device(found) -> None:
    document = found("@clause('2.4.1-D-01')\ndef test_deviates(plug): plug(start=False)\n")

    assert verdicts(document) == {"2.4.1-D-01": "error"}
    assert "is gone" in result(document, "test_deviates")["seen"]


def test_a_run_that_stops_at_a_failure_is_not_complete(found) -> None:
    document = found(SUITE, "-x")

    assert document["runs"][0]["complete"] is False
    assert verdicts(document) == {"2.1.2-D-01": "kept", "2.2.2-D-01": "broken"}


def test_a_run_cut_short_by_ctrl_c_writes_what_it_has(run, pytester: pytest.Pytester) -> None:
    run("def test_nothing(): pass\n")  # creates the directory
    pytester.makepyfile(
        test_it="import time\nfrom harness.report import clause\n"
        "@clause('2.1.2-D-01')\ndef test_a(plug): plug(start=False)\n"
        "@clause('2.4.1-D-01')\ndef test_b(plug):\n"
        "    plug(start=False)\n    open('here', 'w').close()\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "pytest", "--matrix", "r.json", "test_it.py"]
    with subprocess.Popen(command, cwd=pytester.path, env=os.environ) as process:
        try:
            deadline = time.monotonic() + 60
            while not (pytester.path / "here").exists():
                assert time.monotonic() < deadline, "the second test did not begin within 60 s"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == pytest.ExitCode.INTERRUPTED
        finally:
            process.kill()

    document = json.loads((pytester.path / "r.json").read_text())
    assert document["runs"][0]["complete"] is False
    assert verdicts(document) == {"2.1.2-D-01": "kept"}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("r.txt", "'r.txt' has to end with .json or .html"),
        ("/dev/null/r.json", "'/dev/null' cannot be made a directory"),
        ("directory.json", "'directory.json' cannot be written: Is a directory"),
        ("fifo.json", "'fifo.json' cannot be written: It is not a regular file"),
        ("/proc/r.json", "'/proc' cannot be made a directory: No such file"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_at_once(
    run, pytester: pytest.Pytester, name, complaint
) -> None:
    (pytester.path / "directory.json").mkdir()
    os.mkfifo(pytester.path / "fifo.json")

    result = run(SUITE, "--matrix", name)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--matrix: {complaint}*"])


def test_a_junit_file_that_cannot_be_written_is_refused_at_once(run) -> None:
    result = run(SUITE, "--junitxml=/dev/null/out.xml")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--junitxml: '/dev/null' cannot be made a directory: *"])


@pytest.mark.parametrize("lost", ["a.json", "b.html", "out.xml"])
def test_a_report_that_fails_is_one_line_and_the_others_are_written(
    run, pytester: pytest.Pytester, lost: str
) -> None:
    options = ["--matrix=a.json", "--matrix=b.html", "--junitxml=out.xml"]
    suite = (
        "@clause('2.1.2-D-01')\n"
        f"def test_it(plug): plug(start=False); __import__('os').mkdir({lost!r})\n"
    )

    result = run(suite, *options)

    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    result.stdout.fnmatch_lines([f"*{lost} is not written: Is a directory", "*1 passed*"])
    result.stdout.fnmatch_lines(["*= statements, each *=*"])
    written = {path.name for path in pytester.path.iterdir() if path.is_file()}
    assert {"a.json", "b.html", "out.xml"} - {lost} <= written
    assert not [name for name in written if name.startswith((".a", ".b"))]


def test_what_was_there_is_there_still_if_a_report_fails(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_text("old")

    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "\ud800")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_keeps_the_mode_and_the_link_of_the_file_that_it_replaces(tmp_path: Path) -> None:
    path, link = tmp_path / "r.txt", tmp_path / "link.txt"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)

    replace_text(link, "new")

    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


def some() -> Results:
    column = Column("vhost-user", {"qsd": "7.2"}, {"qsd": "7.2.22"}, [0])
    row = Row("2.1.2-D-01", "2.1.2", "MUST", "device", "It waits.", untested="")
    test = Test("t.py::test_a", "t.py", 3, [row.id], "def", {column.id: Result(Verdict.KEPT, 1.5)})
    run = Run("2026-01-01T00:00:00+00:00", 2.0, True, "virtio 1.4", "0.1", ["-q"], {"os": "x"})
    return Results([run], [column], {row.id: row}, {test.id: test})


def test_what_is_written_is_read_as_it_was() -> None:
    assert parsed(json.loads(dumped(some()))) == some()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "no JSON"),
        ("[]", "these are not results of a conformance run"),
        ('{"format": "other"}', "these are not results of a conformance run"),
        (dumped(some()).replace('"version": 1', '"version": 9'), "the format has version 9"),
        (dumped(some()).replace('"verdict": "kept"', '"verdict": "fine"'), "damaged: .*fine"),
        (dumped(some()).replace('"rows"', "").replace('"tests"', '"x"'), "damaged: needs tests"),
        (dumped(some()).replace("1.5", "NaN"), "NaN is not a number"),
        (dumped(some()).replace("1.5", '"long"'), "seconds: expected a number, not 'long'"),
        (dumped(some()).replace("1.5", "1e999"), "seconds: expected a number, not inf"),
        (dumped(some()).replace("1.5", "9" * 5000), "no JSON: .*digits"),
        (dumped(some()).replace("1.5", "9" * 4000), "seconds: expected a number, not inf"),
        (dumped(some()).replace('"It waits."', '"\\ud800"'), "text: expected Unicode text"),
        (dumped(some()).replace('"2.1.2",', '"2.x",'), "section: expected a section's number"),
        (dumped(some()).replace('"statements": [\n', '"statements": 3, "x": [\n', 1), "a list"),
        (dumped(some()).replace("    0\n", "    1\n"), "there are 1 runs"),
        (dumped(some()).replace('"vhost-user (qsd 7.2)": {', '"b": {'), "b: no such target"),
        (dumped(some()).replace('"hardening": {}', '"hardening": {"a": "b"}'), "of hardening"),
        (dumped(some()).replace('"level": "MUST"', '"level": "\\u001b[2J"'), "expected one of"),
        ('{"format": ' * 5000, "nested too deeply"),
        (f'{{"a": {"[" * 50_000}', "nested too deeply"),
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)

    with pytest.raises(ResultsError, match=complaint) as caught:
        load(path)

    assert str(caught.value).startswith(f"{path}:")
    assert str(caught.value).isprintable()


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="No such file"):
        load(tmp_path / "r.json")


def test_the_worst_verdict_counts() -> None:
    assert worst([Verdict.SKIPPED, Verdict.KEPT, Verdict.NOT_RUN]) is Verdict.KEPT
    assert worst([Verdict.KEPT, Verdict.BROKEN, Verdict.DEVIATION]) is Verdict.BROKEN
    assert worst([]) is Verdict.NOT_RUN


@pytest.mark.parametrize(
    ("node", "plain"),
    [
        ("a.py::test_a[@vhost-user:/run/x]", "a.py::test_a"),
        ("a.py::test_a[grown-@guest-pci]", "a.py::test_a[grown]"),
        ("a.py::test_a[grown]", "a.py::test_a[grown]"),
    ],
)
def test_a_node_without_its_target(node: str, plain: str) -> None:
    assert plain_node(node) == plain


def test_in_ci_a_test_has_a_url() -> None:
    github = {
        "GITHUB_SHA": "abc",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "a/b",
    }
    gitlab = {"CI_PROJECT_URL": "https://gitlab.com/a/b", "CI_COMMIT_SHA": "abc"}

    assert source_url(github) == "https://github.com/a/b/blob/abc/{file}#L{line}"
    assert source_url(gitlab) == "https://gitlab.com/a/b/-/blob/abc/{file}#L{line}"
    assert source_url({}) == ""
