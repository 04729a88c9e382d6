"""The command `vblk soak` with few clones: its report, and its failure on a leak."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.cli import main, soak
from harness.driver.errors import DriverError

FEW = ["soak", "--clones", "2", "--at-once", "2", "--accel", "tcg"]


def test_clones_leave_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "WARM", 1)

    assert main(FEW) == 0

    output = capsys.readouterr().out
    assert "4 of 4 clones served, 2 of them at once" in output
    left = [line for line in output.splitlines() if " before, " in line]
    assert [line.split()[0] for line in left] == [
        "processes",
        "directories",
        "descriptors",
        "threads",
    ]
    for line in left:
        before, after = (word for word in line.replace(",", "").split() if word.isdigit())
        assert before == after, line


def test_a_descriptor_that_is_left_open_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr(soak, "use", lambda *_: left.append(os.open(Path(__file__), os.O_RDONLY)))

    assert main(FEW) == 1

    for descriptor in left:
        os.close(descriptor)
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("descriptors")
    ]
    before, after = (int(word) for word in line.split() if word.isdigit())
    assert after - before == len(left) - soak.WARM == 4


def test_a_clone_that_fails_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def use(*_: object) -> None:
        used.append(1)
        if len(used) == soak.WARM + 2:
            raise DriverError("no answer")

    monkeypatch.setattr(soak, "use", use)

    assert main(FEW) == 1

    output = capsys.readouterr().out
    assert "failed: no answer" in output
    assert "3 of 4 clones served" in output
