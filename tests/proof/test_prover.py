"""The process that runs the suite on one defect after the other, and its page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import conformance
from harness.defects.catalogue import defects
from harness.proof.proof import Proof, ProofError, page, save, saved
from harness.proof.prover import Prover, judged
from harness.report.results import Column, Result, Results, Run, Test, Verdict

SUITE = Path(conformance.__file__).parent
BLANKS = "id-padded-with-blanks"


@pytest.fixture(scope="module")
def prover() -> Iterator[Prover]:
    found = Prover(SUITE)
    yield found
    found.close()


def test_a_defect_fails_its_own_tests_and_does_not_affect_the_next_one(
    prover: Prover,
) -> None:
    first = prover.prove(defects()[BLANKS])
    second = prover.prove(defects()["id-repeated"])

    assert (
        first.keyed == first.red == ("test_requests.py::test_get_id_gives_the_id_padded_with_nul",)
    )
    assert second.keyed == second.red
    assert not set(first.keyed) & set(second.keyed)
    assert (first.elsewhere, second.elsewhere) == ((), ())
    assert first.others > 0


def test_a_process_that_is_gone_is_one_line() -> None:
    gone = Prover(SUITE)
    gone._server._process.kill()
    try:
        with pytest.raises(ProofError, match=BLANKS):
            gone.prove(defects()[BLANKS])
    finally:
        gone.close()


def found(**verdicts: Verdict) -> Results:
    tests = {
        f"conformance/test_a.py::{name}": Test(
            f"conformance/test_a.py::{name}",
            "conformance/test_a.py",
            1,
            [],
            results={"model": Result(verdict)},
        )
        for name, verdict in verdicts.items()
    }
    return Results([Run("", 0, True, "", "")], [Column("model")], {}, tests)


def test_only_what_is_broken_counts_but_elsewhere_trouble_does_too() -> None:
    results = found(
        own=Verdict.BROKEN,
        own_too=Verdict.ERROR,
        other=Verdict.BROKEN,
        odd=Verdict.ERROR,
        left_out=Verdict.SKIPPED,
        good=Verdict.KEPT,
    )
    own = {"conformance/test_a.py::own", "conformance/test_a.py::own_too"}

    proof = judged(defects()[BLANKS], results, own)

    assert proof.keyed == ("test_a.py::own",)
    assert proof.red == ("test_a.py::own", "test_a.py::other")
    assert proof.elsewhere == ("test_a.py::other", "test_a.py::odd")
    assert (proof.ran, proof.others) == (6, 3)


def test_the_page_counts_the_defects_that_are_red_nowhere_else(tmp_path: Path) -> None:
    for number, name in enumerate(defects()):
        red = ("test_a.py::test_it",)
        save(tmp_path, Proof(name, 5, 3, red, red, red if number < 4 else ()))
    harmless = sum(not defect.statements for defect in defects().values())
    alone = sum(bool(defect.statements) for defect in list(defects().values())[4:])

    text = page(saved(tmp_path), ["test_a.py::test_it", "test_a.py::test_nothing"], SUITE)

    assert f"**{alone} of {len(defects()) - harmless} defects" in text
    assert "- `test_a.py::test_nothing`: **no reason on record**" in text
    assert "- `test_a.py::test_it`" not in text
