"""Files over FUSE: they fail, are slow and count commits as asked, and are always unmounted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec, Fault
from harness.machine.errors import MachineError
from harness.machine.served_files import DEVICE, ServedFiles, lacking

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

Open = Callable[..., int]

OWNER = """
import sys, time
from pathlib import Path
from harness.interrupt import install
from harness.machine.served_files import ServedFiles
install()
top = Path(sys.argv[1])
served = ServedFiles(top / "files", top / "mount", top / "log")
file = (served.mountpoint / "a").open("rb")  # in use, so that a plain unmount would fail
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(bytes(range(256)) * 32)
    return tmp_path


@pytest.fixture
def served(top: Path) -> Iterator[ServedFiles]:
    files = ServedFiles(top / "files", top / "mount", top / "log")
    yield files
    files.close()


@pytest.fixture
def opened(served: ServedFiles) -> Iterator[Open]:
    """Return a function that opens the file over FUSE."""
    fds: list[int] = []

    def open_it(flags: int = 0) -> int:
        fds.append(os.open(served.mountpoint / "a", os.O_RDWR | flags))
        return fds[-1]

    yield open_it
    for fd in fds:
        os.close(fd)


def is_mounted(path: Path) -> bool:
    return any(line.split()[1] == str(path) for line in Path("/proc/mounts").open())


def until(condition: Callable[[], bool], awaited: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"{awaited} did not come within 60 s"
        time.sleep(0.02)


def test_bytes_and_size_are_those_of_the_file(top: Path, served: ServedFiles, opened: Open) -> None:
    fd = opened()
    assert os.pread(fd, 512, 256) == bytes(range(256)) * 2
    os.pwrite(fd, b"new", 5)
    assert (top / "files" / "a").read_bytes()[4:9] == b"\4new\10"

    (top / "files" / "a").write_bytes(b"\7" * 1024)
    assert os.pread(fd, 9000, 0) == b"\7" * 1024
    os.truncate(top / "files" / "a", 2048)
    assert os.fstat(fd).st_size == (served.mountpoint / "a").stat().st_size == 2048
    os.ftruncate(fd, 512)
    assert (top / "files" / "a").stat().st_size == 512
    assert [*served.mountpoint.iterdir()] == [served.mountpoint / "a"]


@pytest.mark.parametrize("flags", [0, os.O_DIRECT])
def test_only_the_sector_with_a_fault_fails(served: ServedFiles, opened: Open, flags: int) -> None:
    served.set("a", DiskSpec(faults=(Fault("read", 3), Fault("write", 4, errno=28, once=True))))
    fd = opened()

    assert len(os.pread(fd, 1536, 0)) == 1536
    for offset, length in ((1536, 512), (0, 8192), (2047, 1)):
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(fd, length, offset)
    assert len(os.pread(fd, 512, 2048)) == 512
    with pytest.raises(OSError, match="No space left"):
        os.pwrite(fd, bytes(1024), 2048)
    assert os.pwrite(fd, bytes(1024), 2048) == 1024


def test_a_commit_fails_only_after_a_write_and_each_is_counted(
    served: ServedFiles, opened: Open
) -> None:
    served.set("a", DiskSpec(faults=(Fault("flush"),)))
    fd = opened()
    os.fsync(fd)
    os.pwrite(fd, b"x", 0)
    with pytest.raises(OSError, match="Input/output error"):
        os.fdatasync(fd)
    assert served.syncs("a") == 2

    served.set("a", DiskSpec())
    os.pwrite(opened(os.O_DSYNC), b"x", 0)
    os.fsync(fd)
    assert served.syncs("a") == 2


def test_a_write_of_a_file_that_is_synchronous_fails_with_its_commit(
    served: ServedFiles, opened: Open
) -> None:
    served.set("a", DiskSpec(faults=(Fault("flush"),)))
    with pytest.raises(OSError, match="Input/output error"):
        os.pwrite(opened(os.O_DSYNC), b"x", 0)


def test_operations_take_turns_and_end_when_the_file_is_forgotten(
    served: ServedFiles, opened: Open
) -> None:
    served.set("a", DiskSpec(iops=1))
    reader = (
        "import os, sys; fd = os.open(sys.argv[1], 0)\nfor _ in range(30): os.pread(fd, 512, 0)"
    )
    path = str(served.mountpoint / "a")
    with subprocess.Popen(
        [sys.executable, "-c", reader, path], stderr=subprocess.PIPE, text=True
    ) as child:
        with pytest.raises(subprocess.TimeoutExpired):  # 29 s are needed
            child.wait(1)
        served.forget("a")
        assert "Input/output error" in child.communicate(timeout=60)[1]


def test_a_wrong_command_ends_it_with_a_reason(served: ServedFiles, top: Path) -> None:
    served._lines.write("nonsense\n")
    served._lines.flush()
    with pytest.raises(MachineError, match="serves files over FUSE ended with"):
        served.syncs("a")
    served.close()
    assert not is_mounted(top / "mount")


def test_a_process_that_does_not_start_is_a_reason(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "mfusepy.py").write_text("raise OSError('no libfuse here')")
    monkeypatch.setenv("PYTHONPATH", str(top))
    with pytest.raises(MachineError, match=r"over FUSE ended with 1: OSError: no libfuse here$"):
        ServedFiles(top / "files", top / "mount", top / "log")


def test_closing_unmounts_a_file_in_use(top: Path) -> None:
    served = ServedFiles(top / "files", top / "mount", top / "log")
    fd = os.open(served.mountpoint / "a", os.O_RDONLY)
    served.close()
    served.close()
    assert not is_mounted(top / "mount")
    with suppress(OSError):  # its flush has nobody who answers
        os.close(fd)


def test_the_end_of_its_process_leaves_no_mount(top: Path) -> None:
    served = ServedFiles(top / "files", top / "mount", top / "log")
    served._process.kill()
    served._process.wait()
    assert is_mounted(top / "mount")
    with pytest.raises(MachineError, match="ended with -9"):
        served.syncs("a")
    served.close()
    assert not is_mounted(top / "mount")


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_end_of_the_run_unmounts(top: Path, by: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(top)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    ) as owner:
        assert owner.stdout and owner.stdout.readline() == "ready\n"
        assert is_mounted(top / "mount")
        owner.send_signal(by)
        owner.wait(60)
    until(lambda: not is_mounted(top / "mount"), "the unmount")


def test_what_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.machine.served_files.DEVICE", DEVICE.with_name("no-fuse"))
    assert lacking() == "FUSE needs /dev/no-fuse, which cannot be opened here"
    monkeypatch.setitem(sys.modules, "mfusepy", None)
    assert "pip install 'virtio-blk-conformance[fuse]'" in lacking()
