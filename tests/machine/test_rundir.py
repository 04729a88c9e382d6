"""The sweep of run directories: it removes only directories of dead runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.machine import cleanup, rundir
from harness.machine.rundir import MARKER, PREFIX, RunDir

DIE_WITH_A_RUN_DIRECTORY = """
import os, signal
from harness.machine.rundir import RunDir
print(RunDir().path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for temporary files that only this test uses."""
    path = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr("tempfile.tempdir", str(path))
    return path


def left_by_a_dead_run() -> Path:
    """Return the run directory of a process that was killed."""
    child = subprocess.run(
        [sys.executable, "-c", DIE_WITH_A_RUN_DIRECTORY], stdout=subprocess.PIPE, check=False
    )
    directory = Path(child.stdout.decode().strip())
    assert (directory / MARKER).exists()
    return directory


def sweep() -> None:
    """Make and remove a run directory, as the next run does."""
    RunDir().remove()


def test_a_directory_of_a_dead_run_is_removed() -> None:
    directory = left_by_a_dead_run()
    sweep()
    assert not directory.exists()


@pytest.mark.parametrize("name", ["precious", "results", "abcdefgh"])
def test_a_directory_that_only_has_the_prefix_stays(temporary: Path, name: str) -> None:
    file = temporary / f"{PREFIX}{name}" / "file"
    file.parent.mkdir()
    file.write_text("precious")
    sweep()
    assert file.read_text() == "precious"


def test_a_copy_and_a_renamed_directory_stay(temporary: Path) -> None:
    directory = left_by_a_dead_run()
    copy = temporary / f"{PREFIX}copy"
    shutil.copytree(directory, copy)
    renamed = directory.rename(temporary / f"{PREFIX}kept")
    sweep()
    assert copy.exists()
    assert renamed.exists()


def test_a_marker_that_is_no_file_is_no_marker(temporary: Path) -> None:
    for kind, make in {"fifo": os.mkfifo, "directory": Path.mkdir}.items():
        directory = temporary / f"{PREFIX}{kind}"
        directory.mkdir()
        make(directory / MARKER)
    (temporary / f"{PREFIX}file").write_text("no directory")
    (temporary / f"{PREFIX}link").symlink_to(left_by_a_dead_run())
    sweep()
    left = sorted(path.name for path in temporary.iterdir())
    assert left == [f"{PREFIX}{name}" for name in ("directory", "fifo", "file", "link")]


def test_a_directory_whose_owner_lives_stays() -> None:
    owned = RunDir()
    sweep()
    assert owned.path.exists()
    owned.remove()
    assert not owned.path.exists()


def test_a_directory_without_a_lock_and_without_a_marker_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keep an empty directory: its process may have died before it wrote the marker."""
    monkeypatch.setattr(rundir, "_marker", lambda *_: b"")
    directory = RunDir()
    os.close(directory._fd)
    cleanup.forget(directory.remove)
    monkeypatch.undo()
    rundir._sweep(directory.path.parent)
    assert directory.path.exists()
