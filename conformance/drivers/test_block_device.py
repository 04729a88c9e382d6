"""Statements on the block device and the reserved feature bits (virtio 5.2, 6)."""

from __future__ import annotations

import pytest

from conformance.drivers.statements import check_statement, statements_of
from harness.drivers.watching import WatchedDriver


@pytest.mark.parametrize("statement", statements_of("5.2"))
def test_block_device(driver: WatchedDriver, statement: str) -> None:
    check_statement(driver, statement)


@pytest.mark.parametrize("statement", statements_of("6"))
def test_reserved_features(driver: WatchedDriver, statement: str) -> None:
    check_statement(driver, statement)
