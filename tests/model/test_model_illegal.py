"""Illegal behaviour of the model, as our own driver sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec
from harness.driver.errors import DriverError
from harness.drivers.hardening import ILLEGAL_DEVICES, PLANTED, PLANTED_PACKED, RANDOM
from harness.model.defects import DEFECTS
from harness.model.illegal import FIRST, ILLEGAL
from harness.targets.disk import Disk
from harness.targets.model import Model
from harness.virtio.features import Feature, mask
from harness.witness.events import Illegal, read


@contextmanager
def disk_of(name: str, observe: Path | None = None, **fields: object) -> Iterator[Disk]:
    """Plug a disk of a model that behaves like this."""
    target = Model(name="model-pci", illegal=(name,), observe=observe)
    try:
        yield Disk(target.plug(DiskSpec(capacity=64, **fields)))  # type: ignore[arg-type]
    finally:
        target.close()


@pytest.mark.parametrize("packed", [False, True])
def test_the_third_buffer_is_used_in_an_illegal_way(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "events.jsonl"
    ring = [Feature.RING_PACKED] if packed else []
    with disk_of("used-length-beyond-the-buffer", path) as disk:
        disk.start(mask(Feature.VERSION_1, *ring))
        lengths = [disk.read(0).used_len for _ in range(FIRST)]

    assert lengths == [513, 513, 0xFFFF_FFFF]
    assert [event.name for event in read(path) if isinstance(event, Illegal)] == [
        "used-length-beyond-the-buffer"
    ]


def test_a_field_has_an_impossible_value() -> None:
    with disk_of("blk-size-of-7-bytes") as disk:
        disk.start()
        assert disk.driver.config().blk_size == 7


def test_a_register_has_an_impossible_value() -> None:
    with disk_of("notify-offset-beyond-the-bar") as disk:
        assert disk.driver.register_read("queue_notify_off") == 0xFFFF


def test_a_reset_that_never_ends_is_noticed() -> None:
    with disk_of("reset-never-ends") as disk, pytest.raises(DriverError):
        disk.driver.reset(timeout=0.2)


def test_an_unknown_name_is_refused() -> None:
    from harness.model.main import main

    with pytest.raises(SystemExit):
        main(["--control", "0", "--illegal", "no-such"])


def test_the_suite_has_each_behaviour_and_names_known_ones() -> None:
    names = {name for case in ILLEGAL_DEVICES for name in case.illegal}

    assert names >= {name for name in ILLEGAL if not name.startswith("random-")}
    assert set(RANDOM) <= names
    assert {*PLANTED, *PLANTED_PACKED} <= set(DEFECTS)
    assert len({case.name for case in ILLEGAL_DEVICES}) == len(ILLEGAL_DEVICES)
