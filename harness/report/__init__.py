"""Markers for the statements of tests, judgement of outcomes, and reports."""

from harness.report.markers import (
    Statement,
    clause,
    described,
    hardening,
    on,
    reads_only,
    statement_of,
)

__all__ = [
    "Statement",
    "clause",
    "described",
    "hardening",
    "on",
    "reads_only",
    "statement_of",
]
