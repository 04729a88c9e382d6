"""Daemons that the harness starts: good ones, and those that fail in several ways."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec, Fault
from harness.driver.errors import DriverError
from harness.driver.interface import Request
from harness.machine.foreign import listens
from harness.machine.served_files import lacking
from harness.pytestplugin.bench import TargetRun
from harness.targets import DeviceIdentity, LacksError, StartError, Target, TargetError
from harness.targets.disk import Disk
from harness.targets.registry import Settings, maker
from harness.targets.started import StartedTarget
from harness.targets.userfile import load, profile
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature

ROOT = Path(__file__).parents[2]
MODEL = f"{sys.executable} -m harness.model --socket {{socket}} --file {{file}}"
RESIZE = f"{sys.executable} -m harness.model --socket {{socket}} --resize {{bytes}}"
BAD = f"{sys.executable} {Path(__file__).parent}/bad_daemon.py"

OPTIONS = """
[target.mine.options]
read_only = "--option read_only=on"
serial = '--option "serial={serial}"'
queues = "--option queues={queues}"
"""

Make = Callable[..., Target]


def table(start: str, more: str = "", device: str = "vhost-user") -> str:
    return f"[target.mine]\ndevice = '{device}'\nstart = '''{start}'''\n{more}\n"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a maker of targets from the text of a targets file."""
    with ExitStack() as stack:

        def make(text: str) -> Target:
            path = tmp_path / "mine.toml"
            path.write_text(text)
            target = maker("mine", load(path))(Settings())
            stack.callback(target.close)
            return target

        yield make


def read(disk: Disk, sector: int = 0) -> bytes:
    completion = disk.read(sector)
    assert completion.status == Status.OK
    return completion.data


@pytest.mark.parametrize("device", ["vhost-user", "vfio-user"])
def test_a_process_for_each_disk(make: Make, device: str) -> None:
    way = " --way pci" if device == "vfio-user" else ""
    target = make(table(MODEL + way, f"resize = '{RESIZE}'{OPTIONS}", device))

    disk = Disk(target.plug(DiskSpec(capacity=64, queues=3, serial="a b'c")))
    disk.backing.write(5, b"\x33" * 512)
    disk.start()
    pids = [process.pid for process in disk.processes()]

    assert read(disk, 5) == b"\x33" * 512
    assert disk.driver.config().num_queues == 3
    assert disk.get_id().data.rstrip(b"\0") == b"a b'c"
    disk.resize(128)
    assert disk.driver.config().capacity == 128

    disk.unplug()
    disk = Disk(target.plug(DiskSpec(read_only=True)))
    assert disk.driver.offered() & Feature.BLK_RO.mask
    assert [process.pid for process in disk.processes()] != pids
    disk.unplug()


def test_what_the_file_does_not_map_is_refused_by_name(make: Make) -> None:
    target = make(table(MODEL, OPTIONS))

    with pytest.raises(LacksError, match="cannot provide iops: the targets file does not say how"):
        target.plug(DiskSpec(iops=5))
    with pytest.raises(LacksError, match="has logical_block_size 512, and the test needs 4096"):
        target.plug(DiskSpec(logical_block_size=4096))
    disk = target.plug(DiskSpec())
    with pytest.raises(LacksError, match="the targets file names no `resize` command"):
        disk.resize(1)


def test_a_disk_that_the_daemon_lacks_is_not_started_again(
    make: Make, request: pytest.FixtureRequest
) -> None:
    target = make(table(MODEL, OPTIONS))
    bench = TargetRun("mine", target)
    reason = "has logical_block_size 512, and the test needs 4096"
    for serial in ("first", "first", "second", "first"):
        with pytest.raises(pytest.skip.Exception, match=reason):
            bench.plug([DiskSpec(logical_block_size=4096, serial=serial)], True, request.session)

    assert target._made == 2  # type: ignore[attr-defined]


GROWS = """resize = '''sh -c "test {sectors} -ge 64 || (echo too small; exit 4)"'''"""


def test_a_disk_that_cannot_become_smaller_is_lacking(make: Make) -> None:
    disk = make(table(MODEL, GROWS)).plug(DiskSpec(capacity=64))

    with pytest.raises(LacksError, match=r"may mean .* cannot shrink: .* ended with 4: too small"):
        disk.resize(32)


@pytest.mark.parametrize(
    ("command", "capacity", "why"),
    [
        ("false", 128, "false ended with 1: no output"),
        ("false", 32, "false ended with 1: no output"),
        ("sh -c 'kill -9 $$'", 32, "ended with -9"),
        ("no-such-program", 32, "No such file"),
    ],
)
def test_a_resize_command_that_does_not_work_is_an_error(
    make: Make, command: str, capacity: int, why: str
) -> None:
    disk = make(table(MODEL, f'resize = "{command}"')).plug(DiskSpec(capacity=64))

    with pytest.raises(TargetError, match=why) as failed:
        disk.resize(capacity)
    assert not isinstance(failed.value, LacksError)


