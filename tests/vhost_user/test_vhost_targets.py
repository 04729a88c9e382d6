"""The targets `vhost-user` and `vhost-user:PATH`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec
from harness.driver.errors import BadArgumentError
from harness.driver.interface import Request
from harness.machine.storage_daemon import Export, StorageDaemon
from harness.targets.base import LacksError, TargetError
from harness.targets.disk import Disk
from harness.targets.vhost_user import VhostUserDaemon, VhostUserSocket
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature


@pytest.fixture
def target() -> Iterator[VhostUserDaemon]:
    target = VhostUserDaemon()
    yield target
    target.close()


@pytest.fixture
def export(shared_daemon: StorageDaemon) -> Iterator[Export]:
    """An export that the user owns."""
    export = shared_daemon.add_export(DiskSpec(capacity=4096))
    yield export
    shared_daemon.remove_export(export)


def test_a_disk_of_the_daemon_is_a_disk_like_any(target: VhostUserDaemon) -> None:
    disk = Disk(target.plug(DiskSpec(queue_size=16)))
    disk.start()
    assert disk.queues[0].size == 16
    assert disk.write(1, b"\x11" * 512).status is Status.OK
    assert disk.backing.read(1, 1) == b"\x11" * 512
    disk.unplug()
    (identity,) = target.identities()
    assert identity.implementation == "qemu-storage-daemon"
    assert "qemu-storage-daemon" in target.facts()
    target.check()


def test_a_missing_option_of_the_daemon_differs_from_a_failure(target: VhostUserDaemon) -> None:
    with pytest.raises(LacksError, match="no option for a disk's serial"):
        target.plug(DiskSpec(serial="abc"))
    with pytest.raises(TargetError) as caught:
        target.plug(DiskSpec(logical_block_size=700))
    assert not isinstance(caught.value, LacksError)


def test_a_dead_daemon_is_reported_and_replaced(target: VhostUserDaemon) -> None:
    disk = Disk(target.plug(DiskSpec()))
    disk.start()
    daemon = target._daemon._running
    assert daemon and daemon.pid and daemon._process
    os.kill(daemon.pid, signal.SIGKILL)
    assert daemon._process.wait(10)
    with pytest.raises(TargetError, match="SIGKILL"):
        target.check()
    assert "SIGKILL" in "".join(target.evidence().values())
    with pytest.raises(TargetError):
        disk.unplug()
    again = Disk(target.plug(DiskSpec()))
    again.start()
    assert again.read(0).status is Status.OK


def test_a_disk_of_the_user_is_only_read_by_default(export: Export) -> None:
    target = VhostUserSocket(str(export.path))
    with pytest.raises(LacksError, match="need --destructive"):
        target.plug(DiskSpec())
    disk = Disk(target.plug(DiskSpec(), writes=False))
    disk.start()
    assert disk.spec.capacity == 4096
    assert disk.read(0).status is Status.OK
    for type in (RequestType.OUT, RequestType.DISCARD, RequestType.WRITE_ZEROES, 77):
        with pytest.raises(BadArgumentError, match="only read"):
            disk.request(type, data=b"\x11" * 512)
    with pytest.raises(BadArgumentError, match="only read"):
        disk.driver.repeat(Request(RequestType.OUT, data=b"\x11" * 512), 2)
    with pytest.raises(BadArgumentError, match="must not be written"):
        disk.driver.config_write(32, b"\x01")
    assert export.backing.read(0, 4096) == bytes(4096 * 512)
    target.close()


def test_a_destructive_target_writes(export: Export) -> None:
    target = VhostUserSocket(str(export.path), destructive=True)
    disk = Disk(target.plug(DiskSpec()))
    disk.start()
    assert disk.write(0, b"\x11" * 512).status is Status.OK
    assert export.backing.read(0, 1) == b"\x11" * 512
    target.close()


def test_a_disk_of_the_user_has_fixed_properties_and_is_used_once_at_a_time(export: Export) -> None:
    target = VhostUserSocket(str(export.path), destructive=True)
    with pytest.raises(
        LacksError, match="has capacity 4096, and the test needs 1; the device has read_only false"
    ):
        target.plug(DiskSpec(capacity=1, read_only=True))
    disk = target.plug(DiskSpec())
    with pytest.raises(LacksError, match="in use"):
        target.plug(DiskSpec())
    with pytest.raises(LacksError):
        disk.resize(1)
    with pytest.raises(LacksError, match="names no `backing`"):
        _ = disk.backing.size
    disk.unplug()
    target.check()
    target.plug(DiskSpec()).unplug()
    target.close()


def test_a_feature_that_a_device_of_the_user_offers_is_used(export: Export) -> None:
    target = VhostUserSocket(str(export.path), destructive=True)
    with pytest.raises(
        LacksError, match=r"always offers BLK_DISCARD; the device does not offer RING_PACKED"
    ):
        target.plug(DiskSpec(packed=True, discard=False, event_idx=True))
    disk = target.plug(DiskSpec(packed=False, discard=True, event_idx=True))
    assert disk.driver.offered() & Feature.BLK_DISCARD.mask
    target.close()


def test_a_path_without_a_back_end_is_one_line(tmp_path: Path) -> None:
    target = VhostUserSocket(str(tmp_path / "nothing"), destructive=True)
    with pytest.raises(TargetError, match="no vhost-user back-end at") as caught:
        target.plug(DiskSpec())
    assert "\n" not in str(caught.value)
    target.close()


def test_a_back_end_that_disconnected_is_reported(shared_daemon: StorageDaemon) -> None:
    export = shared_daemon.add_export(DiskSpec())
    target = VhostUserSocket(str(export.path), destructive=True)
    target.plug(DiskSpec())
    target.check()
    shared_daemon.remove_export(export)
    with pytest.raises(TargetError, match="closed the connection"):
        target.check()
    target.close()
