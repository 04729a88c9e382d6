"""Runs whose output is lost: all reports are written, and there is no traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE = 120.0

NOWHERE = {"full": ">/dev/full", "closed": ">&-", "a reader that leaves": "| head -c 1 >/dev/null"}


BUFFERING = {"buffered": "", "unbuffered": "1"}


def run(directory: Path, where: str, unbuffered: str, *command: str) -> tuple[int, str]:
    """Run a command with its output there; its exit status, and what it says on stderr."""
    line = f"{{ {shlex.join(command)}; echo $? >{directory}/status; }} {where}"
    ended = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    return int((directory / "status").read_text()), ended.stderr


@pytest.mark.parametrize("unbuffered", BUFFERING.values(), ids=BUFFERING)
@pytest.mark.parametrize("where", NOWHERE.values(), ids=NOWHERE)
def test_a_run_whose_output_is_lost_writes_its_reports(
    tmp_path: Path, where: str, unbuffered: str
) -> None:
    status, errors = run(
        tmp_path,
        where,
        unbuffered,
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
        *("conformance/test_capacity.py", "--target", "model"),
        *("--matrix", str(tmp_path / "m.json"), f"--junitxml={tmp_path / 'j.xml'}"),
    )
    assert (
        "Traceback" not in errors and "INTERNALERROR" not in errors and "ignored" not in errors
    ), errors
    assert status == 0, errors
    assert errors.count("no more output") <= 1, errors
    assert json.loads((tmp_path / "m.json").read_text())["tests"]
    assert ElementTree.parse(tmp_path / "j.xml").find(".//testcase") is not None


LISTINGS = {
    "statements": ("conformance/test_capacity.py", "--list-statements"),
    "defects": ("--list-defects",),
    "tests": ("conformance/test_capacity.py", "--collect-only", "-q"),
}


@pytest.mark.parametrize("unbuffered", BUFFERING.values(), ids=BUFFERING)
@pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS)
def test_a_reader_of_a_listing_may_leave(
    tmp_path: Path, listing: tuple[str, ...], unbuffered: str
) -> None:
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *listing)
    status, errors = run(tmp_path, NOWHERE["a reader that leaves"], unbuffered, *command)
    assert errors == ""
    assert status in (0, pytest.ExitCode.NO_TESTS_COLLECTED)


@pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS)
def test_a_listing_that_cannot_be_written_is_one_line(
    tmp_path: Path, listing: tuple[str, ...]
) -> None:
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *listing)
    status, errors = run(tmp_path, NOWHERE["full"], "", *command)
    assert status == 1
    assert errors == "vblk: no more output (No space left on device)\n"


@pytest.mark.parametrize("unbuffered", BUFFERING.values(), ids=BUFFERING)
@pytest.mark.parametrize("where", NOWHERE.values(), ids=NOWHERE)
def test_vblk_whose_output_is_lost_has_no_traceback(
    tmp_path: Path, where: str, unbuffered: str
) -> None:
    code = "import sys; from harness.cli import main; sys.exit(main(sys.argv[1:]))"
    _, errors = run(tmp_path, where, unbuffered, sys.executable, "-c", code, "doctor")
    assert "Traceback" not in errors and "ignored" not in errors, errors
