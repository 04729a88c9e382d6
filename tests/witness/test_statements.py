"""The page of all statements that bind drivers, and watched runs of the suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.proof import statements, watched
from harness.virtio.catalogue import driver_clauses
from harness.witness.events import Device, Event, Reset, Status, dumped

PAGE = Path(__file__).parents[2] / "docs" / "witness-statements.md"
SUITE = Path(__file__).parents[2] / "conformance"


def stream(path: Path, label: str = "") -> Path:
    events: list[Event] = [
        Device(transport="pci, modern", offered=1, label=label),
        Reset(),
        Status(value=1),
        Status(value=2, before=1),
    ]
    path.write_text("".join(dumped(event) + "\n" for event in events))
    return path


def test_the_page_is_up_to_date() -> None:
    verdicts = statements.load(PAGE.with_suffix(".json"))

    assert PAGE.read_text() == statements.page(verdicts), "python -m harness.proof.statements"


def test_the_verdicts_are_of_statements_that_have_a_rule() -> None:
    for fates in statements.load(PAGE.with_suffix(".json")).values():
        assert set(fates) <= set(driver_clauses())
        assert set(fates.values()) <= {"kept", "broken"}


def test_a_driver_is_added_to_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    arguments = ["--driver", "mine", str(stream(tmp_path / "it.jsonl")), "--write", str(page)]

    assert statements.main(arguments) == 0
    assert "| mine | 0 | 1 | 203 |" in page.read_text()
    assert "| 2.1.1-R-02 | MUST NOT | C | red | broken |" in page.read_text()


def test_a_driver_that_is_run_and_its_streams_count_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    arguments = ["--run", "self", "--scenario", "read-only", "--write", str(page)]

    assert statements.main(arguments) == 0
    assert "self, read-only: " in capsys.readouterr().out
    assert "| 2.1.1-R-02 | MUST NOT | C | red | kept |" in page.read_text()

    streams = ["--driver", "self", str(stream(tmp_path / "it.jsonl"))]
    assert statements.main([*arguments, *streams]) == 0
    assert "| 2.1.1-R-02 | MUST NOT | C | red | broken |" in page.read_text()
    assert "| 3.1.1-R-01 | MUST | C | red | kept |" in page.read_text()


def test_an_alarm_names_the_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream(tmp_path / "model", "conformance/test_x.py::test_y[a/b] (call)")

    assert watched.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "test_x.py::test_y: 2.1.1-R-02\n" in out
    assert "1 disks, 1 tests break a MUST, 1 alarms" in out


def test_a_test_that_breaks_a_statement_on_purpose_is_no_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream(tmp_path / "model", "conformance/test_x.py::test_y[a] (call)")
    monkeypatch.setattr(watched, "intended", lambda: {"test_x.py::test_y": ["2.1.1-R-02"]})

    assert watched.main([str(tmp_path)]) == 0


def test_the_tests_that_break_a_statement_on_purpose_exist() -> None:
    for test, names in watched.intended().items():
        file, _, function = test.partition("::")
        assert any(f"def {function}(" in path.read_text() for path in SUITE.rglob(file)), test
        assert set(names) <= set(driver_clauses())
