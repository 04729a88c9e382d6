"""The statements that bind drivers as parameters of tests, and the verdict on one of them."""

from __future__ import annotations

from typing import Any

import pytest

from harness.drivers.base import Scenario
from harness.drivers.scenarios import SCENARIOS
from harness.drivers.watching import WatchedDriver
from harness.virtio.catalogue import driver_clauses
from harness.witness.judge import Fate
from harness.witness.rules import RULES


def statements_of(*sections: str) -> list[Any]:
    """Return the statements with a rule in some sections and those below, as parameters."""
    below = tuple(f"{section}{end}" for section in sections for end in ".-")
    return [
        pytest.param(name, marks=pytest.mark.clause(name), id=name)
        for name in driver_clauses()
        if name in RULES and name.startswith(below)
    ]


def without_statements() -> list[Any]:
    """Return each scenario that is about no statement, as parameters."""
    return [
        pytest.param(scenario, id=scenario.name) for scenario in SCENARIOS if not scenario.about
    ]


def with_statements() -> list[Any]:
    """Return each scenario with each statement that it is about, as parameters."""
    return [
        pytest.param(scenario, marks=pytest.mark.clause(name), id=f"{scenario.name}-{name}")
        for scenario in SCENARIOS
        for name in scenario.about
    ]


def check_statement(driver: WatchedDriver, statement: str) -> None:
    """Assert that a driver breaks a statement in no scenario. Skip if none exercises it."""
    verdict = driver.verdict(statement)
    if verdict.fate is Fate.NOT_EXERCISED:
        pytest.skip(verdict.reason)
    assert verdict.fate is Fate.KEPT, "\n".join(verdict.evidence)


def check_goes_on(driver: WatchedDriver, scenario: Scenario) -> None:
    """Assert that a driver does its work in a scenario, with the right data."""
    watched = driver.watch(scenario)
    assert not watched.trouble, watched.trouble
