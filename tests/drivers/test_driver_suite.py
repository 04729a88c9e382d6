"""`pytest conformance/drivers`: selection, verdicts, reports, and what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.pytestplugin.reports import NOTHING_TESTED
from harness.virtio.catalogue import driver_clauses
from harness.witness.rules import RULES

ROOT = Path(__file__).parents[2]
SUITE = "conformance/drivers"


def run(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run pytest on the suite."""
    environment = {**os.environ, **({"PATH": path} if path is not None else {})}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_no_driver_is_judged_unless_a_run_names_one() -> None:
    result = run(SUITE)
    assert result.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, result.stdout
    assert "deselected" in result.stdout

    result = run("conformance", "--driver", "self", "--collect-only")
    nodes = [line for line in result.stdout.splitlines() if "::" in line]
    assert nodes
    assert all(node.startswith(f"{SUITE}/") for node in nodes)


def test_a_scenario_is_the_only_one_that_is_tested() -> None:
    names = ["read-only", "used-never"]
    scenarios = [word for name in names for word in ("--scenario", name)]
    for level, name in (([], names[0]), (["--level", "hardening"], names[1])):
        result = run(SUITE, "--driver", "self", "--collect-only", *scenarios, *level)
        nodes = [
            line
            for line in result.stdout.splitlines()
            if "goes_on" in line or "illegal_device" in line
        ]
        assert len(nodes) == 1, result.stdout
        assert nodes[0].endswith(f"[{name}]")


def test_each_rule_has_a_test() -> None:
    result = run(SUITE, "--list-statements", "--party", "driver")
    tested = {
        name
        for name, following in zip(
            result.stdout.splitlines(), result.stdout.splitlines()[2:], strict=False
        )
        if SUITE in following
    }
    assert {line.split()[0] for line in tested} >= set(RULES)


def test_the_reference_driver_in_one_scenario(tmp_path: Path) -> None:
    matrix, junit = tmp_path / "drivers.json", tmp_path / "drivers.xml"
    options = ["--driver", "self", "--scenario", "read-only", "--section", "2", "--section", "5.2"]
    result = run(SUITE, *options, "--matrix", str(matrix), "--junitxml", str(junit))

    assert result.returncode == 0, result.stdout
    results = json.loads(matrix.read_text())
    assert [statement["id"] for statement in results["statements"]] == list(driver_clauses())
    (column,) = results["targets"]
    assert column["party"] == "driver"
    verdicts = {
        statement["id"]: statement["verdicts"][column["id"]] for statement in results["statements"]
    }
    assert verdicts["2.1.1-R-01"] == "kept"
    assert verdicts["5.2.6.1-R-22"] == "skipped"
    assert verdicts["4.1.3.1-R-01"] == "not run"
    assert "[[PROPERTY|party=driver]]" in junit.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--driver", "none"], "no driver 'none'; known: self"),
        (["--driver", "self", "--scenario", "none"], "no scenario 'none'; known: ordinary"),
        (["--drivers", "/no/such.toml"], "/no/such.toml"),
    ],
)
def test_a_wrong_name_is_one_line(options: list[str], message: str) -> None:
    result = run(SUITE, *options)

    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_a_driver_that_is_missing_is_one_line_with_its_package() -> None:
    result = run(SUITE, "-rs", "--driver", "uml", "--scenario", "ordinary", path="")

    assert result.returncode == NOTHING_TESTED, result.stdout
    assert "apt-get install user-mode-linux" in result.stdout
    assert "passed" not in result.stdout


def test_a_fixture_of_the_same_name_makes_no_test_of_a_driver(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def driver(): return 1\n"
        "def test_it(driver): assert driver == 1\n"
    )

    result = run(str(tmp_path / "test_other.py"), "--vblk-target", "model")

    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout
