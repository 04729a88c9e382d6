"""Planted defects of the model: they are selected by name and can be combined."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from harness.diskspec import DiskSpec
from harness.model.defects import DEFECTS, Defect
from harness.model.whims import WHIMS
from harness.targets.disk import Disk
from harness.targets.model import Model
from harness.virtio.blk import Status
from harness.virtio.catalogue import clauses

pytest_plugins = ["pytester"]


@pytest.fixture
def new_disk() -> Iterator[Callable[..., Disk]]:
    """Factory of started disks of models with these defects."""
    with ExitStack() as stack:

        def make(*defects: str) -> Disk:
            target = Model(defects)
            stack.callback(target.close)
            disk = Disk(target.plug(DiskSpec(serial="healthy")))
            disk.start()
            return disk

        yield make


def test_a_defect_changes_one_behaviour_and_several_add_up(new_disk: Callable[..., Disk]) -> None:
    healthy = new_disk()
    first = new_disk("id-padded-with-blanks")
    both = new_disk("id-padded-with-blanks", "used-length-of-a-write-counts-its-data")

    ids = [disk.get_id().data for disk in (healthy, first, both)]
    lengths = [disk.write(0, bytes(512)).used_len for disk in (healthy, first, both)]

    assert ids == [b"healthy".ljust(20, pad) for pad in (b"\0", b" ", b" ")]
    assert lengths == [1, 1, 513]
    assert all(disk.read(0).status is Status.OK for disk in (healthy, first, both))


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=lambda defect: defect.name)
def test_a_defect_says_what_it_breaks(defect: Defect) -> None:
    assert bool(defect.statements) is not defect.text.startswith("harmless: ")
    unknown = [name for name in defect.statements if name not in clauses()]
    assert unknown == []
    assert defect.text and not defect.text.endswith(".")


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("id-padded-with-blanks", {"model", "model-pci", "model-pci-legacy", "guest-model-pci"}),
        ("no-window", {"model-pci", "model-pci-legacy", "guest-model-pci"}),
        ("reply-without-its-flag", {"model"}),
    ],
)
def test_a_defect_is_for_the_ways_that_reach_it(name: str, targets: set[str]) -> None:
    known = {"model", "model-pci", "model-pci-legacy", "guest-model-pci", "qtest-pci"}

    assert {target for target in known if DEFECTS[name].can_be_on(target)} == targets


CHANGES = [
    *((defect.name, defect.method, defect.change) for defect in DEFECTS.values()),
    *((whim.name, method, change) for whim in WHIMS.values() for method, change in whim.parts),
]


@pytest.mark.parametrize(("name", "method", "change"), CHANGES, ids=[it[0] for it in CHANGES])
def test_a_change_takes_what_the_method_takes(
    name: str, method: Callable[..., Any], change: Callable[..., Any]
) -> None:
    parameters = inspect.signature(method).parameters.values()
    required = [it for it in parameters if it.default is inspect.Parameter.empty]

    for taken in (required, list(parameters)):
        by_place = inspect.signature(change).bind_partial("the original", *taken[:2])
        by_name = {it.name for it in taken[2:]} - by_place.arguments.keys()
        try:
            inspect.signature(change).bind("the original", *taken)
        except TypeError:
            inspect.signature(change).bind(*by_place.args, **dict.fromkeys(by_name))


def test_an_unknown_defect_is_one_line(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(
        "--vblk-target", "model", "--vblk-defect", "no-such-thing"
    )
    assert result.ret != 0
    errors = [line for line in result.errlines if "no-such-thing" in line]
    assert errors == ["ERROR: unknown defect 'no-such-thing'; --list-defects prints them all"]
