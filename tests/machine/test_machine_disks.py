"""Disks: each field of a DiskSpec reaches QEMU, and the backing store follows it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from harness.diskspec import SECTOR, DiskSpec, ErrorPolicy, Fault
from harness.machine import Drive, Machine, MachineError, qcow2
from harness.machine.blockgraph import build
from harness.machine.errors import UnsupportedError
from harness.machine.machine import IOTHREADS_SINCE
from harness.machine.visitor import visit

NewMachine = Callable[..., Machine]

PROPERTIES: dict[str, tuple[object, str, object]] = {
    "logical_block_size": (4096, "logical_block_size", 4096),
    "physical_block_size": (4096, "physical_block_size", 4096),
    "min_io_size": (4096, "min_io_size", 4096),
    "opt_io_size": (65536, "opt_io_size", 65536),
    "serial": ("made-for-a-test", "serial", "made-for-a-test"),
    "queues": (3, "num-queues", 3),
    "queue_size": (64, "queue-size", 64),
    "seg_max_adjust": (False, "seg-max-adjust", False),
    "write_cache": (False, "write-cache", "off"),
    "config_wce": (False, "config-wce", False),
    "discard": (False, "discard", False),
    "write_zeroes": (False, "write-zeroes", False),
    "max_discard_sectors": (777, "max-discard-sectors", 777),
    "max_write_zeroes_sectors": (778, "max-write-zeroes-sectors", 778),
    "event_idx": (False, "event_idx", False),
    "indirect_desc": (False, "indirect_desc", False),
    "packed": (True, "packed", True),
    "msix": (False, "vectors", 0),
    "notify_port": (True, "modern-pio-notify", True),
}
"""For each field of DiskSpec: a value that is not the default, and QEMU's property and value."""

NOT_PROPERTIES = {"capacity", "backing", "read_only", "iops", "faults", "unmap"}
ELSEWHERE = {"geometry", "in_order", "image", "iothreads", "on_error", "scsi"}
"""Fields with their own tests: one sets three properties, one may be missing in this QEMU."""
LACKING = {
    *("zoned", "zone_sectors", "zone_capacity", "conventional_zones", "max_open_zones"),
    *("max_active_zones", "max_append_sectors", "write_granularity", "zones_read_only"),
    *("zones_offline", "secure_erase", "lifetime", "fua", "express"),
    "members",
}
"""Fields that no QEMU supports as properties: they are skips (`backing_sides.check_board`), or the
target makes another machine."""


def device(machine: Machine, drive: Drive, name: str) -> Any:
    return machine.qmp("qom-get", path=f"/machine/peripheral/{drive.name}", property=name)


def node(machine: Machine, name: str) -> dict[str, Any]:
    nodes = machine.qmp("query-named-block-nodes")
    return next(found for found in nodes if found["node-name"] == name)


def io(machine: Machine, drive: Drive, command: str) -> str:
    """Run a qemu-io command on the device's backend, and return its output."""
    before = machine.last_words()
    path = f"/machine/peripheral/{drive.name}/virtio-backend"
    arguments = {"command-line": f'qemu-io -d {path} "{command}"'}
    refusal = machine.qmp("human-monitor-command", **arguments)
    assert not refusal.strip()
    return machine.last_words().removeprefix(before).strip()


def add(machine: Machine, spec: DiskSpec, live: bool) -> Drive:
    if live:
        machine.start()
        return machine.add_disk(spec)
    drive = machine.add_disk(spec)
    machine.start()
    return drive


def make_qcow2(machine: Machine, path: Path, size: int) -> None:
    """Create an image with QEMU itself, since qemu-img may not be installed."""
    raw: dict[str, Any] = {"node-name": "raw", "driver": "file", "filename": str(path)}
    job: dict[str, Any] = {"job-id": "make"}
    machine.qmp("blockdev-add", **raw)
    machine.qmp("blockdev-create", **job, options={"driver": "qcow2", "file": "raw", "size": size})
    machine.wait_event("JOB_STATUS_CHANGE", lambda event: event["data"]["status"] == "concluded")
    assert "error" not in machine.qmp("query-jobs")[0]
    machine.qmp("job-dismiss", id="make")
    machine.qmp("blockdev-del", **{"node-name": "raw"})


