"""Statements on the device status, features, configuration and virtqueues (virtio 2)."""

from __future__ import annotations

import pytest

from conformance.drivers.statements import check_statement, statements_of
from harness.drivers.watching import WatchedDriver


@pytest.mark.parametrize("statement", statements_of("2.1", "2.2", "2.3", "2.4", "2.5", "2.6"))
def test_device_parts(driver: WatchedDriver, statement: str) -> None:
    check_statement(driver, statement)


@pytest.mark.parametrize("statement", statements_of("2.7"))
def test_split_virtqueue(driver: WatchedDriver, statement: str) -> None:
    check_statement(driver, statement)


@pytest.mark.parametrize("statement", statements_of("2.8"))
def test_packed_virtqueue(driver: WatchedDriver, statement: str) -> None:
    check_statement(driver, statement)
