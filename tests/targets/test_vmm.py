"""A VMM that the harness starts: a fake one that serves the model, and those that fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec
from harness.driver import discover
from harness.targets import LacksError, StartError, Target, TargetError
from harness.targets.disk import Disk
from harness.targets.registry import Settings, maker
from harness.targets.userfile import load
from harness.virtio.blk import Status
from harness.virtio.features import Feature

ROOT = Path(__file__).parents[2]
FAKE = f"{sys.executable} {Path(__file__).parent}/fake_vmm.py --append {{append}}"
SOCKET = f"{FAKE} --port {{serial}}"
FILE = " --disk {file}"
RESIZE = f"{sys.executable} -m harness.model --socket {{file}}.sock --resize {{bytes}}"

Make = Callable[..., Target]


@pytest.fixture(autouse=True)
def no_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fake needs no kernel."""
    from harness.targets.guest import vmm

    image = vmm.images.Image("", tmp_path / "vmlinuz", tmp_path / "initrd", "", tmp_path, "")
    monkeypatch.setattr(vmm.images, "ensure", lambda progress: image)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a maker of targets from a command and more lines of the targets file."""
    with ExitStack() as stack:

        def make(command: str, more: str = "", boot_timeout: float = 20) -> Target:
            path = tmp_path / "mine.toml"
            path.write_text(f"[target.mine]\nvmm = '''{command}'''\nappend = 'pci=off'\n{more}\n")
            target = maker("mine", load(path))(Settings(boot_timeout=boot_timeout))
            stack.callback(target.close)
            return target

        yield make


def read(disk: Disk, sector: int = 0) -> bytes:
    completion = disk.read(sector)
    assert completion.status == Status.OK
    return completion.data


def test_one_guest_serves_tests_that_ask_for_the_same_disk(make: Make) -> None:
    options = "[target.mine.options]\nread_only = '--option read_only=on'"
    target = make(SOCKET + FILE, f"resize = '{RESIZE}'\n{options}")

    assert target.traits == {"guest", "modern", "pci"}
    assert target.alike == "guest-pci"
    pids = []
    for _ in range(2):
        disk = Disk(target.plug(DiskSpec()))
        disk.start()
        assert read(disk, 5) == bytes(512)
        disk.backing.write(5, b"\x33" * 512)
        assert read(disk, 5) == b"\x33" * 512
        pids += [process.pid for process in disk.processes()]
        disk.unplug()
    assert pids[0] == pids[1]

    disk = Disk(target.plug(DiskSpec()))
    disk.resize(128)
    assert disk.driver.config().capacity == 128
    disk.unplug()
    disk = Disk(target.plug(DiskSpec()))
    assert disk.processes()[0].pid != pids[0]
    disk.unplug()
    disk = Disk(target.plug(DiskSpec(read_only=True)))
    assert disk.driver.offered() & Feature.BLK_RO.mask
    with pytest.raises(LacksError, match="in use"):
        target.plug(DiskSpec())
    assert "a message of the kernel" in target.logs()["console.log"]
    disk.unplug()
    with pytest.raises(LacksError, match="cannot provide serial: the targets file does not say"):
        target.plug(DiskSpec(serial="x"))


@pytest.mark.parametrize("port", ["stdio", "pty"])
def test_the_serial_port_is_a_terminal(make: Make, port: str) -> None:
    target = make(f"{FAKE} --port {port}{FILE}", f"serial = '{port}'")

    disk = Disk(target.plug(DiskSpec()))
    disk.start()
    disk.write(3, bytes(range(256)) * 2)

    assert disk.backing.read(3, 1) == bytes(range(256)) * 2
    assert read(disk, 3) == bytes(range(256)) * 2


def test_disks_are_added_to_one_guest_by_commands(make: Make) -> None:
    commands = "plug = 'ln -s {file} {dir}/disks/{name}'\nunplug = 'rm {dir}/disks/{name}'"
    start = 'sh -c \'mkdir -p {dir}/disks; exec "$0" "$@"\''
    target = make(f"{start} {SOCKET} --disks {{dir}}/disks", commands)

    seen = set()
    for _ in range(2):
        disk = Disk(target.plug(DiskSpec(capacity=64)))
        disk.start()
        assert read(disk, 63) == bytes(512)
        seen.add((disk.processes()[0].pid, disk.driver.config().capacity))
        disk.unplug()
    assert len(seen) == 1

    disk = target.plug(DiskSpec())
    os.kill(disk.processes()[0].pid, 9)
    with pytest.raises(TargetError, match="was ended by SIGKILL"):
        disk.unplug()
    Disk(target.plug(DiskSpec())).start()


FAILURES = {
    "exits": "exited with status 3; its last output: fake: no such kernel; awaited was that it",
    "never-listens": "was not ready within 0.5 s; awaited was that it listens on",
    "silent": "nothing came from the guest's serial port within 0.5 s",
    "login": "showed no prompt 'vblk# ' within 2 s; the last line was 'debian login:'",
    "panics": "the guest's kernel panicked: VFS: no root",
    "no-agent": "the agent in the guest ended with status 127",
    "no-disk": "the guest has no virtio block device: none on PCI, in ACPI or on the kernel's",
    "two-disks": "the guest has 2 virtio block devices: pci 0000:00:04.0, pci 0000:00:07.0",
    "legacy": "the disk at 0xfeb00000 has the legacy interface of virtio-mmio",
    "another-file": "the guest's disk does not show the bytes of",
    "dies": "exited with status 7; its last output:",
}


@pytest.mark.parametrize("habit", FAILURES)
def test_a_vmm_that_fails_is_reported_and_ended(
    make: Make, habit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.targets.guest import vmm

    monkeypatch.setattr(vmm, "APPEARS", 0.2)
    target = make(
        f"{SOCKET}{FILE} --habit {habit}",
        "start_timeout = 0.5" if habit == "never-listens" else "",
        boot_timeout={"silent": 0.5, "login": 2}.get(habit, 20),
    )

    with pytest.raises(StartError) as failed:
        target.plug(DiskSpec())

    assert FAILURES[habit] in str(failed.value)
    assert not failed.value.over
    assert target._daemon is None  # type: ignore[attr-defined]


def test_after_three_failed_starts_no_other_is_tried(make: Make) -> None:
    target = make(f"{FAKE}{FILE} --habit exits", "serial = 'stdio'")

    failures = []
    for _ in range(4):
        with pytest.raises(StartError) as failed:
            target.plug(DiskSpec())
        failures.append(failed.value)

    assert [failure.over for failure in failures] == [False, False, True, True]
    assert "exited with status 3; its last output: fake: no such kernel" in str(failures[0])
    assert str(failures[3]) == str(failures[2])
    with pytest.raises(StartError, match="3 starts in a row have failed"):
        _ = target.traits


def test_a_vmm_that_refuses_an_option_does_not_end_the_run(make: Make) -> None:
    options = "[target.mine.options]\nserial = '--no-such-option {serial}'"
    target = make(f"{FAKE}{FILE}", f"serial = 'stdio'\n{options}")
    target.plug(DiskSpec()).unplug()

    for _ in range(4):
        with pytest.raises(StartError, match="unrecognized arguments") as failed:
            target.plug(DiskSpec(serial="x"))
        assert not failed.value.over

    target.plug(DiskSpec()).unplug()


def test_restart_runs_before_a_vmm_is_started_again(make: Make, tmp_path: Path) -> None:
    target = make(f"{SOCKET}{FILE}", f"restart = 'touch {tmp_path}/cleaned'")
    disk = target.plug(DiskSpec())
    assert not (tmp_path / "cleaned").exists()
    disk.kill()
    disk.unplug()

    target.plug(DiskSpec())

    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("vmm = 'x {file}'", "serial.*has {serial} in `vmm`"),
        ("vmm = 'x {file} {serial}'\nserial = 'stdio'", "serial.*has {serial} in `vmm`"),
        ("vmm = 'x {serial}'", "vmm: the disk {file} is either in `vmm` or added by a `plug`"),
        ("vmm = 'x {serial} {file}'\nplug = 'y'", "plug: the disk {file} is either"),
        ("vmm = 'x {serial} {socket} {file}'", "no placeholders but {kernel}"),
        ("vmm = 'x {serial} {file}'\ndevice = 'vhost-user'", "device: not for a target with `vmm`"),
        ("vmm = 'x {file}'\nserial = 'pty'\npty = '('", "pty: not a regular expression"),
        ("vmm = 'x {serial} {file}'\nserial = 'tcp'", "serial: expected .*socket"),
        ("vmm = 'x {serial} {file}'\nunplug = 'y'", "unplug: only with `plug`"),
        ("device = 'pci:0000:00:05.0'\nappend = 'x'", "append: only for a target with `vmm`"),
        ("version = '1'", "target.mine: needs `device` or `vmm`"),
    ],
)
def test_a_table_that_does_not_fit_together(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[target.mine]\n{lines}\n")

    with pytest.raises(TargetError, match=message):
        load(path)


def test_windows_are_found_on_the_command_line_and_in_acpi() -> None:
    line = "console=ttyS0 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=512@3489661440:6:1"
    resources = (
        "00000000-00000fff : Reserved\n"
        "d0000000-d0000fff : LNRO0005:00\n"
        "  feb00200-feb003ff : LNRO0005:01\n"
        "  0a000000-0a0001ff : a000000.virtio_mmio\n"
    )

    found = discover.addresses(line, resources)

    assert found == [0x0A000000, 0xD0000000, 0xD0000200, 0xFEB00200]


@pytest.mark.parametrize(
    ("habit", "timeout", "expected"),
    [
        ("exits", "20", "exited with status 3; its last output: fake: no such kernel"),
        ("login", "3", "within 3 s; the last line was 'debian login:'"),
        ("no-agent", "20", "the agent in the guest ended with status 127"),
    ],
    ids=["exits", "login", "no-agent"],
)
def test_a_run_of_the_suite_ends_after_three_failed_starts(
    tmp_path: Path, habit: str, timeout: str, expected: str
) -> None:
    targets, temporary = tmp_path / "mine.toml", tmp_path / "t"
    targets.write_text(
        f"[target.mine]\nvmm = '''{FAKE}{FILE} --habit {habit}'''\nserial = 'stdio'\n"
    )
    temporary.mkdir()

    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"),
            *("conformance/test_capacity.py", "--targets", str(targets), "--target", "mine"),
            *("--boot-timeout", timeout, "--artifacts", str(tmp_path / "kept")),
        ],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode != 0
    assert expected in done.stdout
    assert "3 starts in a row have failed" in done.stdout
    assert done.stdout.count("\nERROR ") == 3
    assert not list(temporary.glob("vblk-*"))
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            assert str(temporary).encode() not in (process / "cmdline").read_bytes()
