"""Files of the user in the directory for temporary files survive every command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

VBLK = (sys.executable, "-c", "import sys; from harness.cli import main; sys.exit(main())")
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_inner.py")
REPORTS = ("--artifacts=vblk-artifacts", "--matrix=vblk-reports/r.json", "--junitxml=vblk-x/o.xml")

COMMANDS = {
    "doctor": (*VBLK, "doctor"),
    "replay": (*VBLK, "replay", "a.script", "--target", "model"),
    "random": (*VBLK, "random", "--target", "model", "--rounds", "1", "--artifacts", "vblk-found"),
    "matrix-merge": (*VBLK, "matrix", "merge", "r.json", "-o", "vblk-reports/r.html"),
    "matrix-diff": (*VBLK, "matrix", "diff", "r.json", "r.json"),
    "bench": (*VBLK, "bench", "qtest-pci", "--runs", "1", "--requests", "10"),
    "soak": (*VBLK, "soak", "--clones", "1", "--at-once", "1", "--accel", "tcg"),
    "watch": (*VBLK, "watch", "--changes", "1", "--accel", "tcg"),
    "boot": (*VBLK, "boot", "--accel", "tcg"),
    "resize": (*VBLK, "resize", "disk0", "1M"),
    "ssh": (*VBLK, "ssh", "true"),
    "image-path": (*VBLK, "image", "path"),
    "list-targets": (*PYTEST, "--list-targets"),
    "model": (*PYTEST, "--target=model", *REPORTS),
    "qtest-pci": (*PYTEST, "--target=qtest-pci", *REPORTS),
    "vhost-user": (*PYTEST, "--target=vhost-user", *REPORTS),
    "guest-pci": (*PYTEST, "--target=guest-pci", "--accel=tcg", *REPORTS),
    "workers": (*PYTEST, "--target=model", "-n2", *REPORTS),
}

LASTS = {"boot": 20, "watch": 20}
"""Seconds after which a command that does not end by itself is ended."""

EXPECTED = {
    "resize": {2},  # no guest runs
    "ssh": {2},
    "boot": {0, 1, 2, 143},
    "watch": {0, 1, 2, 143},
}
"""Exit statuses where they are others than 0 and 1."""

INNER = """
from harness.report import clause

@clause("2.1.2-D-01")
def test_passes(plug):
    assert plug().read(0).status == 0

@clause("2.2.2-D-01")
def test_fails(plug):
    assert plug().read(0).status == 1
"""

SCRIPT = """
Plug(capacity=64)
Start(features=('VERSION_1',), sizes=(8,))
"""

RESULTS = """{"format": "virtio-blk-conformance results", "version": 1, "runs": [], "targets": [],
"statements": [], "tests": []}"""

NAMES = ("vblk-precious", "vblk-artifacts", "vblk-reports", "vblk-found", "vblk-x", "vblk-abcdefgh")


def contents(directory: Path) -> Mapping[str, str]:
    """Return the user's files with what is in them."""
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in directory.rglob("*")
        if path.name.startswith("mine")
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_files_of_the_user_survive(short_dir: Path, name: str) -> None:
    for directory in NAMES:
        (short_dir / directory / "below").mkdir(parents=True)
        (short_dir / directory / "mine").write_text(directory)
        (short_dir / directory / "below" / "mine.txt").write_text("below")
        os.utime(short_dir / directory, (1, 1))
    (short_dir / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (short_dir / "test_inner.py").write_text(INNER)
    (short_dir / "a.script").write_text(SCRIPT)
    (short_dir / "r.json").write_text(RESULTS)
    before = contents(short_dir)

    with subprocess.Popen(
        COMMANDS[name],
        cwd=short_dir,
        env={**os.environ, "TMPDIR": str(short_dir), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=LASTS.get(name, 120))
        except subprocess.TimeoutExpired:  # boot and watch last until they are ended
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=60)

    assert "Traceback" not in output
    assert process.returncode in EXPECTED.get(name, {0, 1}), output
    assert len(before) == 2 * len(NAMES)
    assert contents(short_dir) == before, output
