"""Targets that a user defines in a file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec
from harness.driver.interface import Request
from harness.machine.storage_daemon import Export, StorageDaemon, find_storage_daemon
from harness.targets import DeviceIdentity, LacksError, TargetError
from harness.targets.external import host_side
from harness.targets.registry import Settings, load_targets, maker
from harness.targets.userfile import load, named
from harness.virtio.blk import RequestType, Status
from harness.virtio.vhost_user import ProtocolFeature

ROOT = Path(__file__).parents[2]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "targets.toml"
    path.write_text(text)
    return path


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    path = written(tmp_path, '[target.mine]\ndevice = "pci:0000:00:05.0"\n')

    (target,) = load(path).values()

    assert target.device == "pci:0000:00:05.0"
    assert target.destructive is False
    assert target.identity == DeviceIdentity("unknown", ())
    assert (target.resize, target.start, target.options) == ("", "", {})


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("[target.a]\ndevice = \n", 2, "Invalid value"),
        ("x = 1\n", 1, "only"),
        ("", 1, "only"),
        ("\n[targets.a]\ndevice = 'pci:0000:00:05.0'\n", 2, "only"),
        ("# a\n[target.b]\npath = 'x'\n", 3, "target.b.path: no such key"),
        (
            "[target.a]\ndevice = 'x'\n[target.b]\ndevice = 'x'\nspeed = 3\n",
            5,
            "speed: no such key",
        ),
        (
            "[target.a]\ndevice = 'x'\ndestructive = 1\n",
            3,
            "expected true or false, not 1",
        ),
        ("[target.a]\ndevice = 'x'\nversion = 'new'\n", 3, "numbers with dots"),
        ("[target.a]\ndevice = 'vhost-user'\n", 2, "needs a PATH behind a colon, or `start`"),
        ("[target.a]\ndevice = 'pci:x'\nstart = 'd'\n", 3, "the harness starts a device ="),
        ("[target.a]\ndevice = 'vfio-user'\nstart = 'd'\nper = 'day'\n", 4, "disk, connection"),
        (
            "[target.a]\ndevice = 'vhost-user'\nstart = 'd'\nper = 'run'\n",
            4,
            '"run" needs a `plug` command',
        ),
        (
            "[target.a]\ndevice = 'vfio-user'\nstart = 'd'\nper = 'connection'\n",
            4,
            '"connection" is for vhost-user',
        ),
        ("[target.a]\ndevice = 'vhost-user'\nstart = 'd {port}'\n", 3, "no placeholders but"),
        (
            "[target.a]\ndevice = 'vhost-user'\nstart = 'd'\n[target.a.options]\ncolour = '-c'\n",
            5,
            "target.a.options.colour: no property of a disk",
        ),
        (
            "[target.a]\ndevice = 'vhost-user'\nstart = 'd'\n"
            "[target.a.options]\nqueues = '-q {queue_size}'\n",
            5,
            "no placeholder but {queues}",
        ),
        (
            "[target.a]\ndevice = 'pci:x'\n[target.a.options]\nqueues = '-q {queues}'\n",
            3,
            "only for device",
        ),
        ("[target.a]\ndevice = 'pci:x'\nwithout = ['MQ']\n", 3, "only for a vhost-user device"),
        (
            "[target.a]\ndevice = 'pci:x'\nthrough = 'qtest-vhost-user'\n",
            3,
            "only for a vhost-user device",
        ),
        (
            "[target.a]\ndevice = 'vhost-user'\nstart = 'd {socket}'\nserve_file = true\n",
            4,
            "needs {file} in the command",
        ),
        ("[target.a]\ndevice = 'vhost-user:x'\nserve_file = true\n", 3, "only for device ="),
        ("[target.a]\ndevice = 'vhost-user:x'\nthrough = 'kvm'\n", 3, "guest-vhost-user, not"),
        (
            "[target.a]\ndevice = 'vhost-user:x'\nthrough = 'guest-vhost-user'\nwithout = ['MQ']\n",
            4,
            "QEMU is the front-end",
        ),
        (
            "[target.a]\ndevice = 'vhost-user:x'\nwithout = ['CONFIG']\n",
            3,
            "expected one of BACKEND_REQ, CONFIGURE_MEM_SLOTS, INFLIGHT_SHMFD,",
        ),
        ("[target.a]\ndevice = 'pci:x'\nparts = ['a']\n", 3, "only with `implementation`"),
        (
            "[target.a]\nvmm = 'v {file} {serial}'\nimplementation = 'qemu'\n"
            "parts = ['virtio-blk', 'virtio-pcie']\n",
            4,
            "qemu has no part 'virtio-pcie'; its parts are vhost-user-blk-pci, virtio-blk, virt",
        ),
        (
            "[target.a]\ndevice = 'pci:x'\nimplementation = 'mine'\nparts = ['a b']\n",
            4,
            "target.a.parts[0]: expected the name of a part, like",
        ),
        ("[target.a]\ndevice = 'x'\nresize = 'r {size}'\n", 3, "{sectors}"),
        ("[target.a]\ndevice = 'x'\nresize = 'r \"'\n", 3, "balanced quotes"),
        ("[target.a]\nbacking = 'x'\n", 1, "target.a: needs `device` or `vmm`"),
        ("[target.a]\ndevice = 'x'\nresize = 'r {bytes.__class__}'\n", 3, "{sectors}"),
        ("[target.a]\ndevice = 'x'\nresize = 'r {bytes:99999999999}'\n", 3, "{sectors}"),
        (f"[target.a]\ndevice = 'x'\nversion = '{'9' * 5000}'\n", 3, "numbers with dots"),
        (f"[target.a]\ndevice = {'9' * 5000}\n", 1, "too many digits"),
        (f"[target.a]\ndevice = {'[' * 5000}{']' * 5000}\n", 1, "nested too deeply"),
        ('[target.a]\ndevice = "vhost-user:a\\u001b[2J"\n', 2, "text in one line"),
        ("[target.'']\ndevice = 'x'\n", 1, "is not a valid name"),
        ('[target."a\\u001b[2J"]\ndevice = "x"\n', 1, "is not a valid name"),
        ("[target.ours]\ndevice = 'x'\n", 1, "this suite already has a target of that name"),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(
    tmp_path: Path, text: str, line: int, expected: str
) -> None:
    path = written(tmp_path, text)

    with pytest.raises(TargetError) as caught:
        load(path, taken={"ours"})

    message = str(caught.value)
    assert message.startswith((f"{path}:{line}: ", f"{path}: "))
    assert expected in message
    assert message.isprintable()
    assert len(message) < 500


def test_a_file_with_many_targets_is_refused_at_once(tmp_path: Path) -> None:
    tables = "".join(f"[target.t{number}]\ndevice = 'x'\n" for number in range(20_000))

    with pytest.raises(TargetError, match="20000 targets; 1000 is the limit"):
        load(written(tmp_path, tables))


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").write_bytes(b"#" * (2 << 20))
    (tmp_path / "latin").write_bytes(b"# \xe4")

    for name, words in {
        "fifo": "is a FIFO, not a regular file",
        ".": "is a directory, not a regular file",
        "long": "longer than",
        "latin": "latin:1: not UTF-8",
    }.items():
        with pytest.raises(TargetError, match=words):
            load(tmp_path / name)


def test_a_target_of_ours_cannot_be_defined_again(tmp_path: Path) -> None:
    path = written(tmp_path, "[target.qtest-pci]\ndevice = 'vhost-user:/x'\n")

    with pytest.raises(TargetError, match="this suite already has a target of that name"):
        load_targets(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="No such file"):
        load(tmp_path / "nothing.toml")


def test_a_device_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    user = load(written(tmp_path, "[target.a]\ndevice = 'usb:1'\n"))

    with pytest.raises(TargetError, match="a: 'usb:1' is not a device"):
        maker("a", user)


def test_protocol_features_are_left_out_in_the_name_of_a_target() -> None:
    target = named("vhost-user:/a,b/s,without=INFLIGHT_SHMFD,without=MQ")

    assert target.device == "vhost-user:/a,b/s"
    assert target.refused == {ProtocolFeature.INFLIGHT_SHMFD, ProtocolFeature.MQ}
    assert named("pci:0000:00:05.0,without=MQ").device == "pci:0000:00:05.0,without=MQ"
    with pytest.raises(TargetError, match=r"vhost-user:s,without=X: .*expected one of BACKEND_REQ"):
        maker("vhost-user:s,without=X", {})


@pytest.fixture
def export() -> Iterator[Export]:
    daemon = StorageDaemon(find_storage_daemon())
    try:
        daemon.start()
        yield daemon.add_export(DiskSpec(capacity=64))
    finally:
        daemon.stop()


def define(tmp_path: Path, export: Export, more: str) -> Path:
    return written(tmp_path, f'[target.mine]\ndevice = "vhost-user:{export.path}"\n{more}')


def test_a_back_end_is_read_and_its_file_looked_at(tmp_path: Path, export: Export) -> None:
    export.backing.write(3, b"\x11" * 512)
    more = f'backing = "{export.backing.path}"\nimplementation = "qsd"\nversion = "7.2"\n'
    target = maker("mine", load(define(tmp_path, export, more)))(Settings())
    try:
        with pytest.raises(
            LacksError, match="mine is only read; tests that write need --destructive"
        ):
            target.plug(DiskSpec())
        disk = target.plug(DiskSpec(), writes=False)
        disk.driver.start()

        completion = disk.driver.request(Request(RequestType.IN, 3, receive=512))

        assert completion.status == Status.OK
        assert completion.data == disk.backing.read(3, 1) == b"\x11" * 512
        assert target.identities() == (DeviceIdentity("qsd", (7, 2)),)
        assert target.name == "mine"
        with pytest.raises(LacksError, match="names no `resize` command"):
            disk.resize(128)
    finally:
        target.close()


def test_parts_of_the_implementation_reach_the_records(tmp_path: Path) -> None:
    more = "implementation = 'qemu'\nversion = '7.2'\nparts = ['virtio-blk', 'virtio-pci']\n"
    path = written(tmp_path, f"[target.mine]\ndevice = 'pci:0000:00:05.0'\n{more}")

    target = maker("mine", load(path))(Settings())

    parts = frozenset({"virtio-blk", "virtio-pci"})
    assert target.identities() == (DeviceIdentity("qemu", (7, 2), parts),)
    assert target.alike == "guest-pci"


@pytest.mark.parametrize("in_the_name", [True, False])
def test_a_protocol_feature_is_left_out(tmp_path: Path, export: Export, in_the_name: bool) -> None:
    name = f"vhost-user:{export.path},without=CONFIGURE_MEM_SLOTS" if in_the_name else "mine"
    more = 'without = ["CONFIGURE_MEM_SLOTS"]\n'
    target = maker(name, load(define(tmp_path, export, more)))(Settings())
    try:
        disk = target.plug(DiskSpec(), writes=False)
        used = disk.driver.description()["protocol_features"]
        assert "CONFIGURE_MEM_SLOTS" not in used and "CONFIG" in used
        assert target.name == name
    finally:
        target.close()


def test_a_device_that_is_gone_is_restarted(tmp_path: Path, short_dir: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"\x11" * 8192)
    socket = short_dir / "s"
    # It ends with its connection, so that each plug finds it gone.
    serve = f"{sys.executable} -m harness.model --once --socket {socket} --file disk.raw"
    start = f"cd {tmp_path} && {serve} >/dev/null 2>&1 & echo restart {{name}} >> {tmp_path}/log"
    path = written(
        tmp_path,
        f"[target.mine]\ndevice = 'vhost-user:{socket}'\n"
        f"plug = \"sh -c 'echo plug {{name}} >> {tmp_path}/log'\"\n"
        f"unplug = \"sh -c 'echo unplug {{socket}} >> {tmp_path}/log'\"\n"
        f"restart = \"sh -c '{start}'\"\n",
    )
    target = maker("mine", load(path))(Settings(destructive=True))
    for _ in range(2):
        disk = target.plug(DiskSpec())
        disk.driver.start()
        completion = disk.driver.request(Request(RequestType.IN, 3, receive=512))
        assert completion.data == b"\x11" * 512
        disk.unplug()
        deadline = time.monotonic() + 60
        while socket.exists():
            assert time.monotonic() < deadline, "the back-end did not end within 60 s"
            time.sleep(0.02)
    target.close()

    once = ["plug mine", "restart mine", f"unplug {socket}"]
    assert (tmp_path / "log").read_text().splitlines() == 2 * once


def test_a_device_that_stays_gone_is_one_line(tmp_path: Path) -> None:
    more = 'restart = "true"\nstart_timeout = 0.3\n'
    path = written(tmp_path, f"[target.mine]\ndevice = 'vhost-user:{tmp_path}/s'\n{more}")
    target = maker("mine", load(path))(Settings(destructive=True))
    with pytest.raises(TargetError, match=r"no vhost-user back-end at '.*/s'"):
        target.plug(DiskSpec())


@pytest.mark.parametrize("key", ["plug", "restart"])
def test_a_command_before_a_test_that_fails_is_its_error(tmp_path: Path, key: str) -> None:
    path = written(
        tmp_path,
        f"[target.mine]\ndevice = 'vhost-user:{tmp_path}/s'\n"
        f"{key} = \"sh -c 'echo no such controller >&2; exit 4'\"\n",
    )
    target = maker("mine", load(path))(Settings(destructive=True))
    with pytest.raises(TargetError, match="ended with 4: no such controller"):
        target.plug(DiskSpec())


def test_the_users_command_resizes(tmp_path: Path, export: Export) -> None:
    more = f'destructive = true\nresize = "truncate -s {{bytes}} {tmp_path}/sized"\n'
    target = maker("mine", load(define(tmp_path, export, more)))(Settings())
    try:
        disk = target.plug(DiskSpec())
        disk.resize(128)
        assert (tmp_path / "sized").stat().st_size == 128 * 512
    finally:
        target.close()


def test_the_users_command_may_refuse_to_shrink(tmp_path: Path, export: Export) -> None:
    more = 'destructive = true\nresize = "test {sectors} -ge 64"\n'
    target = maker("mine", load(define(tmp_path, export, more)))(Settings())
    try:
        disk = target.plug(DiskSpec())
        with pytest.raises(LacksError, match="cannot shrink: test 1 -ge 64 ended with 1"):
            disk.resize(1)
    finally:
        target.close()


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    resize = f"{sys.executable} -c 'import sys; sys.exit(\"no room for {{sectors}}\")'"
    path = written(tmp_path, f'[target.a]\ndevice = "pci:x"\nresize = """{resize}"""\n')
    resizer = host_side("a", load(path)["a"], "x").resize
    assert resizer

    with pytest.raises(TargetError, match=r"ended with 1: no room for 7"):
        resizer(7)


def test_the_suite_takes_a_file_of_targets(tmp_path: Path, export: Export) -> None:
    path = define(tmp_path, export, "")
    test = tmp_path / "test_it.py"
    test.write_text(
        "from harness.report import reads_only\n"
        "@reads_only\n"
        "def test_it(plug):\n"
        "    assert plug().read(0).data == bytes(512)\n"
        "def test_writes(plug):\n"
        "    plug()\n"
    )
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-ra", f"--targets={path}", "--target=mine", test],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "mine is only read; tests that write need --destructive" in done.stdout
