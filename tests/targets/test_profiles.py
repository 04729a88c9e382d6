"""Profiles of well-known daemons, and the words of their commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec, Fault
from harness.targets import DeviceIdentity, TargetError
from harness.targets.disk import Disk
from harness.targets.profiles import profiles
from harness.targets.registry import Settings, descriptions, maker
from harness.targets.userfile import _check, load, profile, rendered, words_of
from harness.virtio.blk import Status


def test_every_profile_is_a_table_of_a_targets_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(profiles()) == {
        *("qemu-storage-daemon", "contrib-vhost-user-blk", "spdk"),
        *("cloud-hypervisor", "firecracker", "crosvm", "openvmm"),
    }
    for name in profiles():
        _check(profile(name), ())
        assert name in descriptions()
        maker(name, {})(Settings()).close()


def test_the_environment_names_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBLK_SPDK_PROGRAM", "/opt/spdk/vhost")
    monkeypatch.setenv("VBLK_SPDK_CONTROL", "/opt/spdk/rpc.py")
    profiles.cache_clear()
    try:
        assert (profile("spdk").program, profile("spdk").control) == (
            "/opt/spdk/vhost",
            "/opt/spdk/rpc.py",
        )
    finally:
        profiles.cache_clear()


def test_a_file_changes_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[target.mine]\nprofile = 'spdk'\nprogram = './vhost'\nversion = 'v26.05'\n"
        "[target.mine.options]\nqueues = '-q {queues}'\n"
    )

    target = load(path)["mine"]

    assert (target.program, target.control) == ("./vhost", "rpc.py")
    assert target.identity == DeviceIdentity("spdk", (26, 5))
    assert target.options == {**profile("spdk").options, "queues": "-q {queues}"}


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[target.mine]\nprofile = 'dpdk'\n")

    with pytest.raises(TargetError, match=r"mine.toml:2: target.mine.profile: no profile; there"):
        load(path)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("d {file}", ["d", "/a b", "-s", "x y"]),
        ("d {options} {file}", ["d", "-s", "x y", "/a b"]),
        ("sh -c 'd {options} {{}}'", ["sh", "-c", "d -s 'x y' {}"]),
    ],
)
def test_values_need_no_quotes(command: str, words: list[str]) -> None:
    assert words_of(command, {"file": "/a b"}, ["-s", "x y"]) == words


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (True, "on"),
        (False, "off"),
        (4096, "4096"),
        ((1, 2, 3), "1,2,3"),
        ("a b", "a b"),
        (
            (Fault("read", sector=3),),
            '[{"on": "read", "sector": 3, "errno": 5, "once": false}]',
        ),
    ],
)
def test_a_property_is_a_word(value: object, word: str) -> None:
    assert rendered(value) == word


@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        (
            "cloud-hypervisor",
            DiskSpec(read_only=True, queues=3),
            ["--disk", "path=/d/disk0.raw,id=disk,readonly=on,num_queues=3"],
        ),
        ("crosvm", DiskSpec(serial="a b"), ["--block", "/d/disk0.raw,id=a b", "/k"]),
        ("openvmm", DiskSpec(), ["--virtio-blk", "file:/d/disk0.raw"]),
    ],
)
def test_a_vmm_gets_the_properties_of_a_disk(
    name: str, spec: DiskSpec, expected: list[str], tmp_path: Path
) -> None:
    line = command_of(name, spec, tmp_path)

    shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()

    assert shown[-len(expected) :] == expected
    assert "console=ttyS0 quiet" in shown


def test_firecracker_gets_its_configuration_as_json(tmp_path: Path) -> None:
    line = command_of("firecracker", DiskSpec(read_only=True), tmp_path)

    subprocess.run(line, check=True)

    configuration = json.loads((tmp_path / "config.json").read_text())
    assert configuration["boot-source"]["boot_args"] == "console=ttyS0 quiet"
    assert configuration["drives"][0]["is_read_only"] is True


def command_of(name: str, spec: DiskSpec, directory: Path) -> list[str]:
    """Return the command of a VMM's profile, with a program that prints its arguments."""
    program = directory / "program"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    target = maker(name, {})(Settings())
    words, _ = target._words(spec)  # type: ignore[attr-defined]
    values = {"program": program, "dir": directory, "file": "/d/disk0.raw", "kernel": "/k"}
    more = {"vmlinux": "/v", "initrd": "/i", "append": "console=ttyS0 quiet", "serial": "/s"}
    return words_of(profile(name).vmm, {**values, **more}, words)


def test_one_daemon_serves_all_disks_of_the_run() -> None:
    target = maker("qemu-storage-daemon", {})(Settings())
    try:
        pids = set()
        for spec in (DiskSpec(), DiskSpec(read_only=True, queues=3, iops=1000, unmap=False)):
            disk = Disk(target.plug(spec))
            disk.backing.write(4, b"\x55" * 512)
            disk.start()
            assert disk.read(4).data == b"\x55" * 512
            pids.add(disk.processes()[0].pid)
            disk.unplug()
        assert len(pids) == 1

        disk = Disk(target.plug(DiskSpec(faults=(Fault("read", sector=3),))))
        disk.resize(32768)
        disk.start()
        assert disk.backing.size == 32768 * 512
        assert disk.read(3).status is Status.IOERR
        disk.unplug()
    finally:
        target.close()


def test_one_daemon_serves_two_disks_at_once() -> None:
    target = maker("qemu-storage-daemon", {})(Settings())
    try:
        first, second = (Disk(target.plug(DiskSpec())) for _ in range(2))
        assert first.processes()[0].pid == second.processes()[0].pid
        for disk, data in ((first, b"\x11" * 512), (second, b"\x22" * 512)):
            disk.backing.write(7, data)
            disk.start()
            assert disk.read(7).data == data
        first.unplug()
        assert second.read(7).data == b"\x22" * 512
        second.unplug()
    finally:
        target.close()


def test_the_command_of_a_storage_daemon_loads_no_qmp_client() -> None:
    code = "import harness.machine.storage_daemon_control, sys; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert {"asyncio", "ssl", "qemu.qmp"}.isdisjoint(loaded.stdout.split())
