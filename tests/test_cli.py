"""The command line without a guest: arguments, errors as one line, doctor, resize."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import interrupt
from harness.cli import doctor, main, running
from harness.diskspec import DiskSpec
from harness.machine import Machine, MachineConfig, find_qemu
from harness.machine.accel import DEVICE

MIB = 2**20


@pytest.fixture(autouse=True)
def _no_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the signal handlers of this process, in which the tests call `main`."""
    monkeypatch.setattr(interrupt, "install", lambda: None)


@pytest.fixture
def no_guests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a directory for run directories that only this test uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(running, "_SHORT", tmp_path)
    return tmp_path


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A running machine without a boot disk, with a disk of 1 MiB and a read-only disk."""
    with_disks = Machine(MachineConfig(find_qemu(), memory=32))
    with_disks.add_disk(DiskSpec(capacity=MIB // 512))
    with_disks.add_disk(DiskSpec(capacity=MIB // 512, read_only=True))
    with with_disks:
        yield with_disks


def failure(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """Run `vblk`, assert that it fails with one line on stderr only, and return that line."""
    assert main(arguments) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"vblk: [^\n]+\n", output.err), output.err
    return output.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("boot", "--accel", "magic"),
        ("boot", "--memory", "much"),
        ("resize", "disk0"),
        ("image",),
        ("image", "burn"),
    ],
)
def test_wrong_usage_ends_with_status_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["boot", "resize", "ssh", "watch"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ending:
        main([command, "--help"])
    assert ending.value.code == 0
    assert f"examples:\n  vblk {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--disk", "no-such-file"], "this is neither a size (like 64M) nor a file"),
        (["--disk", "1000"], "a disk's size is a multiple of 512"),
        (["--disk", "0"], "at least one sector"),
        (["--disk", "8388608T"], "this is larger than a file can be"),
        (["--memory", "1048576"], "--memory 1048576: 64 to 1048575 MiB"),
        (["--memory", "8"], "--memory 8: 64 to 1048575 MiB"),
        (["--qemu", "/nonexistent"], "there is no QEMU at /nonexistent"),
        (["--qemu", "/bin/false"], "/bin/false --version failed with status 1"),
    ],
)
def test_boot_refuses_before_it_builds_or_starts_anything(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.setenv("VBLK_CACHE", str(tmp_path / "cache"))
    assert reason in failure(capsys, "boot", *arguments)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["bench", "--runs", "0"], "--runs and --requests have to be 1 or more"),
        (
            ["bench", "qtest-pc"],
            "cannot measure qtest-pc; known: qtest-pci, vhost-user, model-pci, ",
        ),
        (["soak", "--clones", "0"], "--clones and --at-once have to be 1 or more"),
        (["bench", "--qemu", "/nonexistent"], "there is no QEMU at /nonexistent"),
        (["watch", "--size", "12"], "12 bytes: a disk's size is a multiple of 512"),
        (["watch", "--qemu", "/nonexistent"], "there is no QEMU at /nonexistent"),
    ],
)
def test_bench_and_watch_refuse_before_a_guest_starts(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert reason in failure(capsys, *arguments)


def test_bench_prints_the_targets_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "vhost-user", "qtest-pci", "--runs", "1", "--requests", "10"]
    assert main(words) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "QEMU start to QMP greeting",
        "qtest-pci: QEMU start to DRIVER_OK",
        "qtest-pci: 512-byte reads, one at a time",
        "qtest-pci: register reads, one at a time",
        "vhost-user: connect to first read",
        "vhost-user: 512-byte reads, one at a time",
    ]
    assert all(float(line[42:49]) > 0 for line in lines[2:])


@pytest.mark.usefixtures("no_guests")
@pytest.mark.parametrize("command", [("resize", "disk0", "1G"), ("ssh",), ("ssh", "--", "true")])
def test_without_a_guest_it_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert "no guest is running; start one with `vblk boot`" in failure(capsys, *command)


def announce(base: Path, name: str) -> tuple[Path, int]:
    """Make a run directory with a note and a lock, as a running owner has; the fd is the lock."""
    directory = base / f"vblk-{name}"
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    running.Running(str(directory / "qmp"), 2222, "key", "ssh-ed25519 AAAA").announce()
    return directory / "qmp", fd


def test_of_several_guests_one_has_to_be_named(
    capsys: pytest.CaptureFixture[str], no_guests: Path
) -> None:
    first, first_fd = announce(no_guests, "first")
    second, second_fd = announce(no_guests, "second")
    try:
        output = failure(capsys, "resize", "disk0", "1G")
        assert f"2 guests are running; name one with --qmp: {first}, {second}" in output
        assert running.find(str(second)).qmp == str(second)
    finally:
        os.close(first_fd)
        os.close(second_fd)


def test_a_guest_whose_owner_died_does_not_count(no_guests: Path) -> None:
    dead, dead_fd = announce(no_guests, "dead")
    os.close(dead_fd)
    alive, alive_fd = announce(no_guests, "alive")
    try:
        assert running.find(None).qmp == str(alive)
        with pytest.raises(running.UsageError, match=f"has the QMP socket {dead}: {alive}"):
            running.find(str(dead))
    finally:
        os.close(alive_fd)


def test_resize_by_name_to_a_size_and_by_a_change(
    capsys: pytest.CaptureFixture[str], machine: Machine
) -> None:
    qmp = str(machine.qmp_path)
    for size, expected in (("2M", 2 * MIB), ("+512K", 5 * MIB // 2), ("-1M", 3 * MIB // 2)):
        assert main(["resize", "disk0", size, "--qmp", qmp]) == 0
        assert machine.drives[0].backing.size == expected
    assert capsys.readouterr().out.splitlines() == [
        "disk0: 1048576 -> 2097152 bytes",
        "disk0: 2097152 -> 2621440 bytes",
        "disk0: 2621440 -> 1572864 bytes",
    ]


def test_a_resize_that_cannot_be_changes_nothing_and_says_why(
    capsys: pytest.CaptureFixture[str], machine: Machine
) -> None:
    for disk, size, reason in (
        ("disk7", "2M", r"no disk disk7; the machine has: disk0 \(1048576 bytes\), disk1 \("),
        ("disk0", "lots", "'lots' is not a size"),
        ("disk0", "1000", "1000 bytes: a disk's size is a multiple of 512"),
        ("disk0", "0", "0 bytes: a disk has at least one sector"),
        ("disk0", "-1M", "-1M makes 0 bytes"),
        ("disk1", "2M", "disk1 was not resized to 2097152 bytes: .*read-only"),
    ):
        output = failure(capsys, "resize", "--qmp", str(machine.qmp_path), disk, size)
        assert re.search(reason, output)
    assert [drive.backing.size for drive in machine.drives] == [MIB, MIB]


def test_resize_at_a_socket_where_nobody_listens(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = failure(capsys, "resize", "disk0", "1G", "--qmp", str(tmp_path / "qmp"))
    assert f"no machine answers at {tmp_path / 'qmp'}" in output


def test_image_path_without_an_image_says_how_to_build_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VBLK_CACHE", str(tmp_path))
    output = failure(capsys, "image", "path")
    assert output == "vblk: the guest image is missing; build it: vblk image build\n"


def test_doctor_names_what_is_missing_and_what_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("VBLK_CACHE", str(tmp_path / "cache"))
    assert main(["doctor"]) == 1
    report = capsys.readouterr().out
    assert re.search(r"^MISSING +qemu .*apt-get install qemu-system-x86$", report, re.M)
    assert re.search(r"^MISSING +setpriv .*apt-get install util-linux$", report, re.M)
    assert re.search(r"^note +ssh .*apt-get install openssh-client$", report, re.M)
    assert re.search(r"^MISSING +image .*apt-get and dpkg-deb", report, re.M)
    assert not (tmp_path / "cache").exists()


def test_doctor_before_the_first_run_builds_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VBLK_CACHE", str(tmp_path / "cache"))
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert re.search(r"^ok +qemu +QEMU emulator version ", report, re.M)
    assert re.search(r"^note +image +missing; .*vblk image build$", report, re.M)
    tried_later = os.access(DEVICE, os.R_OK | os.W_OK)
    expected = r"^note +accelerator .*once the image is built" if tried_later else "^ok +accel"
    assert re.search(expected, report, re.M)
    assert not (tmp_path / "cache" / "images").exists()


def test_doctor_says_which_qemu_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "qemu"
    old.write_text("#!/bin/sh\necho 'QEMU emulator version 5.2.0 (Debian 1:5.2)'\n")
    old.chmod(0o755)
    missing = [found for found in doctor.examine(str(old)) if found.state == "MISSING"]
    assert [found.what for found in missing] == ["qemu"]
    assert "is QEMU 5.2.0; 7.2 or newer is needed" in missing[0].text


def test_ctrl_c_is_130_and_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_qemu: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == ""
