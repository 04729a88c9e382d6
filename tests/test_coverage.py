"""Coverage: each testable statement has a test or a reason, and the tables are current."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import main
from harness.report import coverage
from harness.report.results import Column, Result, Results, Row, Run, Test, Verdict
from harness.virtio import catalogue
from harness.virtio.catalogue import clauses
from harness.virtio.sections import section_url

ROOT = Path(__file__).parent.parent


def test_every_testable_statement_is_in_the_catalogue() -> None:
    assert set(catalogue.testable()) - set(clauses()) == set()
    assert set(catalogue.testable().values()) == {"blackbox", "host"}


def test_every_statement_has_either_a_test_or_a_reason_for_none() -> None:
    bound = coverage.Bound.by(ROOT / "conformance")

    for name, clause in clauses().items():
        assert (name in bound.clauses) != bool(clause.untested), name


def test_the_tables_are_current() -> None:
    assert coverage.stale(ROOT) == [], f"{coverage.MAKE} makes them"


def test_what_is_named_in_the_suite_is_found_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        'raise SystemExit\n@clause("2.4.1-D-01", "2.4.1-D-02")\n@described("2.4-P-01")\n'
        "def test_it(plug): pass\n"
    )

    bound = coverage.Bound.by(tmp_path)

    assert bound.clauses == {"2.4.1-D-01", "2.4.1-D-02", "2.4-P-01"}
    assert coverage.group("2.4", bound) == coverage.Group("2.4", 2, 2, 0, 1)
    assert coverage.group("2.4", bound, below=False) == coverage.Group("2.4", 0, 0, 0, 1)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an empty suite and documents with empty tables."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "conformance").mkdir()
    for name in (coverage.PAGE, coverage.README):
        (tmp_path / name).write_text(
            "".join(
                f"<!-- {part}: made by {coverage.MAKE} -->\n<!-- {part}: end -->\n"
                for part in (
                    *("chapters", "statements", "protocol", "reasons", "totals"),
                    *("verdicts", "runs"),
                )
            )
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(version: str) -> Results:
    """Return results of a run in which one statement is kept and one is broken."""
    column = Column("qtest-pci", {"qemu": version})
    kept, broken = (Row(name, "2.4.1", "MUST", "device", ".") for name in ("one", "two"))
    prose = Row("2.4-P-01", "2.4", "described", "device", "works")
    run = Run("2026-01-01T00:00:00", 1.0, True, "virtio 1.4", version)
    good, bad = Result(Verdict.KEPT, 1.6), Result(Verdict.BROKEN, 2)
    return Results(
        [run],
        [column],
        {row.id: row for row in (kept, broken, prose)},
        {
            "a": Test("a", "a.py", 1, ["one", prose.id], "", {column.id: good}),
            "b": Test("b", "b.py", 1, ["two"], "", {column.id: bad}),
        },
    )


def test_the_verdicts_of_runs_are_kept_and_shown(checkout: Path) -> None:
    coverage.keep(checkout, [results("7.2.22"), results("10.0.2")])
    assert main(["matrix", "counts", "--check"]) == 1
    assert main(["matrix", "counts"]) == 0

    page = (checkout / coverage.PAGE).read_text()
    kept = json.loads((checkout / coverage.SUMMARY).read_text())
    assert [entry["sections"] for entry in kept] == [{"2.4.1": {"broken": 1, "kept": 1}}] * 2
    assert "| `qtest-pci` | qemu 10.0.2 | 1 | 0 | 0 | 0 | 1 | 0 |" in page
    assert "### qemu 7.2.22\n\n| section | `qtest-pci` |" in page
    assert f"| [2.4.1]({section_url('2.4.1')}) | 1/2 1b |" in page
    assert "| `qtest-pci` | qemu 7.2.22 | 1 | 0 | 1 | 0 | 4 |" in page
    readme = (checkout / coverage.README).read_text()
    assert (
        "The 2 recorded runs have 2 passed tests, 0 expected failures, 2 failures and 0 skips."
    ) in readme
    assert main(["matrix", "counts", "--check"]) == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (coverage.PAGE, "no tables", "docs/coverage.md has no place between <!-- statements"),
        (coverage.SUMMARY, "[{}]", "docs/coverage.json is damaged: [0]: needs target; vblk matrix"),
    ],
    ids=["page", "summary"],
)
def test_a_file_that_is_not_as_it_has_to_be_is_one_line(
    checkout: Path, capsys: pytest.CaptureFixture[str], name: Path, text: str, message: str
) -> None:
    (checkout / name).write_text(text)

    assert main(["matrix", "counts"]) == 2
    assert message in capsys.readouterr().err
