"""A driver of an illegal device neither crashes nor hangs, and takes no wrong data for right."""

from __future__ import annotations

from typing import Any

import pytest

from harness.drivers.base import Scenario
from harness.drivers.hardening import ILLEGAL_DEVICES
from harness.drivers.watching import WatchedDriver
from harness.report import hardening
from harness.report.hardened import DRIVER_EVIDENCE, DRIVER_VERDICT


def illegal_devices() -> list[Any]:
    """Return the illegal devices as parameters."""
    return [
        pytest.param(case, marks=hardening(case.section, case.text), id=case.name)
        for case in ILLEGAL_DEVICES
    ]


@pytest.mark.parametrize("case", illegal_devices())
def test_a_driver_of_an_illegal_device(
    driver: WatchedDriver, case: Scenario, request: pytest.FixtureRequest
) -> None:
    watched = driver.watch(case)
    if not watched.met:
        pytest.skip("the driver gave the device no occasion for it")
    request.node.user_properties += [
        (DRIVER_VERDICT, str(watched.fate)),
        (DRIVER_EVIDENCE, watched.trouble),
    ]
    assert watched.fate.tolerable, f"{watched.fate}: {watched.trouble}"