def test_a_disk_with_scsi_commands_has_no_modern_interface() -> None:
    def options(spec: DiskSpec, where: dict[str, Any]) -> dict[str, Any]:
        return build("disk", spec, {"driver": "x", **where}, None).device

    on_pci = options(DiskSpec(scsi=True), {"disable-modern": False})
    assert (on_pci["scsi"], on_pci["disable-modern"]) == (True, True)
    assert options(DiskSpec(), {"disable-modern": False})["disable-modern"] is False
    assert "disable-modern" not in options(DiskSpec(scsi=True), {})


both_ways = pytest.mark.parametrize("live", [False, True], ids=["cold", "live"])


def test_every_field_is_covered_here() -> None:
    assert {field.name for field in fields(DiskSpec)} == (
        PROPERTIES.keys() | NOT_PROPERTIES | ELSEWHERE | LACKING
    )


@both_ways
def test_a_qcow2_image_is_made_for_the_disk(new_machine: NewMachine, live: bool) -> None:
    machine = new_machine()
    drive = add(machine, DiskSpec(image="qcow2", capacity=4096), live)

    image = node(machine, drive.name)["image"]

    assert (image["format"], image["virtual-size"]) == ("qcow2", 4096 * SECTOR)
    with pytest.raises(MachineError, match="is not raw: qcow2"):
        _ = drive.backing


@pytest.mark.parametrize("size", [0, 512, 2**40 + 512, 2**51])
def test_an_empty_qcow2_image_is_one_for_qemu(
    new_machine: NewMachine, tmp_path: Path, size: int
) -> None:
    machine = new_machine()
    machine.start()
    path = tmp_path / "disk.qcow2"

    qcow2.make_qcow2(path, size)

    file: dict[str, Any] = {"driver": "file", "filename": str(path)}
    machine.qmp("blockdev-add", driver="qcow2", file=file, **{"node-name": "image"})
    assert node(machine, "image")["image"]["virtual-size"] == size


@pytest.mark.parametrize("size", [-512, 2**51 + 512])
def test_a_qcow2_image_of_an_impossible_size_is_not_made(tmp_path: Path, size: int) -> None:
    with pytest.raises(MachineError, match="0 to 2 PiB"):
        qcow2.make_qcow2(tmp_path / "disk.qcow2", size)
    assert not any(tmp_path.iterdir())


@both_ways
@pytest.mark.parametrize("count", [1, 2])
def test_iothreads_serve_the_device(new_machine: NewMachine, live: bool, count: int) -> None:
    machine = new_machine()
    spec = DiskSpec(iothreads=count, queues=2)
    if count > 1 and machine.config.qemu.version < IOTHREADS_SINCE:
        with pytest.raises(UnsupportedError, match="has one iothread"):
            machine.add_disk(spec)
        return
    drive = add(machine, spec, live)

    threads = [thread["id"] for thread in machine.qmp("query-iothreads")]

    assert threads == [f"{drive.name}-iothread{number}" for number in range(count)]


@both_ways
@pytest.mark.parametrize(
    ("policy", "writes", "reads"),
    [
        ("report", "report", "report"),
        ("ignore", "ignore", "ignore"),
        ("stop", "stop", "stop"),
        ("enospc", "enospc", "report"),
    ],
)
def test_the_error_policy_reaches_the_device(
    new_machine: NewMachine, live: bool, policy: ErrorPolicy, writes: str, reads: str
) -> None:
    machine = new_machine()
    drive = add(machine, DiskSpec(on_error=policy), live)

    shown = [device(machine, drive, name) for name in ("werror", "rerror")]

    assert shown == [writes, reads]


@both_ways
def test_geometry_reaches_the_device(new_machine: NewMachine, live: bool) -> None:
    machine = new_machine()
    drive = add(machine, DiskSpec(geometry=(16, 4, 32)), live)

    shown = [device(machine, drive, name) for name in ("cyls", "heads", "secs")]

    assert shown == [16, 4, 32]


@both_ways
def test_every_property_reaches_the_device(new_machine: NewMachine, live: bool) -> None:
    machine = new_machine()
    words = {field: value for field, (value, _, _) in PROPERTIES.items()}
    drive = add(machine, replace(DiskSpec(), **words), live)  # type: ignore[arg-type]
    plain = machine.add_disk(DiskSpec())

    for _, name, expected in PROPERTIES.values():
        assert device(machine, drive, name) == expected, name
        assert device(machine, plain, name) != expected, f"{name}: the tested value is the default"


