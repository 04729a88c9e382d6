"""`vblk` and pytest where what they need is missing, in use, or ends."""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import interrupt
from harness.cli import doctor, main, random, running, watch
from harness.diskspec import DiskSpec
from harness.driver.bus import linux_sysfs
from harness.machine import Machine, MachineConfig, MachineError, find_qemu
from harness.machine.qcow2 import backing_files
from harness.targets import TargetError
from images import cache

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
DEADLINE = 120.0


@pytest.fixture(autouse=True)
def _handlers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "install", lambda: None)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line with which `vblk` refuses."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        ("random", "--minutes", "nan"),
        ("random", "--minutes", "inf"),
        ("random", "--minutes", "0"),
        ("random", "--rounds", "0"),
        ("random", "--rounds", "-1"),
        ("watch", "--changes", "-1"),
        ("watch", "--changes", "0"),
        ("replay", "script", "--times", "0"),
    ],
)
def test_amounts_that_never_end_or_do_nothing(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    line = refusal(capsys, *arguments)
    assert arguments[-2] in line and arguments[-1] in line


def test_a_lock_that_a_signal_has_broken_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_qemu: str | None) -> None:
        raise RuntimeError("cannot release un-acquired lock")

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(RuntimeError):
        main(["doctor"])
    monkeypatch.setattr(interrupt, "received", lambda: signal.SIGTERM)
    assert main(["doctor"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == ""


def test_random_prints_its_summary_also_if_its_device_does_not_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("hypothesis")
    from harness.random import rounds

    def fail(*_: object) -> None:
        raise MachineError("it does not end")

    target = SimpleNamespace(name="nothing", traits=frozenset())
    monkeypatch.setattr(random, "_target", lambda _: target)
    monkeypatch.setattr(random, "_end", fail)
    monkeypatch.setattr(rounds, "disks_of", fail)
    assert main(["random", "--artifacts", str(tmp_path)]) == 2
    assert "0 examples on 0 disks" in capsys.readouterr().out


def test_watch_ends_with_its_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = SimpleNamespace(
        read=lambda *_: None, info=SimpleNamespace(media=SimpleNamespace(block_size=512))
    )
    monkeypatch.setattr(watch, "view", lambda *_: "")
    monkeypatch.setattr(watch, "media_status", lambda _: watch.StatusT.B_OK)

    def gone() -> None:
        raise TargetError("the machine is gone")

    with pytest.raises(TargetError, match="the machine is gone"):
        watch.watch(handle, lambda text: None, None, gone)


def test_doctor_starts_qemu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = find_qemu()
    script = tmp_path / "qemu"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec {real.path} --version\necho "no room" >&2; exit 9'
    )
    script.chmod(0o755)

    assert main(["doctor", "--qemu", str(script)]) == 1

    output = capsys.readouterr().out
    assert "MISSING qemu" in output and "QEMU exited with status 9" in output


def test_doctor_says_that_a_cache_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VBLK_CACHE", str(tmp_path / "file"))

    assert main(["doctor"]) == 1

    output = capsys.readouterr().out
    assert "MISSING image" in output and "the cache cannot be read (Not a directory" in output


def test_a_cache_that_may_not_be_read_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/cache/images")

    monkeypatch.setattr(cache, "_load", denied)
    found = doctor._image(cache.status())
    assert found.state == "MISSING" and "Permission denied: /cache/images" in found.text


def test_a_back_end_that_is_not_there_is_no_success(tmp_path: Path) -> None:
    """All tests of this file write, so that each would be skipped without --destructive."""
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"),
            *("conformance/test_discard.py", "--target", f"vhost-user:{tmp_path / 'nobody'}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert ended.returncode == 2, ended.stdout
    assert "no vhost-user back-end at" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with a disk of its own, and a file of the user's by a link to it."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    (tmp_path / "link").symlink_to(image)
    machine = Machine(MachineConfig(find_qemu(), memory=16, parked=True))
    machine.add_disk(DiskSpec(capacity=MIB // 512))
    machine.add_image(tmp_path / "link", writable=True)
    with machine:
        yield machine


def test_a_file_of_the_user_s_is_not_shrunk_unasked(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image"
    qmp = ["--qmp", str(machine.qmp_path)]

    line = refusal(capsys, "resize", "disk1", "512K", *qmp)

    assert "--shrink" in line and str(tmp_path) in line
    assert image.stat().st_size == MIB
    assert main(["resize", "disk0", "512K", *qmp]) == 0  # a disk of ours
    assert main(["resize", "disk1", "2M", *qmp]) == 0
    assert main(["resize", "disk1", "512K", "--shrink", *qmp]) == 0
    assert image.stat().st_size == MIB // 2


def test_a_resize_waits_for_the_guest_s_shell(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    running.Running(str(machine.qmp_path), 22, "key", "ssh-ed25519 AAAA").announce()
    log = machine.qmp_path.with_name("console.log")
    log.write_text("SeaBIOS\r\n")
    resize = ["resize", "disk0", "+1M", "--qmp", str(machine.qmp_path)]
    monkeypatch.setattr(running, "BOOT_DEADLINE", 0.3)

    assert main(resize) == 2
    assert "no prompt within 0.3 s" in capsys.readouterr().err

    monkeypatch.setattr(running, "BOOT_DEADLINE", 30.0)
    threading.Timer(0.5, lambda: log.write_text("SeaBIOS\r\nLinux\r\nvblk# ")).start()
    assert main(resize) == 0
    log.write_text("SeaBIOS\r\n")
    assert main([*resize, "--at-once"]) == 0


def qcow2(path: Path, backing: str = "", features: int = 0) -> Path:
    """Make the header of a qcow2 image of version 3."""
    name = backing.encode()
    head = b"QFI\xfb" + struct.pack(">IQI", 3, 104 if name else 0, len(name))
    path.write_bytes((head.ljust(72, b"\0") + struct.pack(">Q", features)).ljust(104, b"\0") + name)
    return path


def test_the_files_behind_an_image_are_found(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(512))
    middle = qcow2(tmp_path / "middle", "base")
    assert backing_files(qcow2(tmp_path / "top", str(middle))) == [middle, tmp_path / "base"]
    assert backing_files(qcow2(tmp_path / "alone")) == []
    assert backing_files(tmp_path / "base") == []


@pytest.mark.parametrize(
    ("backing", "reason"),
    [
        ("nbd://example.org/disk", "no plain file"),
        ('json:{"driver":"file"}', "no plain file"),
        ("/dev/null", "not there"),
        ("absent", "not there"),
        ("odd", "more than 32"),
    ],
)
def test_an_image_over_something_odd_is_refused(tmp_path: Path, backing: str, reason: str) -> None:
    with pytest.raises(MachineError, match=reason):
        backing_files(qcow2(tmp_path / "odd", backing))


def test_an_image_with_its_data_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="its data in another file"):
        backing_files(qcow2(tmp_path / "odd", features=4))


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_what_qemu_img_makes_is_read_alike(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    for more in ([str(base), "1M"], ["-b", str(base), "-F", "qcow2", str(tmp_path / "top.qcow2")]):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more], check=True, timeout=30)
    assert backing_files(tmp_path / "top.qcow2") == [base]


def test_boot_names_the_files_behind_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli import boot

    (tmp_path / "base").write_bytes(bytes(512))
    image = qcow2(tmp_path / "top.qcow2", "base")
    added: list[tuple[object, ...]] = []
    boot._add(SimpleNamespace(add_image=lambda *what: added.append(what)), str(image), None, False)
    assert f"is based on {tmp_path / 'base'}, which is opened too" in capsys.readouterr().err
    assert added == [(image, "qcow2", False)]


@pytest.mark.parametrize(
    ("mounts", "swaps", "held", "words"),
    [
        ("25 1 254:1 / / rw - ext4 /dev/vda1 rw\n", "", False, "vda1, mounted at /"),
        ("25 1 254:0 / /data rw - ext4 /dev/vda rw\n", "", False, "vda, mounted at /data"),
        ("", "/dev/vda1 partition 1 0 -2\n", False, "vda1, which it swaps to"),
        ("", "", True, "vda, a part of dm-0"),
        ("25 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "", False, ""),
    ],
)
def test_a_disk_that_the_machine_uses_is_not_to_be_unbound(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mounts: str,
    swaps: str,
    held: bool,
    words: str,
) -> None:
    disk = tmp_path / "function" / "virtio0" / "block" / "vda"
    (disk / "vda1").mkdir(parents=True)
    (disk / "dev").write_text("254:0\n")
    (disk / "vda1" / "dev").write_text("254:1\n")
    if held:
        (disk / "holders" / "dm-0").mkdir(parents=True)
    (tmp_path / "mounts").write_text(mounts)
    (tmp_path / "swaps").write_text(f"Filename Type Size Used Priority\n{swaps}")
    monkeypatch.setattr(linux_sysfs, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(linux_sysfs, "SWAPS", tmp_path / "swaps")

    assert linux_sysfs.in_use(tmp_path / "function") == words
