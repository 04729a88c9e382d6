"""The catalogue of the statements that bind drivers."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from harness.virtio import catalogue
from harness.virtio.catalogue import SEEN, clauses, driver_clauses
from harness.witness.rules import RULES


def test_there_are_204_statements_with_id_level_and_party() -> None:
    """The numbers are those of virtio 1.4 without administration virtqueues."""
    found = list(driver_clauses().values())

    assert len(found) == 204
    assert Counter(clause.party for clause in found) == {
        "driver": 179,
        "transitional-driver": 17,
        "transitional-both": 6,
        "nontransitional-driver": 2,
    }
    assert Counter(clause.level for clause in found) == {
        "MUST": 111,
        "MUST NOT": 63,
        "SHOULD NOT": 10,
        "SHOULD": 20,
    }
    for clause in found:
        assert re.fullmatch(r"[0-9.]+-[DRL]-\d\d[abc]?", clause.id)
        assert clause.text.endswith("."), clause.id


def test_the_classes_are_those_of_the_observability_table() -> None:
    assert set(SEEN) == set("ABCDEXN")
    assert Counter(clause.seen for clause in driver_clauses().values()) == {
        "A": 53,
        "B": 11,
        "C": 67,
        "D": 47,
        "E": 10,
        "N": 13,
        "X": 3,
    }


def test_each_statement_has_a_rule_or_else_a_reason() -> None:
    for clause in driver_clauses().values():
        assert bool(clause.untested) == (clause.id not in RULES), clause.id
    hidden = {clause.id for clause in driver_clauses().values() if clause.seen == "N"}
    assert not hidden & set(RULES)


def test_few_statements_are_in_the_catalogue_of_devices_too() -> None:
    """The statements in both catalogues are those that bind transitional drivers and devices."""
    both = set(driver_clauses()) & set(clauses())

    assert both == {"2.7.2-L-02", "2.7.3-L-01", "5.2.4.1-L-01", "5.2.6.3-L-01", "5.2.6.3-L-03"}


def test_statements_of_administration_virtqueues_are_left_out() -> None:
    assert not [name for name in driver_clauses() if name.startswith(("2.12", "2.13"))]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('party = "driver"\nlevel = "MUST"\ntext = "x."', "other keys than"),
        ('party = "driver"\nlevel = "WILL"\ntext = "x."\nseen = "A"', "has no level 'WILL'"),
        ('party = "driver"\nlevel = "MUST"\ntext = "x."\nseen = "Z"', "has no class 'Z'"),
    ],
)
def test_a_bad_entry_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, message: str
) -> None:
    (tmp_path / "2.toml").write_text(f'["2.1.1-R-01"]\n{entry}\n')
    monkeypatch.setattr(catalogue, "DRIVER_CATALOGUE", tmp_path)
    driver_clauses.cache_clear()
    try:
        with pytest.raises(ValueError, match=message):
            driver_clauses()
    finally:
        driver_clauses.cache_clear()