@both_ways
def test_plain_disk(new_machine: NewMachine, live: bool) -> None:
    machine = new_machine()
    drive = add(machine, DiskSpec(capacity=100), live)

    assert machine.drives == (drive,)
    assert drive.backing.size == 100 * 512
    assert drive.backing.read(0, 100) == bytes(100 * 512)
    assert node(machine, drive.name)["image"]["virtual-size"] == 100 * 512
    assert node(machine, drive.name)["ro"] is False
    assert device(machine, drive, "disable-modern") is False
    assert device(machine, drive, "disable-legacy") == "on"
    domain_bus, slot = drive.pci_address.rsplit(":", 1)
    assert domain_bus == "0000:00"
    assert device(machine, drive, "addr") == int(slot.removesuffix(".0"), 16) * 8


def test_a_full_host_disk_does_not_stop_the_machine(machine: Machine) -> None:
    drive = machine.add_disk(DiskSpec())
    assert device(machine, drive, "werror") == "report"
    assert device(machine, drive, "rerror") == "report"


@both_ways
def test_read_only(new_machine: NewMachine, live: bool) -> None:
    machine = new_machine()
    drive = add(machine, DiskSpec(read_only=True, faults=(Fault("read"),), iops=10), live)
    assert node(machine, drive.name)["ro"] is True
    with pytest.raises(MachineError, match="not resized"):
        drive.resize(8)
    assert drive.backing.size == drive.spec.capacity * 512


def test_null_disk(machine: Machine) -> None:
    drive = machine.add_disk(DiskSpec(capacity=2048, backing="null"))
    assert node(machine, drive.name)["image"]["virtual-size"] == 2048 * 512
    assert "wrote 512/512" in io(machine, drive, "write -P 7 0 512")
    assert "read 512/512" in io(machine, drive, "read -P 0 0 512")
    with pytest.raises(MachineError, match="no backing file"):
        _ = drive.backing
    with pytest.raises(MachineError, match="does not support resize"):
        drive.resize(8)


def test_iops(machine: Machine) -> None:
    drive = machine.add_disk(DiskSpec(iops=123))
    limits = machine.qmp("qom-get", path=f"/objects/{drive.name}-limit", property="limits")
    assert limits["iops-total"] == 123
    assert "read 512/512" in io(machine, drive, "read 0 512")


@pytest.mark.parametrize(
    ("fault", "fails", "works"),
    [
        (Fault("read", sector=8), "read 4096 512", "read 0 512"),
        (Fault("read", sector=8), "read 0 8192", "write 4096 512"),
        (Fault("write", sector=8), "write 4096 512", "read 4096 512"),
        (Fault("write"), "write 1024 512", "read 1024 512"),
        (Fault("discard", sector=8), "discard 4096 512", "discard 8192 512"),
        (Fault("write-zeroes", sector=8), "write -z 4096 512", "write -z 8192 512"),
        (Fault("write-zeroes", sector=8), "write -z 4096 512", "write 4096 512"),
    ],
)
@both_ways
def test_fault(new_machine: NewMachine, live: bool, fault: Fault, fails: str, works: str) -> None:
    machine = new_machine()
    drive = add(machine, DiskSpec(faults=(fault,)), live)
    for _ in range(2):
        assert "failed: Input/output error" in io(machine, drive, fails)
        assert "failed" not in io(machine, drive, works)


def test_fault_once_and_its_errno(machine: Machine) -> None:
    drive = machine.add_disk(DiskSpec(faults=(Fault("write", errno=28, once=True),)))
    assert "No space left on device" in io(machine, drive, "write 0 512")
    assert "wrote 512/512" in io(machine, drive, "write 0 512")


def test_flush_fault_with_a_sector_makes_no_sense(machine: Machine) -> None:
    with pytest.raises(MachineError, match="flush has no sector"):
        machine.add_disk(DiskSpec(faults=(Fault("flush", sector=1),)))


