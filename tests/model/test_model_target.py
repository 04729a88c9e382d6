"""The target `model`: disks of one process, and the end of that process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec
from harness.driver.interface import Request
from harness.machine.rundir import MARKER
from harness.targets.base import TargetError
from harness.targets.disk import Disk
from harness.targets.model import VARIANTS, Model
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature

DATA = bytes(range(1, 65)) * 8


@pytest.fixture
def target() -> Iterator[Model]:
    target = Model()
    yield target
    target.close()


def test_a_disk_is_used_resized_and_gone(target: Model) -> None:
    disk = Disk(target.plug(DiskSpec(capacity=64)))
    disk.start()
    assert disk.write(63, DATA).status is Status.OK
    assert disk.backing.read(63, 1) == DATA

    disk.resize(128)
    assert [change.capacity for change in disk.driver.wait_config_change(0)] == [128]
    assert disk.backing.size == 128 * 512

    backing = Path(disk._plugged.backing.path)  # type: ignore[attr-defined]
    process = target._process
    disk.unplug()
    assert {path.name for path in backing.parent.iterdir()} == {MARKER, "stderr.log"}
    target.check()
    target.close()
    assert not backing.parent.exists()
    assert process and not process.alive()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_driver_goes_through_the_interface_that_the_traits_declare(name: str) -> None:
    target = Model(name=name)
    try:
        driver = target.plug(DiskSpec()).driver
        way = driver.transport_kind().removesuffix("-legacy")

        assert target.traits == {way, "modern" if way == driver.transport_kind() else "legacy"}
        assert bool(driver.offered() & Feature.VERSION_1.mask) == ("modern" in target.traits)
    finally:
        target.close()


def test_several_disks_do_not_disturb_each_other(target: Model) -> None:
    first, second = (Disk(target.plug(DiskSpec(capacity=64, queues=2))) for _ in range(2))
    for disk in (first, second):
        disk.start(queues=2)
    for number, disk in enumerate((first, second, first, second)):
        request = Request(RequestType.OUT, number, bytes([number + 1]) * 512)
        assert disk.driver.request(request, queue=number % 2).status == Status.OK
    first.unplug()
    assert second.read(1).data == bytes([2]) * 512
    assert second.read(3).data == bytes([4]) * 512
    assert second.read(0).data == bytes(512)


def test_what_a_reset_cancels_holds_nothing_up(target: Model) -> None:
    disk = Disk(target.plug(DiskSpec(iops=2)))
    disk.start()
    reads = [Request(RequestType.IN, sector, receive=512) for sector in range(40)]
    disk.driver.submit(reads)

    disk.driver.reset()
    disk.start()

    assert disk.driver.request(reads[0], timeout=15).status == Status.OK


def test_a_process_that_has_died_is_reported_and_replaced(target: Model) -> None:
    disk = Disk(target.plug(DiskSpec()))
    disk.start()
    process = target._process
    assert process and process.pid and process._process
    os.kill(process.pid, signal.SIGKILL)
    assert process._process.wait(60)
    with pytest.raises(TargetError, match="SIGKILL"):
        target.check()
    assert "SIGKILL" in "".join(target.evidence().values())
    with pytest.raises(TargetError, match="SIGKILL"):
        disk.unplug()
    again = Disk(target.plug(DiskSpec()))
    again.start()
    assert again.read(0).status is Status.OK


@pytest.mark.parametrize(
    ("spec", "act", "reason"),
    [
        (DiskSpec(logical_block_size=700), None, "700 is not a block size"),
        (DiskSpec(backing="null"), 1, "a null disk cannot be resized"),
        (DiskSpec(read_only=True), 1, "a read-only disk cannot be resized"),
        (DiskSpec(), -1, "-1 sectors is not a possible capacity"),
    ],
    ids=["odd-blocks", "resize-null", "resize-read-only", "resize-below-0"],
)
def test_what_cannot_be_is_one_line(
    target: Model, spec: DiskSpec, act: int | None, reason: str
) -> None:
    with pytest.raises(TargetError, match=reason) as caught:
        target.plug(spec).resize(act or 0)
    assert "\n" not in str(caught.value)
    Disk(target.plug(DiskSpec())).start()  # the target still works


def test_the_model_is_idle_while_nobody_asks_for_anything(target: Model) -> None:
    disk = Disk(target.plug(DiskSpec()))
    disk.start()
    assert disk.read(0).status is Status.OK
    assert target._process
    stat = Path(f"/proc/{target._process.pid}/stat")

    def ticks() -> int:
        """Return the CPU time of the process, in hundredths of a second."""
        fields = stat.read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(0.5)
    assert ticks() - before <= 5
