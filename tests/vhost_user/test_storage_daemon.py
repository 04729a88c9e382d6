"""A real qemu-storage-daemon: it works, and it ends whichever process dies first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import harness
from harness.diskspec import DiskSpec, Fault
from harness.driver.block import BlockDriver
from harness.driver.errors import DeviceTimeoutError, DriverError, NoDeviceError
from harness.driver.interface import CANARY, Buffer, Completion, Request
from harness.driver.transport.vhost_channel import GoneError
from harness.machine.errors import MachineError
from harness.machine.storage_daemon import StorageDaemon, find_storage_daemon
from harness.virtio.blk import REQUEST_HEADER, RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature

Attach = Callable[..., BlockDriver]

CHILD = """
import sys, time
from harness.machine.storage_daemon import StorageDaemon, find_storage_daemon
from harness.interrupt import install
from harness.diskspec import DiskSpec
install()
with StorageDaemon(find_storage_daemon()) as daemon:
    print(daemon.pid, daemon.add_export(DiskSpec()).path.parent, flush=True)
    time.sleep(60)
"""

FORGETFUL = """
from harness.diskspec import DiskSpec
from harness.machine.storage_daemon import StorageDaemon, find_storage_daemon
daemon = StorageDaemon(find_storage_daemon())
daemon.start()
print(daemon.pid, daemon.add_export(DiskSpec()).path.parent)
"""


def until(condition: Callable[[], bool], what: str, deadline: float = 20.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what} was not true within {deadline:g} s"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Return True when the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def read(driver: BlockDriver, sector: int, queue: int = 0) -> Completion:
    return driver.request(Request(RequestType.IN, sector, receive=512), queue)


def write(driver: BlockDriver, sector: int, data: bytes, queue: int = 0) -> Completion:
    return driver.request(Request(RequestType.OUT, sector, data), queue)


@pytest.mark.parametrize("queue", [0, 3])
def test_what_is_written_is_in_the_file_and_what_is_in_the_file_is_read(
    shared_daemon: StorageDaemon, attach: Attach, queue: int
) -> None:
    export = shared_daemon.add_export(DiskSpec(queues=4))
    driver = attach(export.path)
    assert driver.start(queues=4).status & DeviceStatus.DRIVER_OK
    export.backing.write(9, b"\x22" * 512)

    written = write(driver, 5, b"\x11" * 1024, queue)
    flushed = driver.request(Request(RequestType.FLUSH), queue)
    found = read(driver, 9, queue)

    for completion in (written, flushed, found):
        assert (completion.status, completion.damage) == (Status.OK, ())
    assert (written.used_len, found.used_len) == (1, 513)
    assert found.data == b"\x22" * 512
    assert export.backing.read(4, 4) == bytes(512) + b"\x11" * 1024 + bytes(512)
    assert driver.config().num_queues == 4
    shared_daemon.remove_export(export)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_many_requests_at_once_on_either_ring(
    shared_daemon: StorageDaemon, attach: Attach, ring: str
) -> None:
    export = shared_daemon.add_export(DiskSpec())
    driver = attach(export.path)
    wanted = driver.negotiate().accepted
    if ring == "packed":
        if not driver.offered() & Feature.RING_PACKED.mask:
            pytest.skip("this qemu-storage-daemon does not offer RING_PACKED")
        wanted |= Feature.RING_PACKED.mask
    driver.start(wanted, queue_size=32)
    for turn in range(20):
        data = [bytes([turn + 1, index]) * 256 for index in range(8)]
        done = driver.complete(
            driver.submit([Request(RequestType.OUT, n, d) for n, d in enumerate(data)])
        )
        assert [(completion.status, completion.damage) for completion in done] == [
            (Status.OK, ())
        ] * 8
        assert export.backing.read(0, 8) == b"".join(data)


def test_capacity_block_size_and_read_only_come_from_the_spec(
    shared_daemon: StorageDaemon, attach: Attach
) -> None:
    spec = DiskSpec(capacity=4096, logical_block_size=4096, read_only=True)
    export = shared_daemon.add_export(spec)
    driver = attach(export.path)
    agreed = driver.start()
    assert agreed.offered & Feature.BLK_RO.mask
    config = driver.config()
    assert (config.capacity, config.blk_size) == (4096, 4096)
    assert write(driver, 0, b"\x11" * 4096).status == Status.IOERR
    assert export.backing.read(0, 8) == bytes(4096)


def test_a_fault_is_an_error_at_its_sector_only(
    shared_daemon: StorageDaemon, attach: Attach
) -> None:
    driver = attach(shared_daemon.add_export(DiskSpec(faults=(Fault("read", 3),))).path)
    driver.start()
    assert read(driver, 3).status == Status.IOERR
    assert read(driver, 4).status == Status.OK


def test_a_null_disk_reads_zeroes_and_has_no_file(
    shared_daemon: StorageDaemon, attach: Attach
) -> None:
    export = shared_daemon.add_export(DiskSpec(backing="null"))
    driver = attach(export.path)
    driver.start()
    assert read(driver, 0).data == bytes(512)
    with pytest.raises(MachineError, match="no backing file"):
        _ = export.backing


def test_interrupts_come_for_completions_and_not_while_the_driver_wants_none(
    shared_daemon: StorageDaemon, attach: Attach
) -> None:
    driver = attach(shared_daemon.add_export(DiskSpec()).path)
    driver.start()
    before = driver.interrupts()
    driver.repeat(Request(RequestType.IN, receive=512), 50)
    driver.queue_poll(0, count=0)
    quiet = driver.interrupts()
    # One may be in flight while the driver disables them.
    assert quiet.raised - before.raised <= 1
    assert read(driver, 0).status == Status.OK
    assert driver.wait_interrupt("queue", quiet.queue).unexplained == 0


def test_reset_and_a_new_connection_both_start_afresh(
    shared_daemon: StorageDaemon, attach: Attach
) -> None:
    export = shared_daemon.add_export(DiskSpec(queues=2))
    driver = attach(export.path)
    for turn in range(1, 4):
        driver.start(queues=2)
        assert write(driver, turn, bytes([turn]) * 512, turn % 2).status == Status.OK
    driver.close()
    again = attach(export.path)
    again.start()
    assert [read(again, turn).data[0] for turn in range(1, 4)] == [1, 2, 3]


def test_features_that_it_refuses_cost_the_connection_and_the_next_start_makes_one(
    shared_daemon: StorageDaemon, attach: Attach
) -> None:
    driver = attach(shared_daemon.add_export(DiskSpec()).path)
    with pytest.raises(DriverError, match="refuses the features"):
        driver.negotiate(0)
    driver.start()
    assert read(driver, 0).status == Status.OK


def test_buffers_before_driver_ok_are_left_alone_until_it(
    shared_daemon: StorageDaemon, attach: Attach
) -> None:
    driver = attach(shared_daemon.add_export(DiskSpec()).path)
    agreed = driver.negotiate()
    driver.queue_setup(0)
    header, data = driver.alloc(16), driver.alloc(513)
    driver.memory_write(header, REQUEST_HEADER.pack(RequestType.IN, 0, 0))
    driver.memory_write(data, bytes([CANARY]) * 513)
    head = driver.queue_add(0, [Buffer(header, 16), Buffer(data, 513, writable=True)])
    driver.queue_publish(0, [head])
    driver.queue_kick(0)
    with pytest.raises(DeviceTimeoutError):
        driver.queue_poll(0, timeout=0.1)
    assert driver.memory_read(data, 513) == bytes([CANARY]) * 513

    driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)
    assert [used.id for used in driver.queue_poll(0)] == [head]
    assert driver.memory_read(data, 513) == bytes(513)


def test_resize_reaches_the_file_or_says_why_not(shared_daemon: StorageDaemon) -> None:
    export = shared_daemon.add_export(DiskSpec(capacity=4096))
    export.resize(8192)
    assert export.backing.size == 8192 * 512
    for capacity in (-1, 2**60):
        with pytest.raises(MachineError, match="no capacity"):
            export.resize(capacity)
    assert export.backing.size == 8192 * 512


def test_resize_reaches_the_driver(shared_daemon: StorageDaemon, attach: Attach) -> None:
    export = shared_daemon.add_export(DiskSpec(capacity=4096))
    driver = attach(export.path)
    driver.start()
    export.resize(8192)
    try:
        changes = driver.wait_config_change(0, timeout=1)
    except DeviceTimeoutError:
        pytest.xfail(
            f"{shared_daemon.program.version_text} does not report a resize to its front-end"
        )
    assert changes[-1].capacity == driver.config().capacity == 8192


def test_an_export_that_is_removed_hangs_up_and_leaves_nothing(
    shared_daemon: StorageDaemon, attach: Attach
) -> None:
    export = shared_daemon.add_export(DiskSpec())
    file = export.backing.path
    driver = attach(export.path)
    driver.start()
    shared_daemon.remove_export(export)
    with pytest.raises(GoneError):
        read(driver, 0)
    with pytest.raises(NoDeviceError):
        driver.reset()
    assert not export.path.exists() and not file.exists()
    with pytest.raises(MachineError, match="not an export"):
        shared_daemon.remove_export(export)


def test_what_an_export_has_no_option_for_is_named(shared_daemon: StorageDaemon) -> None:
    with pytest.raises(MachineError, match="no option for a disk's serial, packed"):
        shared_daemon.add_export(DiskSpec(serial="x", packed=True))
    with pytest.raises(MachineError, match="not a power of 2") as caught:
        shared_daemon.add_export(DiskSpec(logical_block_size=700))
    assert "\n" not in str(caught.value)
    # Nothing is left of it: otherwise the same name would be refused.
    assert not [node for node in shared_daemon.qmp("query-block-exports") if "700" in str(node)]


def test_a_daemon_that_dies_ends_the_wait_with_its_last_messages(
    attach: Attach,
) -> None:
    with StorageDaemon(find_storage_daemon()) as daemon:
        driver = attach(daemon.add_export(DiskSpec(iops=1)).path)
        driver.start()
        tokens = driver.submit([Request(RequestType.IN, n, receive=512) for n in range(20)])
        assert daemon.pid
        os.kill(daemon.pid, signal.SIGKILL)
        with pytest.raises(GoneError, match="closed the connection"):
            driver.complete(tokens)
        until(lambda: not daemon.alive(), "the daemon's end")
        with pytest.raises(MachineError, match="qemu-storage-daemon was ended by SIGKILL"):
            daemon.check()
        with pytest.raises(NoDeviceError):
            driver.reset()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_daemon_ends_with_its_parent(by: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(harness.__file__).parents[1],
    )
    with parent:
        assert parent.stdout
        pid, directory = parent.stdout.readline().split()
        assert runs(int(pid))
        parent.send_signal(by)
        parent.wait(20)
    until(lambda: not runs(int(pid)), "the daemon's end")
    if by is not signal.SIGKILL:
        assert not Path(directory).exists()
    with StorageDaemon(find_storage_daemon()):
        assert not Path(directory).exists()


def test_a_daemon_that_nobody_stopped_ends_with_the_interpreter() -> None:
    child = subprocess.run(
        [sys.executable, "-c", FORGETFUL],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(harness.__file__).parents[1],
    )
    assert child.returncode == 0, child.stderr
    pid, directory = child.stdout.split()
    assert not runs(int(pid)) and not Path(directory).exists()


def test_stop_leaves_nothing_and_is_final() -> None:
    daemon = StorageDaemon(find_storage_daemon())
    daemon.start()
    directory, pid = daemon.add_export(DiskSpec()).path.parent, daemon.pid
    daemon.stop()
    daemon.stop()
    assert pid and not runs(pid) and not directory.exists()
    with pytest.raises(MachineError, match="only once"):
        daemon.start()
    with pytest.raises(MachineError, match="exited with status 0"):
        daemon.check()


def test_a_program_that_is_no_storage_daemon_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no program on this machine"):
        find_storage_daemon(str(tmp_path / "nothing"))
    with pytest.raises(MachineError, match="is not qemu-storage-daemon"):
        find_storage_daemon("/bin/true")
    found = replace(find_storage_daemon(), path=Path("/bin/true"))
    with pytest.raises(MachineError, match=r"did not start: .*exited with status 0"):
        StorageDaemon(found).start()