def test_backing_and_device_see_each_other(machine: Machine) -> None:
    drive = machine.add_disk(DiskSpec())
    drive.backing.write(3, b"\x5a" * 1024)
    assert "read 1024/1024" in io(machine, drive, "read -P 0x5a 1536 1024")
    io(machine, drive, "write -P 0x33 0 512")
    assert drive.backing.read(0, 1) == b"\x33" * 512
    assert drive.backing.read(2, 4) == bytes(512) + b"\x5a" * 1024 + bytes(512)


@pytest.mark.parametrize(("sector", "count"), [(-1, 1), (99, 2), (101, 0), (0, -1)])
def test_backing_keeps_to_the_file(new_machine: NewMachine, sector: int, count: int) -> None:
    drive = new_machine().add_disk(DiskSpec(capacity=100))
    with pytest.raises(ValueError, match="not within 0 to 100"):
        drive.backing.read(sector, count)


def test_backing_writes_whole_sectors(new_machine: NewMachine) -> None:
    drive = new_machine().add_disk(DiskSpec(capacity=100))
    with pytest.raises(ValueError, match="not whole sectors"):
        drive.backing.write(0, b"short")
    with pytest.raises(ValueError, match="not within"):
        drive.backing.write(99, bytes(1024))
    assert drive.backing.size == 100 * 512


@pytest.mark.parametrize("spec", [DiskSpec(), DiskSpec(iops=1000, faults=(Fault("read", 1),))])
def test_resize(machine: Machine, spec: DiskSpec) -> None:
    drive = machine.add_disk(spec)
    for capacity in (spec.capacity * 2, 7, 0, 4096):
        drive.resize(capacity)
        assert drive.backing.size == capacity * 512
        assert node(machine, drive.name)["image"]["virtual-size"] == capacity * 512


def test_a_disk_with_a_fault_on_flush_cannot_be_resized(machine: Machine) -> None:
    drive = machine.add_disk(DiskSpec(faults=(Fault("flush"),)))
    with pytest.raises(MachineError, match="was not resized") as caught:
        drive.resize(drive.spec.capacity * 2)
    assert "\n" not in str(caught.value)
    assert drive.backing.size == drive.spec.capacity * 512


@pytest.mark.parametrize("capacity", [-1, 2**55, 2**70])
def test_resize_to_a_bad_size(machine: Machine, capacity: int) -> None:
    drive = machine.add_disk(DiskSpec())
    with pytest.raises(MachineError) as caught:
        drive.resize(capacity)
    assert str(caught.value).startswith(f"{drive.name}: {capacity} sectors is no capacity")
    assert drive.backing.size == drive.spec.capacity * 512


def test_resize_beyond_what_the_host_can_store(machine: Machine) -> None:
    drive = machine.add_disk(DiskSpec())
    with pytest.raises(MachineError, match="was not resized") as caught:
        drive.resize(2**53)
    assert "\n" not in str(caught.value)
    assert drive.backing.size == drive.spec.capacity * 512


def test_a_refused_disk_leaves_no_trace(machine: Machine) -> None:
    directory = machine.qmp_path.parent
    nodes = machine.qmp("query-named-block-nodes")
    objects = machine.qmp("qom-list", path="/objects")
    files = sorted(directory.iterdir())

    with pytest.raises(MachineError, match=r"disk0 was not added: .*not a power of 2"):
        machine.add_disk(DiskSpec(logical_block_size=1000, iops=10, faults=(Fault("read"),)))

    assert machine.qmp("query-named-block-nodes") == nodes
    assert machine.qmp("qom-list", path="/objects") == objects
    assert sorted(directory.iterdir()) == files
    assert machine.drives == ()


@pytest.mark.parametrize("capacity", [-1, 2**60])
def test_a_disk_of_an_impossible_size(machine: Machine, capacity: int) -> None:
    with pytest.raises(MachineError, match="no disk of"):
        machine.add_disk(DiskSpec(capacity=capacity))
    assert not list(machine.qmp_path.parent.glob("*.raw"))


def test_slots_run_out_and_come_back(new_machine: NewMachine) -> None:
    machine = new_machine()
    drives = [machine.add_disk(DiskSpec(backing="null")) for _ in range(29)]
    assert len({drive.pci_address for drive in drives}) == 29
    with pytest.raises(MachineError, match="at most 29 disks"):
        machine.add_disk(DiskSpec())
    machine.remove_disk(drives[5])
    assert machine.add_disk(DiskSpec()).pci_address == drives[5].pci_address
    machine.start()
    assert len(machine.qmp("query-block")) == 29


