"""Planted breaches of the reference driver, and the page that lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.proof.breaches import BREACHES, Breach
from harness.proof.witnessed import page, reasons, red, unproven
from harness.witness.rules import RULES

PAGE = Path(__file__).parents[2] / "docs" / "witness-proof.md"


@pytest.fixture(scope="module")
def found() -> dict[str, set[str]]:
    """Return the rules that turn red on each breach. All of them run once."""
    return red()


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.name)
def test_a_breach_turns_its_rules_red_and_no_other(
    breach: Breach, found: dict[str, set[str]]
) -> None:
    assert found[breach.name] == breach.rules


def test_every_rule_is_red_on_a_breach_or_says_why_not(found: dict[str, set[str]]) -> None:
    assert unproven(found) == []


def test_no_rule_that_is_red_says_that_it_cannot_be() -> None:
    proven = {name for breach in BREACHES for name in breach.rules}

    assert proven <= set(RULES)
    assert not proven & set(reasons())


def test_breaches_have_names_and_words_of_their_own() -> None:
    assert len({breach.name for breach in BREACHES}) == len(BREACHES)
    assert all(breach.text.endswith(".") for breach in BREACHES)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "python -m harness.proof.witnessed --write FILE"
