"""A user's vhost-user back-end with QEMU in front of it: `through` in a targets file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec
from harness.machine.storage_daemon import Export, StorageDaemon, find_storage_daemon
from harness.targets import LacksError, Target, TargetError
from harness.targets.disk import Disk
from harness.targets.registry import Settings, maker
from harness.targets.userfile import load
from harness.virtio.blk import Status

MODEL = f"{sys.executable} -m harness.model --socket {{socket}} --file {{file}}"
RESIZE = f"{sys.executable} -m harness.model --socket {{socket}} --resize {{bytes}}"
OPTIONS = """
[target.mine.options]
read_only = "--option read_only=on"
queues = "--option queues={queues}"
"""

Make = Callable[..., Target]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a maker of targets from the keys of a table."""
    with ExitStack() as stack:

        def make(keys: str, destructive: bool = False) -> Target:
            path = tmp_path / "mine.toml"
            path.write_text(f"[target.mine]\n{keys}\n")
            target = maker("mine", load(path))(Settings(destructive=destructive))
            stack.callback(target.close)
            return target

        yield make


@pytest.fixture
def export() -> Iterator[Export]:
    with StorageDaemon(find_storage_daemon()) as daemon:
        yield daemon.add_export(DiskSpec(capacity=64))


def started(through: str = "qtest-vhost-user", more: str = "", program: str = MODEL) -> str:
    return f"device = 'vhost-user'\nthrough = '{through}'\nstart = '''{program}'''\n{more}"


def read(disk: Disk, sector: int = 0) -> bytes:
    completion = disk.read(sector)
    assert completion.status == Status.OK
    return completion.data


@pytest.mark.parametrize("through", ["qtest-vhost-user", "guest-vhost-user"])
def test_a_disk_of_the_daemon_is_a_pci_function(make: Make, through: str) -> None:
    target = make(
        started(through, f"resize = '{RESIZE}'\nimplementation = 'mine'\nversion = '3.1'{OPTIONS}")
    )
    disk = Disk(target.plug(DiskSpec(capacity=64, queues=2)))
    disk.backing.write(5, b"\x33" * 512)
    disk.start()

    assert disk.driver.description()["transport"] == "pci modern"
    assert read(disk, 5) == b"\x33" * 512
    assert disk.driver.config().num_queues == 2
    disk.resize(128)
    assert disk.driver.wait_config_change(0)[-1].capacity == 128
    assert [process.name for process in disk.processes()] == ["QEMU", Path(sys.executable).name]
    assert (target.name, target.alike) == ("mine", through)
    implementations = [identity.implementation for identity in target.identities()]
    assert implementations == ["qemu", "mine"]
    disk.unplug()
    target.release()


def test_what_only_qemu_decides_needs_no_option(make: Make) -> None:
    target = make(started(more=OPTIONS))

    disk = target.plug(DiskSpec(queue_size=64, event_idx=False))

    assert disk.driver.transport.queue_max_size(0) == 64  # type: ignore[attr-defined]
    disk.unplug()
    with pytest.raises(
        LacksError, match="cannot provide serial: the targets file does not say how"
    ):
        target.plug(DiskSpec(serial="x"))
    disk = target.plug(DiskSpec(read_only=True))
    with pytest.raises(LacksError, match="names no `resize` command"):
        disk.resize(128)


def test_a_daemon_that_ends_with_its_connection_is_started_for_qemu(make: Make) -> None:
    target = make(started(more="per = 'connection'", program=f"{MODEL} --once"))
    for _ in range(2):
        disk = Disk(target.plug(DiskSpec()))
        disk.start()
        read(disk)
        disk.unplug()


def test_the_end_of_the_daemon_is_noticed(make: Make) -> None:
    target = make(started())
    disk = Disk(target.plug(DiskSpec()))
    daemon = disk.processes()[1]
    os.kill(daemon.pid, 9)
    daemon.kill()  # waits for the end

    with pytest.raises(TargetError, match="was ended by SIGKILL"):
        target.check()
    with pytest.raises(TargetError, match="was ended by SIGKILL"):
        disk.unplug()
    disk = Disk(target.plug(DiskSpec()))
    disk.start()
    read(disk)


def test_a_daemon_that_runs_already_is_put_behind_qemu(make: Make, export: Export) -> None:
    file = export.backing.path
    device = f"device = 'vhost-user:{export.path}'\nthrough = 'qtest-vhost-user'\n"
    with pytest.raises(TargetError, match="allow it with destructive = true"):
        make(device)

    target = make(f"{device}backing = '{file}'", destructive=True)
    disk = Disk(target.plug(DiskSpec()))
    disk.backing.write(7, b"\x44" * 512)
    disk.start()
    assert (read(disk, 7), disk.spec.capacity) == (b"\x44" * 512, 64)
    assert not target.made_to_order
    disk.unplug()

    target = make(f"{device}destructive = true")
    disk = Disk(target.plug(DiskSpec()))
    disk.start()
    assert disk.backing.read(7, 1) == b"\x44" * 512
    assert disk.through_device