def test_a_daemon_that_dies_while_it_shrinks_a_disk_is_an_error(make: Make) -> None:
    target = make(table(MODEL, "resize = 'false'"))
    disk = target.plug(DiskSpec(capacity=64))
    os.kill(disk.processes()[0].pid, signal.SIGKILL)
    target._daemon.wait(60)  # type: ignore[attr-defined]

    with pytest.raises(TargetError, match="was ended by SIGKILL") as failed:
        disk.resize(32)
    assert not isinstance(failed.value, LacksError)


def test_a_daemon_is_stopped_for_a_while(make: Make) -> None:
    disk = Disk(make(table(MODEL)).plug(DiskSpec()))
    (process,) = disk.processes()

    with disk.paused():
        assert state_of(process.pid) == "T"
    disk.start()
    assert read(disk) == bytes(512)


def test_a_daemon_with_a_process_of_its_own_is_not_stopped(make: Make) -> None:
    disk = Disk(make(table(f"sh -c '{MODEL}; true'".replace("'", '"'))).plug(DiskSpec()))
    (process,) = disk.processes()

    with pytest.raises(LacksError, match="may serve the disk with another"), disk.paused():
        pass
    assert state_of(process.pid) != "T"


def state_of(pid: int) -> str:
    """Return the state of a process as /proc shows it: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_command_without_file_may_write_to_a_disk_of_its_own(make: Make, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(8192))
    target = make(table(MODEL.replace("{file}", str(disk))))

    with pytest.raises(LacksError, match="only read without --destructive"):
        target.plug(DiskSpec())
    assert target.plug(DiskSpec(), writes=False).spec.capacity == 16


def test_a_process_for_each_connection(make: Make) -> None:
    target = make(table(f"{MODEL} --once", "per = 'connection'"))

    for _ in range(2):
        disk = Disk(target.plug(DiskSpec()))
        disk.start()
        first = disk.processes()[0].pid
        read(disk)
        disk.driver.reset()
        disk.start()
        assert disk.processes()[0].pid == first
        disk.unplug()


@pytest.mark.parametrize("per", ["disk", "connection"])
def test_a_protocol_feature_is_left_out(make: Make, per: str) -> None:
    target = make(table(MODEL, f"per = '{per}'\nwithout = ['RESET_DEVICE', 'STATUS']"))

    used = target.plug(DiskSpec()).driver.description()["protocol_features"]

    assert "CONFIG" in used and not {"RESET_DEVICE", "STATUS"} & {*used}


def test_a_process_that_ends_with_its_connection_needs_to_be_declared(make: Make) -> None:
    target = make(table(f"{MODEL} --once"))
    disk = Disk(target.plug(DiskSpec()))
    disk.driver.transport._session.channel.close()  # type: ignore[attr-defined]
    target._daemon.wait(60)  # type: ignore[attr-defined]

    with pytest.raises(TargetError, match=r'exited with status 0.*say per = "connection"'):
        target.check()


def test_a_daemon_that_was_killed_is_started_again(make: Make) -> None:
    target = make(table(MODEL))
    disk = Disk(target.plug(DiskSpec()))
    os.kill(disk.processes()[0].pid, 9)
    target._daemon.wait(60)  # type: ignore[attr-defined]

    with pytest.raises(TargetError, match="was ended by SIGKILL"):
        disk.unplug()

    disk = Disk(target.plug(DiskSpec()))
    disk.start()
    read(disk)


@pytest.mark.parametrize("habit", ["polls", "none"])
def test_a_daemon_that_polls_is_known_also_on_a_busy_machine(make: Make, habit: str) -> None:
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})  # also for the children
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        target = make(table(f"{BAD} {habit} --socket {{socket}} --file {{file}}"))
        assert target.plug(DiskSpec()).processes()[0].polls is (habit == "polls")
    finally:
        os.sched_setaffinity(0, processors)
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize("per", ["disk", "connection"])
def test_a_daemon_that_dies_when_its_front_end_hangs_up_is_noticed(make: Make, per: str) -> None:
    command = f"{BAD} dies-at-the-end --socket {{socket}} --file {{file}}"
    target = make(table(command, f"per = '{per}'"))
    disk = Disk(target.plug(DiskSpec()))
    disk.start()
    read(disk)

    with pytest.raises(TargetError, match=r"exited with status 9; .*my-daemon: double free"):
        disk.unplug()


def test_a_daemon_that_gets_no_processor_to_die_is_noticed(make: Make) -> None:
    target = make(table(f"{BAD} dies-late --socket {{socket}} --file {{file}}"))
    disk = Disk(target.plug(DiskSpec()))

    with pytest.raises(TargetError, match="exited with status 9"):
        disk.unplug()


@pytest.mark.parametrize(
    ("command", "version"),
    [("echo mine v3.14.2-rc1 of 2026", (3, 14, 2)), ("echo none", ()), ("false", ())],
)
def test_the_daemon_says_its_version(make: Make, command: str, version: tuple[int, ...]) -> None:
    target = make(table(MODEL, f"implementation = 'mine'\nversion_command = '{command}'"))
    assert target.identities() == (DeviceIdentity("mine", version),)


needs_fuse = pytest.mark.skipif(bool(lacking()), reason=lacking())


@needs_fuse
def test_the_file_fails_where_the_test_wants_it(make: Make) -> None:
    target = make(table(MODEL, "serve_file = true"))
    for number, faults in enumerate([(Fault("read", 3),), (Fault("flush"),)]):
        disk = Disk(target.plug(DiskSpec(capacity=64, faults=faults)))
        disk.backing.write(5, b"\x33" * 512)
        disk.start()
        assert read(disk, 5) == b"\x33" * 512
        written, flushed = disk.write(8, bytes(512)).status, disk.flush().status
        bad = disk.read(3).status
        failed = (Status.OK, Status.OK, Status.IOERR)
        assert (written, flushed, bad) == (
            failed if faults[0].on == "read" else (Status.OK, Status.IOERR, Status.OK)
        )
        assert "committed 1 times" in target.evidence()[f"the file of disk{number} over FUSE"]
        disk.unplug()
    with pytest.raises(LacksError, match="cannot provide faults"):
        target.plug(DiskSpec(faults=(Fault("discard"),)))


@needs_fuse
def test_a_daemon_that_waits_for_a_slow_file_is_ended_in_time(make: Make) -> None:
    target = make(table(MODEL, "serve_file = true"))
    disk = Disk(target.plug(DiskSpec(iops=1)))
    disk.start()
    pid = disk.processes()[0].pid
    disk.driver.submit([Request(RequestType.IN, 0, receive=512) for _ in range(20)])
    with suppress(TargetError, DriverError):
        disk.unplug()
    assert not Path(f"/proc/{pid}").exists()
    place = str(target._dir.path.resolve())  # type: ignore[attr-defined]
    assert place in Path("/proc/mounts").read_text()
    target.close()
    assert place not in Path("/proc/mounts").read_text()


@needs_fuse
def test_the_file_of_a_daemon_with_many_disks_fails_as_well() -> None:
    definition = replace(profile("qemu-storage-daemon"), serve_file=True, options={})
    target = StartedTarget("mine", definition)
    try:
        disk = Disk(target.plug(DiskSpec(faults=(Fault("write", 3),))))
        disk.start()
        assert disk.write(3, bytes(512)).status == Status.IOERR
        assert disk.write(4, bytes(512)).status == Status.OK
        disk.unplug()
        assert target._dir
        place = str(target._dir.path.resolve())
        assert place in Path("/proc/mounts").read_text()
    finally:
        target.close()
    assert place not in Path("/proc/mounts").read_text()


def test_without_fuse_only_what_needs_it_is_skipped(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.machine.served_files.DEVICE", Path("/nothing"))
    target = make(table(MODEL, "serve_file = true"))
    with pytest.raises(LacksError, match="cannot provide faults, iops: FUSE needs /nothing"):
        target.plug(DiskSpec(faults=(Fault("read"),), iops=5))
    disk = Disk(target.plug(DiskSpec()))
    disk.start()
    read(disk)


def test_three_failed_starts_end_the_run(make: Make) -> None:
    target = make(table(f"{BAD} refuses-to-start --socket {{socket}} --file {{file}}"))

    failures = []
    for _ in range(3):
        with pytest.raises(StartError) as failed:
            target.plug(DiskSpec())
        failures.append(failed.value)

    assert [failure.over for failure in failures] == [False, False, True]
    assert "exited with status 3; its last output: my-daemon: no such image" in str(failures[2])
    assert "3 starts in a row have failed" in str(failures[2])


def test_options_that_the_daemon_refuses_do_not_end_the_run(make: Make) -> None:
    target = make(table(MODEL, "[target.mine.options]\nread_only = '--nonsense'"))
    target.plug(DiskSpec()).unplug()

    for _ in range(4):
        with pytest.raises(StartError, match=r"exited with status 2; .*--nonsense") as failed:
            target.plug(DiskSpec(read_only=True))
        assert not failed.value.over
    target.plug(DiskSpec()).unplug()


def test_a_wedged_daemon_with_many_disks_is_started_again() -> None:
    patient = replace(profile("qemu-storage-daemon"), start_timeout=60.0)
    target = StartedTarget("mine", patient)
    try:
        disk = target.plug(DiskSpec())
        pid = disk.processes()[0].pid
        disk.unplug()
        os.kill(pid, signal.SIGSTOP)
        target._definition = replace(patient, start_timeout=1.0)
        with pytest.raises(StartError, match="has not ended within 1 s") as failed:
            target.plug(DiskSpec())
        assert not failed.value.over
        assert not Path(f"/proc/{pid}").exists()
        target._definition = patient
        target.plug(DiskSpec()).unplug()
    finally:
        target.close()


def test_the_end_of_a_daemon_that_has_disks_is_not_lost_at_the_next_disk() -> None:
    target = StartedTarget("mine", profile("qemu-storage-daemon"))
    try:
        first = target.plug(DiskSpec())
        os.kill(first.processes()[0].pid, signal.SIGKILL)
        assert target._daemon
        target._daemon.wait(60)
        with pytest.raises(TargetError, match=r"disks in use has ended: .* was ended by SIGKILL"):
            target.plug(DiskSpec())
        with pytest.raises(TargetError, match="was ended by SIGKILL"):
            first.unplug()
        target.plug(DiskSpec()).unplug()
    finally:
        target.close()


def test_a_socket_listens_from_its_listen_on_with_and_without_connections(short_dir: Path) -> None:
    path = short_dir / "s"
    assert listens(path, True) and not listens(path, False)  # the kernel does not say
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as peer:
        listener.bind(str(path))
        assert not listens(path, True)
        listener.listen()
        assert listens(path, False)
        peer.connect(str(path))
        accepted, _ = listener.accept()
        with accepted:
            assert listens(path, False)


def suite(
    tmp_path: Path, habit: str, more: str, *tests: str, once: bool = False
) -> tuple[int, str]:
    """Run tests of the suite on a daemon with a habit; check that nothing is left behind."""
    targets = tmp_path / "mine.toml"
    command = f"{BAD} {habit} --socket {{socket}} --file {{file}}"
    targets.write_text(table(f"{command} --once" if once else command, more))
    temporary = tmp_path / "t"
    temporary.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *tests),
            *("--targets", str(targets), "--target", "mine", "--artifacts", str(tmp_path / "kept")),
        ],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not list(temporary.glob("vblk-*"))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        assert str(temporary).encode() not in line
    return done.returncode, done.stdout


CAPACITY = "conformance/test_capacity.py"
REQUESTS = "conformance/test_requests.py"


def test_a_daemon_that_prints_and_never_listens(tmp_path: Path) -> None:
    code, output = suite(tmp_path, "never-listens", "start_timeout = 5", CAPACITY)

    assert code != 0
    assert "was not ready within 5 s; awaited was that it listens on" in output
    assert "its last output: my-daemon: warming up" in output
    assert "3 starts in a row have failed" in output
    assert output.count("\nERROR ") + output.count("\nFAILED ") == 3
    assert "was running until the harness ended it" in output and "SIGTERM" not in output


def test_a_daemon_that_hangs_at_the_memory_table(tmp_path: Path) -> None:
    code, output = suite(tmp_path, "hangs-at-memory", "", CAPACITY)

    assert code != 0
    assert "did not answer ADD_MEM_REG within 5 s" in output
    assert "was running until the harness ended it" in output and "exited with" not in output
    assert "3 starts in a row have failed" in output


def test_a_daemon_that_exits_at_its_third_request(tmp_path: Path) -> None:
    code, output = suite(tmp_path, "third-request", "", REQUESTS)

    assert code == 1
    assert "exited with status 7" in output
    assert "my-daemon: assertion failed" in output
    assert "starts in a row" not in output
    assert " passed" in output
    kept = [path.read_text() for path in (tmp_path / "kept").rglob("*.log")]
    assert any("my-daemon: assertion failed" in text for text in kept)
    assert "conformance/test_requests.py:" in output and "harness/driver" not in output


@pytest.mark.parametrize("per", ["disk", "connection"])
def test_a_daemon_that_ends_after_each_connection(tmp_path: Path, per: str) -> None:
    code, output = suite(
        tmp_path, "good", f"per = '{per}'", REQUESTS, "-k", "unknown_type", once=True
    )

    assert code == 0
    assert "4 passed" in output
