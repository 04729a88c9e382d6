"""Failures of the environment during a test: it fails with the reason, and the next test works.

Nothing is left behind. The inner tests run on a real guest, in their own process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parent.parent
RUN_DEADLINE = 300.0
END_DEADLINE = 60.0

HEAD = """
import os, signal, socket, time
import pytest
from harness.pytestplugin.plugin import BENCHES
from harness.driver.errors import DeviceTimeoutError
from harness.driver.interface import Request
from harness.report import clause
from harness.targets import TargetError

@pytest.fixture
def machine(request):
    return lambda: request.config.stash[BENCHES]["guest-pci"].target.guest.machine

def works(disk):
    return disk.read(0).status == 0

def until_it_breaks(disk, machine, line):
    # Type a line on the guest's console, and use the disk until the line has its effect.
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(machine.console_path))
        console.sendall(line + b"\\n")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            disk.read(0)
"""


class Run:
    """A pytest run of one module, with its own directory for all temporary files."""

    def __init__(self, directory: Path, source: str, *options: str) -> None:
        self.scratch = directory / "t"
        self.scratch.mkdir()
        (directory / "conftest.py").write_text((ROOT / "conftest.py").read_text())
        (directory / "test_inner.py").write_text(HEAD + source)
        self._xml = directory / "out.xml"
        arguments = ["-p", "no:cacheprovider", f"--junitxml={self._xml}", "--accel=tcg", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "test_inner.py", *arguments],
            cwd=directory,
            env={**os.environ, "TMPDIR": str(self.scratch), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, deadline: float = RUN_DEADLINE) -> str:
        """Wait for the end of the run, and return its output."""
        try:
            return self.process.communicate(timeout=deadline)[0]
        finally:
            self.process.kill()

    def verdicts(self) -> dict[str, str]:
        """Return for each test "" if it passed, else the text of its failure."""
        found = {}
        for case in ElementTree.parse(self._xml).iter("testcase"):
            bad = [child.text or "" for child in case if child.tag in ("failure", "error")]
            found[case.attrib["name"]] = "\n".join(bad)
        return found

    def leftovers(self) -> list[str]:
        """Return files of the run, and processes that name its directory."""
        files = [str(path) for path in self.scratch.rglob("*")]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(self.scratch) in line:
                files.append(f"process {process.name}: {line}")
        return files


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, for UNIX sockets."""
    with TemporaryDirectory(prefix="bd-", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize("options", [[], ["--guest-per=run"], ["--no-clones"]], ids=str)
def test_a_guest_that_dies_fails_its_test_and_is_replaced_for_the_next(
    directory: Path, options: list[str]
) -> None:
    run = Run(
        directory,
        """
def test_first(plug):
    assert works(plug())

def test_qemu_killed(plug, machine):
    disk = plug()
    os.kill(machine()._process.pid, signal.SIGKILL)
    disk.read(0)

def test_after_qemu_killed(plug):
    assert works(plug())

def test_panic(plug, machine):
    until_it_breaks(plug(), machine(), b"echo c > /proc/sysrq-trigger")

def test_after_panic(plug):
    assert works(plug())

def test_agent_killed(plug, machine):
    until_it_breaks(plug(), machine(), b"kill -9 $(pidof python3.11)")

def test_after_agent_killed(plug):
    assert works(plug())

def test_killed_unnoticed(plug, machine):
    assert works(plug())
    os.kill(machine()._process.pid, signal.SIGKILL)

def test_after_killed_unnoticed(plug):
    assert works(plug())
""",
        *options,
    )
    output = run.finish()
    verdicts = run.verdicts()

    assert verdicts.pop("test_first") == ""
    for name in [name for name in verdicts if name.startswith("test_after")]:
        assert verdicts.pop(name) == "", name
    assert "QEMU was ended by SIGKILL" in verdicts.pop("test_qemu_killed")
    panic = verdicts.pop("test_panic")
    assert "kernel panicked (sysrq triggered crash)" in panic
    assert "Kernel panic - not syncing" in panic.partition("guest console, last lines")[2]
    assert "the agent in the guest ended with status 137" in verdicts.pop("test_agent_killed")
    assert "QEMU was ended by SIGKILL" in verdicts.pop("test_killed_unnoticed")
    assert verdicts == {}
    booted = "--no-clones" in options
    assert output.count("booting a guest") == (1 if booted else 0)
    assert output.count("booting a new guest") == (4 if booted else 0)
    assert run.leftovers() == []


def test_bad_requests_and_resizes_are_reported_and_the_guest_continues(directory: Path) -> None:
    run = Run(
        directory,
        """
@clause("5.2.6.2-D-02")
def test_a_request_that_does_not_complete(plug):
    disk = plug(iops=1)
    tokens = disk.driver.submit([Request(0, n, receive=512) for n in range(0, 200, 8)])
    disk.driver.complete(tokens, timeout=0.5)

def test_resizes_that_cannot_be(plug):
    disk = plug(capacity=2048)
    for capacity in (-1, 2**64):
        with pytest.raises(TargetError, match="is no capacity"):
            disk.resize(capacity)
    with pytest.raises(TargetError, match="not resized"):
        plug(backing="null").resize(4096)
    assert disk.backing.size == 2048 * 512
    assert disk.driver.config().capacity == 2048
    assert works(disk)

def test_a_disk_that_qemu_refuses(plug):
    with pytest.raises(TargetError, match="QEMU refused"):
        plug(logical_block_size=4096, physical_block_size=512)
    assert works(plug())
""",
        "--strict-should",
        "--no-clones",
    )
    output = run.finish()
    verdicts = run.verdicts()

    timeout = verdicts.pop("test_a_request_that_does_not_complete")
    assert "waited 0.5 s for 25 requests to complete" in timeout
    assert "in_flight: token" in timeout
    assert set(verdicts.values()) == {""}
    assert output.count("booting") == 1
    assert run.leftovers() == []


@pytest.mark.parametrize("target", ["guest-pci", "qtest-pci"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_leaves_nothing(
    directory: Path, how: signal.Signals, target: str
) -> None:
    run = Run(
        directory,
        """
def test_long(plug):
    assert works(plug())
    open("works", "w").close()
    time.sleep(60)
""",
        f"--target={target}",
    )
    deadline = time.monotonic() + RUN_DEADLINE
    while not (directory / "works").exists():
        assert time.monotonic() < deadline, "the inner test did not start"
        assert run.process.poll() is None, run.finish()
        time.sleep(0.1)
    assert run.leftovers() != []

    run.process.send_signal(how)
    output = run.finish(END_DEADLINE)

    assert "KeyboardInterrupt" in output or "Terminated" in output
    assert run.process.returncode == pytest.ExitCode.INTERRUPTED
    assert run.leftovers() == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--qemu=/no/such/qemu"], "there is no QEMU at /no/such/qemu; install it:"),
        (["--qemu=/bin/true"], "/bin/true is not QEMU"),
        (["--no-clones", "--boot-timeout=0.5"], "waited in vain for"),
        (["--no-clones", "--boot-timeout=0.5", "--channel=ssh"], "waited in vain for"),
    ],
    ids=["no-qemu", "not-qemu", "never-boots", "never-boots-ssh"],
)
def test_a_guest_that_never_comes_up_ends_the_run_with_one_line(
    directory: Path, options: list[str], complaint: str
) -> None:
    run = Run(
        directory,
        "def test_a(plug):\n    plug()\n\ndef test_b(plug):\n    plug()\n",
        *options,
    )
    output = run.finish()
    verdicts = run.verdicts()

    assert list(verdicts) == ["test_a"]
    assert complaint in verdicts["test_a"]
    assert f"! Interrupted: {complaint}" in output
    assert run.process.returncode == pytest.ExitCode.INTERRUPTED
    assert run.leftovers() == []
