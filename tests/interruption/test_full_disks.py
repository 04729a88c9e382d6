"""A full file system for temporary files or for the cache: one line says so, reports are whole."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from harness.machine import MachineConfig, find_qemu
from harness.machine.command import Saved
from harness.machine.templates import TemplateError
from harness.targets.guest import template

ROOT = Path(__file__).parents[2]
DEADLINE = 120.0

pytest_plugins = ["pytester"]


def in_a_small_tmpdir(size: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose TMPDIR is a file system of this size."""
    # A longer path would leave no room for a socket's name, and TMPDIR would not be used.
    with tempfile.TemporaryDirectory(prefix="small-", dir="/tmp") as name:
        return _in(Path(name), size, *command)


def _in(small: Path, size: str, *command: str) -> subprocess.CompletedProcess[str]:
    script = f"mount -t tmpfs -o size={size} tmpfs {shlex.quote(str(small))} && exec " + shlex.join(
        command
    )
    private = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--mount"]
    if subprocess.run([*private, "true"], capture_output=True, timeout=DEADLINE).returncode:
        pytest.skip("this host does not allow user namespaces with their own file systems")
    return subprocess.run(
        [*private, "sh", "-c", script],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(small)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def test_a_full_tmpdir_ends_the_run_with_one_line_and_all_reports(tmp_path: Path) -> None:
    xml, matrix = tmp_path / "junit.xml", tmp_path / "matrix.json"
    ended = in_a_small_tmpdir(
        "6m",
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
        *("conformance/test_capacity.py", "--target", "qtest-pci"),
        *(f"--junitxml={xml}", "--matrix", str(matrix)),
    )

    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "MiB left, and 16 MiB are needed" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ElementTree.parse(xml).find(".//testcase") is not None
    assert matrix.exists()


def test_guest_memory_needs_no_room_in_tmpdir(tmp_path: Path) -> None:
    """Use 64 MiB of memory, more than TMPDIR has; earlier a write to it ended with SIGBUS."""
    ended = in_a_small_tmpdir(
        "24m",
        sys.executable,
        "-c",
        "from pathlib import Path; from harness.machine import *\n"
        "with Machine(MachineConfig(find_qemu(), memory=64, parked=True)) as machine:\n"
        "    with machine.ram_path.open('r+b') as ram: ram.write(b'x' * (48 << 20))\n"
        "    print('written')",
    )

    assert (ended.returncode, ended.stdout) == (0, "written\n"), ended.stderr


INNER = """
import pytest
from harness.machine import rundir
from harness.report import clause

@clause("5.2.6.1-D-01")
def test_it(plug, monkeypatch):
    plug()
    monkeypatch.setattr(rundir, "ROOM", 1 << 60)
    assert False, "a write failed"
"""


def test_a_device_that_has_no_room_is_not_accused(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest((ROOT / "conftest.py").read_text())
    pytester.makepyfile(test_it=INNER.replace("5.2.6.1-D-01", "5.2.6.2-D-02"))
    ended = pytester.runpytest_subprocess("--target", "qtest-pci", "--matrix", "out.json", "-rA")

    text = (pytester.path / "out.json").read_text()
    assert '"error"' in text and '"broken"' not in text, ended.stdout.str()


def test_a_cache_without_room_for_a_template_makes_guests_boot(tmp_path: Path) -> None:
    """Boot a guest after a TemplateError, instead of ending the run."""
    saved = Saved(tmp_path / "ram", tmp_path / "state")
    config = MachineConfig(find_qemu(), memory=1 << 40)

    with pytest.raises(TemplateError, match="MiB left, and"):
        template._check_room(config, saved)
