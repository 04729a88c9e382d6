"""What a test proves, and how a run says so: markers, levels, deviations, reports."""

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
