"""The rules: one for each statement that a stream of events can decide."""

from harness.witness.rules import block, features, packed, pci, split, status
from harness.witness.rules.rule import RULES, Rule

__all__ = ["RULES", "Rule", "block", "features", "packed", "pci", "split", "status"]
