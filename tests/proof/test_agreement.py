"""Comparison of the verdicts of the ways to the model device."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.proof import agreement
from harness.proof.agreement import TARGETS, Difference, compared, main, page
from harness.report.results import Column, Result, Results, ResultsError, Run, Test, Verdict, dumped

KEPT = Result(Verdict.KEPT)
NO_BUS = Result(Verdict.SKIPPED, reason="model is not pci")
KNOWN = {"tests": {}, "model": {"model is not .*": "It has no bus."}}


def results(**tests: tuple[Result, ...]) -> Results:
    """Return results of tests in a file `test_a.py`; a target without a result did not run one."""
    run = Run("2026-01-01T00:00:00", 1.0, True, "", "")
    columns = [Column(target, facts={"qemu": "QEMU emulator version 11.1"}) for target in TARGETS]
    found = {}
    for name, verdicts in tests.items():
        by_target = dict(zip(TARGETS, verdicts, strict=False))
        found[name] = Test(f"test_a.py::{name}", "test_a.py", 1, [], results=by_target)
    return Results([run], columns, {}, {test.id: test for test in found.values()})


def test_a_skip_with_a_reason_explains_a_difference() -> None:
    found = compared(
        results(test_all=(KEPT,) * 3, test_none=(NO_BUS,) * 3, test_pci=(NO_BUS, KEPT, KEPT)),
        KNOWN,
    )

    verdicts = Verdict.SKIPPED, Verdict.KEPT, Verdict.KEPT
    difference = Difference(verdicts, ("model is not pci",), ("It has no bus.",))
    assert found.alike == {Verdict.KEPT: 1, Verdict.SKIPPED: 1}
    assert found.different == {difference: ["test_a.py::test_pci"]}
    assert found.used == {("model", "model is not .*")}
    assert found.incomplete == 0


@pytest.mark.parametrize(
    "verdicts",
    [
        (Result(Verdict.SKIPPED, reason="tired"), KEPT, KEPT),
        (Result(Verdict.BROKEN), KEPT, KEPT),
        (NO_BUS, KEPT, Result(Verdict.BROKEN)),
    ],
    ids=["unknown-reason", "broken", "broken-and-skipped"],
)
def test_any_other_difference_is_unexplained(verdicts: tuple[Result, ...]) -> None:
    found = compared(results(test_it=verdicts), KNOWN)

    assert [difference.why for difference in found.different] == [()]


def test_a_test_without_a_result_somewhere_is_not_compared() -> None:
    found = compared(results(test_it=(NO_BUS, KEPT)), KNOWN)

    assert (found.incomplete, found.differing, found.alike.total()) == (1, 0, 0)


def test_a_reason_for_a_test_explains_any_difference() -> None:
    known = {"tests": {"test_a.py::test_it": "QEMU sees it."}}

    found = compared(results(test_it=(KEPT, KEPT, Result(Verdict.BROKEN))), known)

    assert [difference.why for difference in found.different] == [("QEMU sees it.",)]
    assert found.used == {("tests", "test_a.py::test_it")}


def test_one_target_alone_is_not_compared() -> None:
    found = results(test_it=(KEPT,) * 3)
    del found.columns[1:]

    with pytest.raises(ResultsError, match="results of two of model, model-pci"):
        compared(found, KNOWN)


def test_the_page_has_a_row_for_each_reason() -> None:
    found = results(test_pci=(NO_BUS, KEPT, KEPT), test_too=(NO_BUS, KEPT, KEPT))

    text = page(compared(found, KNOWN))

    assert "| skipped | kept | kept | 2 | model is not pci | It has no bus. |" in text
    assert "Of 2 tests that were run on `model`" in text
    assert "`guest-model-pci` with QEMU emulator version 11.1." in text


def test_the_command_fails_for_a_difference_without_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agreement, "reasons", lambda: KNOWN)
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(dumped(results(test_pci=(NO_BUS, KEPT, KEPT))))
    bad.write_text(dumped(results(test_it=(Result(Verdict.BROKEN), KEPT, KEPT))))

    assert main([str(good), "--write", str(tmp_path / "page.md")]) == 0
    assert main([str(bad)]) == 1

    assert "no reason on record" not in (tmp_path / "page.md").read_text()
    out = capsys.readouterr().out
    assert "1 tests, 1 differ, 1 without a reason" in out
    assert "nothing differs for this reason: model, 'model is not .*'" in out
