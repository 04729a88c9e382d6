"""Statements on the transports (virtio 4)."""

from __future__ import annotations

import pytest

from conformance.drivers.statements import check_statement, statements_of
from harness.drivers.watching import WatchedDriver


@pytest.mark.parametrize("statement", statements_of("4"))
def test_transports(driver: WatchedDriver, statement: str) -> None:
    check_statement(driver, statement)
