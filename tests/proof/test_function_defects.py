"""Statements of the PCI function and its administration have a defect in the model's function."""

from __future__ import annotations

import re

from harness.model.defects import DEFECTS
from harness.model.defects.registry import PCI_TARGETS
from harness.virtio.catalogue import clauses

SECTIONS = re.compile(r"(4\.1|2\.12|2\.13)(\.|$)")


def test_each_statement_that_can_be_broken_has_a_defect_in_the_function() -> None:
    of_the_function = (defect for defect in DEFECTS.values() if defect.target in PCI_TARGETS)
    planted = {name for defect in of_the_function for name in defect.statements}
    statements = [clause for clause in clauses().values() if SECTIONS.match(clause.section)]

    without = {clause.id: clause.untested for clause in statements if clause.id not in planted}

    assert len(statements) > 150
    assert [name for name, reason in without.items() if not reason] == []