def test_remove_before_start(new_machine: NewMachine) -> None:
    machine = new_machine()
    drive = machine.add_disk(DiskSpec())
    path = drive.backing.path
    machine.remove_disk(drive)
    assert not path.exists()
    with pytest.raises(MachineError, match="not a disk of this machine"):
        machine.remove_disk(drive)
    machine.start()
    assert machine.qmp("query-block") == []


def test_a_guest_that_does_not_let_go(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.machine.machine.UNPLUG_DEADLINE", 0.1)
    drive = machine.add_disk(DiskSpec())
    with pytest.raises(MachineError, match=r"did not let go of disk0 within 0\.1 s"):
        machine.remove_disk(drive)
    assert machine.drives == (drive,)
    assert drive.backing.size


@both_ways
def test_an_image_is_read_only_by_default(
    new_machine: NewMachine, tmp_path: Path, live: bool
) -> None:
    path = tmp_path / "with,comma.img"
    path.write_bytes(b"\x77" * 8192)
    machine = new_machine()
    if live:
        machine.start()
    read_only = machine.add_image(path)
    if not live:
        machine.start()

    assert node(machine, read_only.name)["ro"] is True
    assert node(machine, read_only.name)["image"]["virtual-size"] == 8192
    assert "read 8192/8192" in io(machine, read_only, "read -P 0x77 0 8192")
    with pytest.raises(MachineError, match="no backing file of its own"):
        _ = read_only.backing

    machine.stop()
    assert path.read_bytes() == b"\x77" * 8192


def test_a_writable_image(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    drive = machine.add_image(path, writable=True)
    assert "wrote" in io(machine, drive, "write -P 1 0 512")
    drive.resize(32)
    machine.stop()
    assert path.read_bytes() == b"\x01" * 512 + bytes(32 * 512 - 512)


def test_a_flush_waits_for_the_disk_of_the_host_only_if_the_file_is_kept(
    machine: Machine, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    kept = machine.add_image(path, writable=True)
    scratch = machine.add_disk(DiskSpec())

    ignored = {
        entry["node-name"]: entry["cache"]["no-flush"]
        for entry in machine.qmp("query-named-block-nodes")
    }

    assert not ignored[f"{kept.name}-file"]
    assert ignored[f"{scratch.name}-file"]
    assert not ignored[scratch.name]


def test_a_qcow2_image(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    path.touch()
    make_qcow2(machine, path, 1 << 20)
    digest = hashlib.sha256(path.read_bytes()).digest()
    drive = machine.add_image(path, "qcow2")
    assert node(machine, drive.name)["image"]["virtual-size"] == 1 << 20
    machine.stop()
    assert hashlib.sha256(path.read_bytes()).digest() == digest


def test_a_bad_image(machine: Machine, tmp_path: Path) -> None:
    bad_image = tmp_path / "odd"
    bad_image.write_bytes(b"x" * 1000)
    with pytest.raises(MachineError, match="no disk image"):
        machine.add_image(tmp_path / "missing")
    with pytest.raises(MachineError, match="not whole sectors"):
        machine.add_image(bad_image)
    with pytest.raises(MachineError, match="not in qcow2 format"):
        machine.add_image(bad_image, "qcow2")


def test_a_visitor_resizes(machine: Machine) -> None:
    drive = machine.add_disk(DiskSpec(capacity=100))
    with visit(machine.qmp_path) as visitor:
        assert visitor.drives() == {drive.name: 51200}
        visitor.resize(drive.name, 1024)
        assert visitor.drives() == {drive.name: 1024}
    assert drive.backing.size == 1024
    with visit(machine.qmp_path) as visitor:
        with pytest.raises(MachineError, match="there is no disk nope; there are: disk0"):
            visitor.resize("nope", 1024)
        with pytest.raises(MachineError, match="whole sectors"):
            visitor.resize(drive.name, 1000)
        with pytest.raises(MachineError, match="not resized to"):
            visitor.resize(drive.name, 2**62)


def test_no_guest_to_visit(machine: Machine, tmp_path: Path) -> None:
    with (
        pytest.raises(MachineError, match=r"no machine answers at .*gone"),
        visit(tmp_path / "gone"),
    ):
        pass
