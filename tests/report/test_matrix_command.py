"""The command `vblk matrix`, and --matrix with the name of a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_up import OTHER, broken, made_up

from harness.cli.main import main
from harness.report.results import dumped, load

pytest_plugins = ["pytester"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.json"
    path.write_text(dumped(made_up()))
    return path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    results = made_up()
    results.runs[0] = replace(results.runs[0], started="2026-02-01T00:00:00+00:00")
    results.tests["suite/test_a.py::test_prose"].results[OTHER.id] = broken("noise")
    path = tmp_path / "new.json"
    path.write_text(dumped(results))
    return path


def test_merge_writes_a_page_and_a_file(old: Path, new: Path, tmp_path: Path) -> None:
    page, both = tmp_path / "all.html", tmp_path / "all.json"

    status = main(["matrix", "merge", str(old), str(new), "-o", str(page), "--output", str(both)])

    assert status == 0
    assert len(load(both).runs) == 2
    assert "Run of 2026-02-01" in page.read_text() and "Run of 2026-01-01" in page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "all.html",
        "all.json",
        "new.json",
        "old.json",
    ]


def test_diff_says_what_is_worse(old: Path, new: Path, capsys) -> None:
    assert main(["matrix", "diff", str(old), str(new)]) == 1

    assert "5.2.6-P-07, described, " in capsys.readouterr().out


def test_diff_is_content_with_what_is_better_or_the_same(old: Path, new: Path, capsys) -> None:
    assert main(["matrix", "diff", str(new), str(old)]) == 0
    assert "better: 1" in capsys.readouterr().out
    assert main(["matrix", "diff", str(old), str(old)]) == 0
    assert "no verdict has changed" in capsys.readouterr().out


def test_a_file_that_is_none_is_one_line(old: Path, tmp_path: Path, capsys) -> None:
    away = tmp_path / "away.json"

    assert main(["matrix", "diff", str(old), str(away)]) == 2

    assert capsys.readouterr().err == f"vblk: {away}: No such file or directory\n"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("x.pdf", "has to end with .json or .html"),
        ("/dev/null/x.html", "cannot be made a directory"),
    ],
)
def test_an_output_that_cannot_be_is_refused(old: Path, name: str, complaint: str, capsys) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["matrix", "merge", str(old), "-o", name])

    assert ending.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_run_writes_a_page(run, tmp_path: Path) -> None:
    page = tmp_path / "r.html"

    run('@clause("2.1.2-D-01")\ndef test_it(plug): plug(start=False)\n', f"--matrix={page}")

    assert 'id="2.1.2-D-01" data-l="MUST NOT" data-v="k"' in page.read_text()
