"""Properties of a disk that are read off its device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from harness.diskspec import DiskSpec
from harness.targets import LacksError
from harness.targets.model import ModelProcess
from harness.targets.vhost_user import VhostUserSocket

Reach = Callable[..., VhostUserSocket]


@pytest.fixture
def reach() -> Iterator[Reach]:
    """Serve a disk of the model, and return a target that takes it for somebody else's."""
    with ExitStack() as stack:

        def make(**fields: Any) -> VhostUserSocket:
            process = ModelProcess()
            stack.callback(process.stop)
            _, link, _ = process.add(DiskSpec(**fields))
            target = VhostUserSocket(str(link), destructive=True)
            stack.callback(target.close)
            return target

        yield make


@pytest.mark.parametrize(
    "wanted",
    [
        {"queues": 2},
        {"queues": 3},
        {"logical_block_size": 4096},
        {"physical_block_size": 8192},
        {"geometry": (130, 12, 10)},
        {"capacity": 4096},
        {"packed": True},
        {"opt_io_size": 65536},
    ],
    ids=lambda wanted: next(iter(wanted)),
)
def test_a_disk_that_is_as_wanted_is_taken(reach: Reach, wanted: dict[str, Any]) -> None:
    target = reach(
        queues=3,
        logical_block_size=4096,
        physical_block_size=8192,
        geometry=(130, 12, 10),
        capacity=4096,
        packed=True,
        opt_io_size=65536,
    )

    disk = target.plug(DiskSpec(**wanted))

    assert (disk.spec.queues, disk.spec.capacity) == (3, 4096)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"queues": 4}, "the device has 3 queues, and the test needs 4"),
        ({"read_only": True}, "the device has read_only false, and the test needs true"),
        ({"capacity": 5}, "the device has capacity 4096, and the test needs 5"),
        ({"secure_erase": True}, "the device does not offer BLK_SECURE_ERASE"),
        ({"iops": 5}, "cannot provide iops: the targets file does not say how"),
        ({"serial": "x"}, "cannot provide serial: the targets file does not say how"),
        (
            {"geometry": (1, 2, 3)},
            "the device has geometry (4, 16, 63), and the test needs (1, 2, 3)",
        ),
    ],
    ids=lambda wanted: next(iter(wanted)) if isinstance(wanted, dict) else "",
)
def test_the_reason_names_what_the_device_has(
    reach: Reach, wanted: dict[str, Any], reason: str
) -> None:
    target = reach(queues=3, capacity=4096)

    with pytest.raises(LacksError) as lacking:
        target.plug(DiskSpec(**wanted))

    assert str(lacking.value) == reason


def test_a_read_only_device_is_not_for_tests_that_write(reach: Reach) -> None:
    target = reach(read_only=True)

    with pytest.raises(LacksError, match="the device is read-only, and the test writes"):
        target.plug(DiskSpec())
    assert target.plug(DiskSpec(read_only=True)).spec.read_only


def test_a_resize_needs_a_command(reach: Reach) -> None:
    disk = reach().plug(DiskSpec())

    assert not disk.resizable
    with pytest.raises(LacksError, match="the targets file names no `resize` command"):
        disk.resize(1)


def test_a_file_of_targets_is_for_random_operations_too(tmp_path: Path) -> None:
    from harness.cli.main import main

    process = ModelProcess()
    try:
        _, link, _ = process.add(DiskSpec(capacity=4096, queues=1))
        file = tmp_path / "mine.toml"
        file.write_text(f'[target.mine]\ndevice = "vhost-user:{link}"\ndestructive = true\n')

        words = ["random", "--targets", str(file), "--target", "mine", "--seed", "1"]
        assert main([*words, "--rounds", "1", "--artifacts", str(tmp_path)]) == 0
    finally:
        process.stop()
