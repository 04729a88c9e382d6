"""Hardening tests: run only on request, with their own level and their own record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.report import hardened_docs
from harness.report.results import load

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

SUITE = """
from harness.report import hardening

@clause("2.1.2-D-01")
def test_must(plug): plug(start=False)

@hardening("2.7.5", "a loop")
def test_loop(plug, record_property):
    plug(start=False)
    record_property("hardening-verdict", "spins")
    assert False, "spins: QEMU used 3 s"

@hardening("2.7.5", "a hole")
def test_hole(plug, record_property):
    plug(start=False)
    record_property("hardening-verdict", "rejected")
"""

RECORD = """
[[deviation]]
clause = "2.7.5"
tests = ["test_it.py::test_loop"]
versions = ">=2"
seen = "spins: QEMU used"
why = "it has no end"
"""


def test_a_run_leaves_them_out_and_says_so(run) -> None:
    result = run(SUITE)

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["2 hardening tests left out; --level hardening"])


def test_the_level_asks_for_them(run) -> None:
    result = run(SUITE, "--level", "hardening")

    result.assert_outcomes(passed=1, failed=1, deselected=1)
    result.stdout.fnmatch_lines(["guest-pci: *spins 1*"])


@pytest.mark.parametrize("argument", [".", "test_it.py", "test_it.py::test_hole"])
def test_their_directory_and_what_is_in_it_asks_for_them(run, argument: str) -> None:
    result = run(SUITE, argument)

    assert result.parseoutcomes()["passed"] >= 1
    result.stdout.no_fnmatch_line("*left out*")


def test_a_directory_above_does_not_ask_for_them(run, pytester: pytest.Pytester) -> None:
    run(SUITE, "--collect-only")
    inside = pytester.mkpydir("inside")
    (pytester.path / "test_it.py").rename(inside / "test_it.py")

    result = pytester.runpytest_subprocess("-s", ".")

    result.assert_outcomes(passed=1)


def test_a_recorded_deviation_is_expected(run) -> None:
    result = run(SUITE, "--level", "hardening", deviations=RECORD)

    result.assert_outcomes(passed=1, xfailed=1, deselected=1)


def test_results_tell_them_from_the_specifications_statements(run, pytester) -> None:
    run(SUITE, "--level", "hardening", "--matrix", "results.json")

    results = json.loads((pytester.path / "results.json").read_text())

    rows = {row["id"]: row for row in results["statements"] if row["kind"] == "hardening"}
    assert set(rows) == {"2.7.5: a loop", "2.7.5: a hole"}
    assert {row["level"] for row in rows.values()} == {"hardening"}


def test_a_marker_without_a_text_is_refused(run) -> None:
    result = run('@pytest.mark.hardening("2.7")\ndef test_it(): pass\n')

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_it.py::test_it: @hardening takes a section*"])


ABOUT_THE_DEVICE = """
from harness.report import hardening

@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("verdict", ["served", "needs reset", "spins"])
@hardening("2.7.5", "a loop")
def test_loop(plug, request, ring, verdict):
    plug(start=False)
    said = {"ring": ring, "verdict": verdict, "evidence": "seen"}
    if (ring, verdict) == ("split", "spins"):
        pytest.skip("not here")
    request.node.user_properties += [(f"hardening-{k}", v) for k, v in said.items()]
    assert verdict != "spins"
"""

TABLES = """\
| target | split | packed | cases |
| --- | --- | --- | --- |
| guest-pci (fake 2.1) | 2 | 3 | 5 |

| target | served | needs reset | spins |
| --- | --- | --- | --- |
| guest-pci (fake 2.1) | 2 | 2 | 1 |

| case | guest-pci (fake 2.1) |
| --- | --- |
| `test_it.py::test_loop[spins-packed]` | **spins** |
"""


def test_tables_have_the_cases_the_verdicts_and_what_was_lost(run, pytester, capsys) -> None:
    run(ABOUT_THE_DEVICE, "--level", "hardening", "--matrix", "results.json")

    status = main(["matrix", "hardening", str(pytester.path / "results.json")])

    assert status == 0
    assert capsys.readouterr().out.endswith(TABLES)


DOCS = """\
<!-- verdicts: made by vblk matrix hardening --docs -->
<!-- verdicts: end -->
<!-- lost: made by vblk matrix hardening --docs -->
<!-- lost: end -->
"""


def test_the_docs_list_them_by_target_and_detect_old_tables(
    run, pytester, capsys, monkeypatch
) -> None:
    run(ABOUT_THE_DEVICE, "--level", "hardening", "--matrix", "results.json")
    monkeypatch.chdir(pytester.path)
    page = pytester.mkdir("docs") / "hardening.md"
    page.write_text(DOCS)

    assert main(["matrix", "hardening", "--docs", "results.json"]) == 0

    text = page.read_text()
    assert "| target | version | split | packed | served | needs reset | spins | not rec" in text
    assert "| `guest-pci` | fake 2.1 | 2 | 3 | 2 | 2 | 1 | 1 |" in text
    assert "| `test_it.py::test_loop` | 1 spins |" in text
    assert main(["matrix", "hardening", "--check"]) == 0
    page.write_text(text.replace("1 spins", "2 spins"))
    assert main(["matrix", "hardening", "--check"]) == 1
    assert "docs/hardening.md is out of date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("summary", "page", "message"),
    [
        (None, DOCS, "docs/hardening.json: No such file"),
        ("[{}]", DOCS, "docs/hardening.json is damaged"),
        ("[]", "nothing", "docs/hardening.md has no place between <!-- verdicts: made by"),
    ],
)
def test_docs_that_are_not_as_they_have_to_be_are_one_line(
    tmp_path, capsys, monkeypatch, summary, page, message
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "hardening.md").write_text(page)
    if summary is not None:
        (tmp_path / "docs" / "hardening.json").write_text(summary)
    monkeypatch.chdir(tmp_path)

    assert main(["matrix", "hardening", "--docs"]) == 2
    assert message in capsys.readouterr().err


def test_nothing_to_make_tables_of_is_one_line(capsys) -> None:
    assert main(["matrix", "hardening"]) == 2
    assert "name a file of results" in capsys.readouterr().err


def test_the_tables_in_the_docs_are_current() -> None:
    assert not hardened_docs.stale(ROOT), f"{hardened_docs.MAKE} makes them"


def test_results_say_what_became_of_a_device(run, pytester) -> None:
    run(ABOUT_THE_DEVICE, "--level", "hardening", "--matrix", "results.json")

    results = load(pytester.path / "results.json")

    (found,) = results.tests["test_it.py::test_loop[spins-packed]"].results.values()
    assert found.hardening == {"ring": "packed", "verdict": "spins", "evidence": "seen"}
