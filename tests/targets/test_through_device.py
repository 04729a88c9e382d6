"""A disk without a backing file is seen through its device, and a wrong backing file is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from harness.diskspec import DiskSpec, Fault
from harness.driver.interface import Request
from harness.targets import Disk, LacksError, TargetError
from harness.targets.external import HostSide
from harness.targets.model import ModelProcess
from harness.targets.vhost_user import VhostUserSocket
from harness.virtio.blk import RequestType

DATA = bytes(range(256)) * 4 * 100
Reach = Callable[..., VhostUserSocket]


@pytest.fixture
def reach() -> Iterator[Reach]:
    """Serve a disk of the model as somebody else's; `backing` is a path, or True for its file."""
    with ExitStack() as stack:

        def make(
            backing: Path | bool = False, destructive: bool = True, **fields: Any
        ) -> VhostUserSocket:
            process = ModelProcess()
            stack.callback(process.stop)
            _, link, file = process.add(DiskSpec(**fields))
            path = file if backing is True else backing or None
            target = VhostUserSocket(str(link), destructive, HostSide(backing=path))
            stack.callback(target.close)
            return target

        yield make


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("started", [False, True])
def test_a_look_leaves_a_device_as_it_was(reach: Reach, started: bool, packed: bool) -> None:
    disk = Disk(reach(packed=packed, queues=2).plug(DiskSpec()))
    if started:
        disk.start(queues=2, queue_size=16)
    status, queues = disk.driver.status(), list(disk.queues)

    disk.backing.write(5, DATA)

    assert disk.backing.read(5, 200) == DATA
    assert disk.through_device
    assert disk.driver.status() == status
    assert disk.queues == queues
    for queue in queues:
        assert disk.driver.queue_state(queue.index).used_idx == 0
        assert disk.driver.queue_state(queue.index).size == 16


def test_a_look_sees_what_a_request_did(reach: Reach) -> None:
    disk = Disk(reach().plug(DiskSpec()))
    disk.start()
    disk.write(7, b"\x11" * 512)

    assert disk.backing.read(6, 2) == bytes(512) + b"\x11" * 512


def test_a_disk_that_another_front_end_uses_is_not_seen(reach: Reach) -> None:
    disk = Disk(reach().plug(DiskSpec()))

    disk.hand_over()

    with pytest.raises(LacksError, match="while another front-end uses it"):
        disk.backing.read(0, 1)
    disk.driver.reset()
    assert disk.backing.read(0, 1) == bytes(512)


def test_what_only_the_host_knows_is_lacking(reach: Reach) -> None:
    disk = Disk(reach().plug(DiskSpec()))

    for ask in (lambda: disk.backing.size, lambda: disk.backing.allocated):
        with pytest.raises(LacksError, match="names no `backing`"):
            ask()


def test_there_is_no_look_in_the_middle_of_something(reach: Reach) -> None:
    disk = Disk(reach(iops=2).plug(DiskSpec()))
    disk.driver.negotiate()
    with pytest.raises(LacksError, match="cannot be seen through the device at status 0x0b"):
        disk.backing.read(0, 1)

    disk.start()
    disk.driver.submit([Request(RequestType.IN, n, receive=512) for n in range(5)])
    with pytest.raises(LacksError, match="with requests under way"):
        disk.backing.read(0, 1)


def test_a_request_that_fails_is_no_verdict(reach: Reach) -> None:
    disk = Disk(reach(faults=(Fault("read", sector=3),)).plug(DiskSpec()))

    with pytest.raises(
        TargetError, match="a look through the device at sector 0 ended with status 1"
    ):
        disk.backing.read(0, 8)


@pytest.mark.parametrize("destructive", [False, True])
def test_the_right_backing_file_is_taken_and_left_as_it_was(
    reach: Reach, destructive: bool
) -> None:
    target = reach(True, destructive)
    file = target._host.backing
    assert file
    file.write_bytes(DATA + bytes(file.stat().st_size - len(DATA)))

    disk = Disk(target.plug(DiskSpec(), writes=destructive))

    assert disk.backing.read(0, 200) == DATA
    assert not disk.through_device


@pytest.mark.parametrize("destructive", [False, True])
def test_a_backing_file_that_is_not_the_devices_is_one_line(
    reach: Reach, tmp_path: Path, destructive: bool
) -> None:
    other, short = tmp_path / "other", tmp_path / "short"
    other.write_bytes(bytes(8 << 20) if destructive else b"\x01" * (8 << 20))
    short.write_bytes(bytes(512))

    for path, words in {
        other: "does not have the device's bytes",
        short: "has 512 bytes, the device 8388608",
        tmp_path: "is not a regular file",
        tmp_path / "missing": "does not exist",
        Path("/dev/null"): "is not a regular file",
    }.items():
        with pytest.raises(TargetError, match=words) as wrong:
            reach(path, destructive).plug(DiskSpec(), writes=destructive)
        assert "\n" not in str(wrong.value)
    assert other.read_bytes() == bytes(8 << 20) or not destructive
