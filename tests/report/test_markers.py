"""Statements of tests: written as properties, and read back."""

from __future__ import annotations

import pytest

from harness.report import Statement


@pytest.mark.parametrize(
    "statement",
    [
        Statement(("2.4.1-D-02", "5.2.6-P-07"), "described"),
        Statement((), "hardening", (("2.7.5", "a loop: in two"), ("2.6", "no queue"))),
    ],
    ids=["catalogue", "hardening"],
)
def test_properties_are_read_back(statement: Statement) -> None:
    others = [("target", "qtest-pci"), ("hardening-verdict", "survived")]

    assert Statement.parse([*others, *statement.properties()]) == statement


def test_other_properties_are_no_statement() -> None:
    assert Statement.parse([("target", "qtest-pci"), ("clause-like", "2.4.1-D-02")]) is None


def test_sections_are_in_the_order_of_the_markers() -> None:
    statement = Statement(("5.2.6-P-07", "2.4.1-D-02", "5.2.6-P-01"), "described")

    assert statement.sections == ("5.2.6", "2.4.1")
