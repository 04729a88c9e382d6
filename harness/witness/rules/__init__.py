"""The rules: one for each statement that a stream of events can decide."""

from harness.witness.rules import (
    block,
    buffers,
    capabilities,
    config,
    features,
    legacy,
    mmio,
    notifications,
    packed,
    pci,
    split,
    status,
)
from harness.witness.rules.rule import RULES, Rule

__all__ = [
    "RULES",
    "Rule",
    "block",
    "buffers",
    "capabilities",
    "config",
    "features",
    "legacy",
    "mmio",
    "notifications",
    "packed",
    "pci",
    "split",
    "status",
]
