"""One test for each planted defect: the suite fails in a test of its statement.

With a harmless defect, which breaks no statement, no result of the suite changes.

This takes minutes and runs on request only (`tox -e proof`). VBLK_PROOF names the directory for
the results, which `python -m harness.proof.proof` reads.
VBLK_PROOF_SHARE, like "2/5", selects a share of the defects.
"""

import os
from pathlib import Path

import pytest

import conformance
from harness.defects.catalogue import defects
from harness.proof.proof import save
from harness.proof.prover import Prover

SUITE = Path(conformance.__file__).parent
KEPT = os.environ.get("VBLK_PROOF", "")


def share():
    """Return the defects to try: none without VBLK_PROOF."""
    if not KEPT:
        return []
    number, _, of = os.environ.get("VBLK_PROOF_SHARE", "1/1").partition("/")
    return list(defects())[int(number) - 1 :: int(of)]


@pytest.fixture(scope="module")
def prover():
    found = Prover(SUITE)
    yield found
    found.close()


@pytest.mark.parametrize("name", share())
def test_the_suite_judges(name, prover):
    defect = defects()[name]
    proof = prover.prove(defect)
    save(Path(KEPT), proof)

    if not defect.statements:
        assert proof.red == (), "harmless, and yet"
        return
    assert proof.keyed, f"{proof.ran} tests ran, and red are only: {proof.red}"
