"""The catalogue of statements; the suite and the deviations use only its entries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.defects.catalogue import defects
from harness.report.deviations import load
from harness.targets.backing_sides import qemu_parts
from harness.virtio.catalogue import VHOST_USER, UnknownClauseError, clauses, lookup, weakest

ROOT = Path(__file__).parent.parent
SUITE = ROOT / "conformance"
SUITES = ["conformance", "conformance/hardening", "conformance/vhost_user"]


def test_ids_say_their_section() -> None:
    for clause in clauses().values():
        assert re.fullmatch(r"[0-9.]+-[DRLTP]-\d\d[abc]?|VU(-[a-z]+)+-\d\d", clause.id)
        assert clause.id.startswith(f"{clause.section}-")
        assert clause.text.endswith(".")
        assert ("-P-" in clause.id) == (clause.level == "described")
        assert (clause.section == VHOST_USER) == (clause.level == "protocol") == bool(clause.place)


def test_an_unknown_id_is_named() -> None:
    with pytest.raises(UnknownClauseError, match=r"9\.9\.9-D-01"):
        lookup("9.9.9-D-01")


def test_defects_name_statements_of_the_catalogue() -> None:
    named = {name for defect in defects().values() for name in defect.statements}

    assert named - set(clauses()) == set()


def test_the_weakest_level_is_found() -> None:
    assert weakest(["MUST", "SHOULD", "MUST NOT"]) == "SHOULD"
    assert weakest(["MUST", "described"]) == "described"
    assert weakest(["described", "SHOULD NOT"]) == "SHOULD NOT"
    assert weakest(["MUST NOT"]) == "MUST NOT"


def test_the_catalogue_is_in_the_order_of_the_specification() -> None:
    sections = list(dict.fromkeys(clause.section for clause in clauses().values()))

    assert sections.index("2.7.8.2") < sections.index("2.10.2")
    assert sections[0] == "2.1"


@pytest.mark.parametrize("suite", SUITES)
def test_every_recorded_deviation_is_of_tests_that_exist(suite: str) -> None:
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", suite],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.splitlines()
    nodes = [node.removeprefix(f"{suite}/") for node in collected if "::" in node]
    assert nodes

    for path in (ROOT / suite / "deviations").glob("*.toml"):
        for deviation in load(path):
            for pattern in deviation.tests:
                changed = type(deviation)(**{**vars(deviation), "tests": (pattern,)})
                assert any(changed.covers(node) for node in nodes), f"{path.name}: {pattern}"


@pytest.mark.parametrize("folder", SUITES[:2])
def test_every_record_of_a_part_of_qemu_names_a_part_that_a_target_has(folder: str) -> None:
    parts = qemu_parts("pc", False) | qemu_parts("pc", True) | qemu_parts("microvm", False)
    recorded = {record.part for record in load(ROOT / folder / "deviations" / "qemu.toml")}

    assert "virtio-blk" in recorded
    assert recorded - parts <= {""}
