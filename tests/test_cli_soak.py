"""The command `vblk soak` with few clones: its report, and its failure on a leak."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import count

import pytest

from harness.cli import main, soak
from harness.driver.errors import DriverError

FEW = ["soak", "--clones", "2", "--at-once", "2", "--accel", "tcg"]
DEADLINE = 300.0  # seconds


def soaked(more: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: other tests leave threads that end later."""
    program = f"import os, sys\nfrom harness.cli import main, soak\n{more}\nsys.exit(main({FEW}))"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE
    )


def counted(output: str) -> dict[str, tuple[int, int]]:
    """Return for each kind of leftover the number before and after."""
    found = re.findall(r"^(\w+) of this process: (\d+) before, (\d+) after$", output, re.M)
    return {name: (int(before), int(after)) for name, before, after in found}


def test_clones_leave_nothing() -> None:
    done = soaked("soak.WARM = 1")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 clones served, 2 of them at once" in done.stdout
    left = counted(done.stdout)
    assert list(left) == ["processes", "directories", "descriptors", "threads"]
    for name, (before, after) in left.items():
        assert before == after, name


def test_a_descriptor_that_is_left_open_is_reported() -> None:
    done = soaked("soak.use = lambda *_: os.open(os.devnull, os.O_RDONLY)")

    assert done.returncode == 1, done.stdout + done.stderr
    before, after = counted(done.stdout)["descriptors"]
    assert after - before == 4  # one for each clone that is counted


def test_a_clone_that_fails_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = count(1)  # two threads use clones at once

    def use(*_: object) -> None:
        if next(numbers) == soak.WARM + 2:
            raise DriverError("no answer")

    monkeypatch.setattr(soak, "use", use)

    assert main(FEW) == 1

    output = capsys.readouterr().out
    assert "failed: no answer" in output
    assert "3 of 4 clones served" in output
