"""Statements on the initialization and operation of a device (virtio 3)."""

from __future__ import annotations

import pytest

from conformance.drivers.statements import check_statement, statements_of
from harness.drivers.watching import WatchedDriver


@pytest.mark.parametrize("statement", statements_of("3"))
def test_operation(driver: WatchedDriver, statement: str) -> None:
    check_statement(driver, statement)
