"""A driver works in each scenario: its data is right, and it does not hang."""

from __future__ import annotations

import pytest

from conformance.drivers.statements import check_goes_on, with_statements, without_statements
from harness.drivers.base import Scenario
from harness.drivers.watching import WatchedDriver


@pytest.mark.parametrize("scenario", without_statements())
def test_the_driver_goes_on(driver: WatchedDriver, scenario: Scenario) -> None:
    check_goes_on(driver, scenario)


@pytest.mark.parametrize("scenario", with_statements())
def test_the_driver_goes_on_as_the_statement_demands(
    driver: WatchedDriver, scenario: Scenario
) -> None:
    check_goes_on(driver, scenario)
