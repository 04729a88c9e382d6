"""Files of deviations: their contents, and the messages for a bad file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from harness.report.deviations import Deviation, DeviationFileError, load

GOOD = """
[[deviation]]
clause = "2.1.2-D-01"
tests = ["test_a.py::test_one[x]", "test_b.py::test_*"]
versions = ">=7.2, <9"
seen = "used index is \\\\d"
why = "because"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "qemu.toml"
    path.write_text(text)
    return path


def only(tmp_path: Path) -> Deviation:
    (deviation,) = load(written(tmp_path, GOOD))
    return deviation


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((7, 1, 9), False),
        ((7, 2, 0), True),
        ((7, 2, 22), True),
        ((8, 2, 1), True),
        ((9, 0, 0), False),
        ((10, 0, 2), False),
    ],
)
def test_versions_are_compared_by_number(
    tmp_path: Path, version: tuple[int, ...], affected: bool
) -> None:
    assert only(tmp_path).affects("qemu", version, "qtest-pci") is affected


def test_a_record_may_be_for_some_targets_only(tmp_path: Path) -> None:
    everywhere = only(tmp_path)
    some = replace(everywhere, targets=("*-pci*",))

    for target, affected in (("qtest-pci", True), ("guest-pci-q35", True), ("qtest-mmio", False)):
        assert everywhere.affects("qemu", (7, 2, 0), target)
        assert some.affects("qemu", (7, 2, 0), target) is affected
        assert some.affects("qemu", (7, 2, 0), "mine", alike=target) is affected


def test_a_record_may_be_for_all_targets_but_some(tmp_path: Path) -> None:
    other = replace(only(tmp_path), except_targets=("qtest-*",))
    some = replace(other, targets=("*-pci*",))

    for target, affected in (("guest-pci", True), ("vhost-user", True), ("qtest-pci", False)):
        assert other.affects("qemu", (7, 2, 0), target) is affected
        assert other.affects("qemu", (7, 2, 0), "mine", alike=target) is affected
    assert some.affects("qemu", (7, 2, 0), "guest-pci-q35")
    assert not some.affects("qemu", (7, 2, 0), "guest-mmio")
    assert not some.affects("qemu", (7, 2, 0), "qtest-pci")


def test_a_record_of_a_part_is_for_devices_that_have_the_part(tmp_path: Path) -> None:
    whole = only(tmp_path)
    part = replace(whole, part="virtio-blk")
    in_qemu, front_end = {"virtio-blk", "virtio-pci"}, {"vhost-user-blk-pci", "virtio-pci"}

    for parts, affected in ((in_qemu, True), (front_end, False), ((), True)):
        assert whole.affects("qemu", (7, 2, 0), "mine", parts)
        assert part.affects("qemu", (7, 2, 0), "mine", parts) is affected


def test_another_implementation_is_not_affected(tmp_path: Path) -> None:
    assert not only(tmp_path).affects("spdk", (7, 2, 0), "qtest-pci")


def test_brackets_are_parameters_and_stars_are_patterns(tmp_path: Path) -> None:
    deviation = only(tmp_path)

    assert deviation.covers("test_a.py::test_one[x]")
    assert not deviation.covers("test_a.py::test_onex")
    assert not deviation.covers("test_a.py::test_one[y]")
    assert deviation.covers("test_b.py::test_anything[1-2]")


def test_only_the_recorded_failure_is_explained(tmp_path: Path) -> None:
    deviation = only(tmp_path)

    assert deviation.explains("AssertionError: the used index is 1\nassert 1 == 0")
    assert not deviation.explains("the used index is wrong")


def test_no_file_is_no_deviation(tmp_path: Path) -> None:
    assert load(tmp_path / "none.toml") == ()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('clause = "2.1.2-D-01"', "", ":2: deviation[0]: needs clause"),
        ('clause = "2.1.2-D-01"', 'claus = "2.1.2-D-01"', ":3: deviation[0].claus: no such key"),
        ("[[deviation]]", '[[deviation]]\nimplementation = "x"', ":3: "),
        ("[[deviation]]", "x = 1\n[[deviation]]", ":2: x: only [[deviation]] tables"),
        ('">=7.2, <9"', '"7.2"', ":5: deviation[0].versions: expected comparisons"),
        ('">=7.2, <9"', f'">={"9" * 5000}"', ":5: deviation[0].versions: expected comparisons"),
        ('">=7.2, <9"', "7", ":5: deviation[0].versions: expected text in quotation marks"),
        ('"used index is', '"used (index is', ":6: deviation[0].seen: expected a regular"),
        ("[[deviation]]", "[[deviation]", ":2: "),
        ("[[deviation]]", '[[deviation]]\nsometimes = "often"', "expected true or false"),
        ("[[deviation]]", "deviation = 1\n[deviations]", "deviation: expected a list, not 1"),
        ("[[deviation]]", f"x = {'[' * 5000}", "nested too deeply"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    with pytest.raises(DeviationFileError) as refused:
        load(written(tmp_path, GOOD.replace(old, new)))

    assert complaint in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path))
    assert str(refused.value).isprintable()


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.toml")

    for name, words in {".": "is a directory", "fifo.toml": "is a FIFO"}.items():
        with pytest.raises(DeviationFileError, match=words):
            load(tmp_path / name)
