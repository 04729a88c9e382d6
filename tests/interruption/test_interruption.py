"""Runs that are interrupted at random moments: a share for CI of what `storm.py` does at length."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from storm import SCENARIOS, Scenario, interrupt


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_run_that_is_interrupted_ends_with_its_reports_and_leaves_nothing(
    scenario: Scenario,
) -> None:
    outcome = interrupt(replace(scenario, span=scenario.span / 3), random.Random())

    assert outcome.troubles == [], f"{outcome.signals}\n{outcome.output[-3000:]}"
