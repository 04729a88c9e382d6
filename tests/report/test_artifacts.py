"""`--artifacts DIR`: the files of a failed test, and the command that repeats it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.report.artifacts import MARKER

pytest_plugins = ["pytester"]

SUITE = """
@clause("2.1.2-D-01")
def test_kept(plug): plug(start=False)

@clause("2.2.2-D-01")
@pytest.mark.parametrize("used", [513, 1025])
def test_broken(plug, used):
    plug(start=False, read_only=True)
    plug(start=False)
    assert used <= 1

@clause("2.5.2-D-01")
def test_stuck(plug): plug(start=False, serial="stuck"); assert 0
"""


def files(top: Path) -> dict[str, list[str]]:
    """Return the directories below `top`, with the names of their entries."""
    return {
        str(path.relative_to(top)): sorted(
            entry.name for entry in path.iterdir() if entry.name != MARKER
        )
        for path in sorted(top.rglob("*"))
        if path.is_dir() and any(entry.is_file() for entry in path.iterdir())
    }


@pytest.fixture
def top(pytester: pytest.Pytester) -> Path:
    return pytester.path / "kept" / "here"


def entry(top: Path, words: str) -> Path:
    """Return the only directory whose name contains `words`."""
    (found,) = top.glob(f"*/*{words}*")
    return found


def test_a_failure_leaves_all_there_was_to_see(run, top: Path, pytester: pytest.Pytester) -> None:
    result = run(SUITE, "--artifacts=kept/here", "-k", "513")

    result.assert_outcomes(failed=1)
    ((name, names),) = files(top).items()
    assert name.startswith("guest-pci/test_it.py-test_broken-513-")
    assert names == ["disk0.txt", "disk1.txt", "failure.txt", "replay.sh"]
    kept = top / name
    assert "vblk# panic" in (kept / "failure.txt").read_text()
    assert (kept / "disk0.txt").read_text() == "read_only=True\nstatus: 0x0f\nqueues: queue 0\n"
    assert (kept / "disk1.txt").read_text().startswith("default properties\n")


def test_logs_are_kept_without_what_moves_a_terminal(run, top: Path) -> None:
    logs = """
from harness.targets import Target
Target.logs = lambda self: {"qemu.log": "a\\x1b[1mb\\x07"}
"""
    run(logs + SUITE, "--artifacts=kept/here", "-k", "513")

    assert (entry(top, "513") / "qemu.log").read_text() == "ab\n"


def test_what_passed_leaves_nothing(run, top: Path) -> None:
    run(SUITE, "--artifacts=kept/here", "-k", "kept").assert_outcomes(passed=1)

    assert files(top) == {}


def test_the_command_repeats_that_test_alone(run, top: Path, pytester: pytest.Pytester) -> None:
    options = [
        "--artifacts",
        "kept/here",
        "-x",
        "--channel",
        "ssh",
        "--matrix=r.json",
        "test_it.py",
    ]
    run(SUITE, "--target=other", "--target=guest-pci", "-k", "513 or kept", *options)

    replay = entry(top, "513") / "replay.sh"
    command = replay.read_text().splitlines()[1]
    assert command == (
        f"cd {pytester.path} && {sys.executable} -m pytest -ra -s --channel ssh"
        " --vblk-target guest-pci 'test_it.py::test_broken[513]'"
    )
    again = subprocess.run([replay], cwd="/", capture_output=True, text=True, timeout=60)
    assert again.returncode == pytest.ExitCode.TESTS_FAILED, again.stdout + again.stderr
    assert "1 failed in " in again.stdout


def test_a_second_failure_of_a_test_adds_to_the_first(run, top: Path) -> None:
    run(
        SUITE.replace("; assert 0", "") + "\n@clause('2.7.4.1-D-01')\n"
        "def test_twice(plug, request):\n"
        "    request.addfinalizer(lambda: 1 / 0)\n    plug(start=False)\n    assert 0\n"
        "def test_after(plug): plug(start=False)\n",  # the target ends with its last test
        "--artifacts=kept/here",
        "-k",
        "twice or stuck or after",
    )

    assert "assert 0" in (entry(top, "twice") / "failure.txt").read_text()
    assert "ZeroDivisionError" in (entry(top, "twice") / "failure-in-teardown.txt").read_text()
    assert "it does not come out" in (entry(top, "stuck") / "failure-in-teardown.txt").read_text()
    assert (entry(top, "stuck") / "replay.sh").exists()


def test_files_of_an_earlier_run_are_replaced_and_other_files_stay(run, top: Path) -> None:
    run(SUITE, "--artifacts=kept/here", "-k", "513")
    kept = entry(top, "513")
    (kept / "notes.txt").write_text("mine")
    (kept / "disk7.txt").write_text("of an earlier run")
    with (kept / MARKER).open("a") as file:
        file.write("disk7.txt\n../../precious.txt\n")
    (top / "precious.txt").write_text("mine")

    run(SUITE, "--artifacts=kept/here", "-k", "513")

    assert entry(top, "513") == kept
    assert not (kept / "disk7.txt").exists()
    assert (kept / "notes.txt").read_text() == "mine"
    assert (top / "precious.txt").read_text() == "mine"


def test_a_directory_with_files_that_are_not_ours_is_left_alone(run, top: Path) -> None:
    run(SUITE, "--artifacts=kept/here", "-k", "513")
    theirs = entry(top, "513")
    (theirs / MARKER).unlink()
    (theirs / "failure.txt").write_text("mine")

    run(SUITE, "--artifacts=kept/here", "-k", "513")

    assert (theirs / "failure.txt").read_text() == "mine"
    assert "vblk# panic" in (theirs.with_name(f"{theirs.name}-2") / "failure.txt").read_text()


def test_reports_point_there_from_where_they_are(run, top: Path, pytester: pytest.Pytester) -> None:
    (pytester.path / "reports").mkdir()
    run(
        SUITE,
        "--artifacts=kept/here",
        "--matrix=reports/r.json",
        "--matrix=reports/r.html",
        "--junitxml=out.xml",
        "-k",
        "513",
    )

    name = entry(top, "513").name
    document = json.loads((pytester.path / "reports" / "r.json").read_text())
    (test,) = document["tests"]
    (found,) = test["results"].values()
    assert found["artifacts"] == f"../kept/here/guest-pci/{name}"
    page = (pytester.path / "reports" / "r.html").read_text()
    assert f'href="../kept/here/guest-pci/{name}/"' in page
    report = (pytester.path / "out.xml").read_text()
    assert f"[[ATTACHMENT|kept/here/guest-pci/{name}/replay.sh]]" in report


def test_a_directory_that_cannot_be_is_refused_at_once(run, pytester: pytest.Pytester) -> None:
    (pytester.path / "file").write_text("")

    result = run(SUITE, "--artifacts=file/x")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--artifacts: '*file/x' cannot be made a directory: Not a directory"]
    )


def test_what_cannot_be_written_is_said_and_is_no_failure_of_its_own(run, top: Path) -> None:
    full = """
import harness.report.artifacts
def full(*_): raise OSError(28, "disk full")
harness.report.artifacts._write = full
"""

    result = run(full + SUITE, "--artifacts=kept/here", "-k", "513")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["some files are missing in *: *disk full*"])
