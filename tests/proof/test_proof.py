"""A test per planted defect: the suite, run on it, fails in a test keyed to its statement.

A harmless one, which breaks no statement, must leave the whole suite as it is.

Minutes, so only where they are asked for (`tox -e proof`): VBLK_PROOF names the
directory that keeps what was found, for `python -m harness.proof.proof`.
VBLK_PROOF_SHARE, like "2/5", takes a share of the defects.
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
    """The defects to try: none, which is one skip, unless they are asked for."""
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
