"""Whims of the model: found by name, put in by name, and they add up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec
from harness.model.whims import MODEL, OWNED, PCI, WHIMS, Whim
from harness.proof.shapes import (
    PAIRS,
    SHARE,
    Found,
    Odd,
    Shape,
    all_shapes,
    audited,
    compatible,
    pairs,
    parse,
    recorded,
    wrong,
)
from harness.targets import TargetError
from harness.targets.disk import Disk
from harness.targets.model import Model
from harness.targets.owned_model import OwnedModel
from harness.targets.registry import maker
from harness.virtio.blk import Status
from harness.virtio.catalogue import ADVISORY, lookup
from harness.virtio.features import Feature


@pytest.fixture
def new_disk() -> Iterator[Callable[..., Disk]]:
    """Make started disks of models with these whims."""
    with ExitStack() as stack:

        def make(*whims: str, way: type[Model | OwnedModel] = Model) -> Disk:
            target = way(whims=whims)
            stack.callback(target.close)
            disk = Disk(target.plug(DiskSpec()))
            disk.start()
            return disk

        yield make


def test_whims_change_the_device_and_add_up(new_disk: Callable[..., Disk]) -> None:
    disks = [new_disk(), new_disk("used-length-0"), new_disk("used-length-0", "no-flush")]

    lengths = [disk.read(0).used_len for disk in disks]
    flushes = [bool(disk.driver.offered() & Feature.BLK_FLUSH.mask) for disk in disks]

    assert lengths == [513, 0, 0]
    assert flushes == [True, True, False]


def test_an_owned_disk_is_as_it_is(new_disk: Callable[..., Disk]) -> None:
    disk = new_disk("capacity-740", way=OwnedModel)

    assert disk.driver.config().capacity == 740
    completion = disk.read(0, 8)
    assert completion.status is Status.OK
    assert completion.data == disk.backing.read(0, 8) != bytes(4096)


@pytest.mark.parametrize("whim", WHIMS.values(), ids=lambda whim: whim.name)
def test_a_whim_breaks_no_must(whim: Whim) -> None:
    assert whim.text and not whim.text.endswith(".")
    assert whim.ways in ((MODEL, OWNED), (OWNED,), (PCI,))
    assert all(lookup(name).level in ADVISORY for name in whim.breaks)


def test_there_are_enough_shapes() -> None:
    assert len(WHIMS) >= 60
    sample = pairs()
    assert len(set(sample)) == PAIRS == 60
    assert sample == pairs(), "the sample is the same every time"
    assert all(compatible(pair, OWNED) for pair in sample)
    assert {shape.whims for shape in all_shapes()} >= {*sample, *((name,) for name in WHIMS)}


def test_the_share_and_the_audit_name_shapes() -> None:
    assert all(parse(text) for text in SHARE)
    assert all(compatible(shape.whims, shape.way) for shape in audited())


def test_a_result_is_read_as_it_was_recorded(tmp_path: Path) -> None:
    shape = Shape(("no-flush",), OWNED)
    failure = Odd("test_x.py::test_y", "broken", ("5.2.5.2-D-02",), "1 == 2")
    found = Found(shape, 3, 1, 0, 0, 2, (failure,), 1.5)
    file = tmp_path / "results.jsonl"
    assert recorded(file) == {}

    file.write_text(json.dumps(asdict(found)) + "\n")

    assert recorded(file) == {shape: found}
    assert wrong([found]) == ["owned-model+whim:no-flush: broken: test_x.py::test_y: 1 == 2"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model+whim:no-such", "no whim 'no-such'"),
        ("model+whim:capacity-16", "owned-model can"),
        ("owned-model+whim:capacity-16+whim:host-aware", "exclude each other"),
        ("qtest-pci+whim:no-flush", "qtest-pci cannot have the whim"),
    ],
)
def test_a_whim_that_cannot_be_is_one_line(name: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        maker(name, {})
