"""Targets of other packages: registered by a call or by an entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.targets import TargetError, registry
from harness.targets.registry import Settings, descriptions, maker, register

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the targets after the test."""
    monkeypatch.setattr(registry, "_MAKERS", dict(registry._MAKERS))


def test_a_registered_target_is_made_and_listed() -> None:
    target: Any = object()
    register("my-board", "a board", lambda settings: target)

    assert maker("my-board", {})(Settings()) is target
    assert descriptions()["my-board"] == "a board"


def test_a_target_is_replaced_on_request() -> None:
    target: Any = object()
    register("model", "a board", lambda settings: target, replace=True)

    assert maker("model", {})(Settings()) is target


@pytest.mark.parametrize("name", ["model", "Board", "a+b", "a:b", ""])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(TargetError, match=f"'{name.replace('+', '.')}'"):
        register(name, "", lambda settings: maker("model", {})(settings))


NEW = "register('my-board', 'a board', str)"
TAKEN = "register('model', 'a board', str)"


@pytest.mark.parametrize(
    ("source", "call", "message"),
    [
        (NEW, "descriptions()['my-board']", "a board"),
        (NEW, "maker('my-board', {})", "<class 'str'>"),
        (NEW, "load_targets(Path('mine.toml'))", "already has a target of that name"),
        (TAKEN, "descriptions()", "entry point board:targets (vblk.targets): "),
    ],
    ids=["listed", "made", "not-defined-by-a-file", "taken"],
)
def test_an_entry_point_registers_targets(
    tmp_path: Path, source: str, call: str, message: str
) -> None:
    (tmp_path / "board.py").write_text(
        f"from harness.targets.registry import register\ndef targets():\n    {source}\n"
    )
    (tmp_path / "mine.toml").write_text('[target.my-board]\ndevice = "vhost-user:/nowhere"\n')
    info = tmp_path / "board-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: board\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[vblk.targets]\nboard = board:targets\n")

    listed = subprocess.run(
        [
            *(sys.executable, "-c"),
            "from pathlib import Path\n"
            "from harness.targets.registry import descriptions, load_targets, maker\n"
            f"print({call})",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    last = (listed.stdout + listed.stderr).splitlines()[-1]
    assert message in last
