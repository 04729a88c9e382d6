"""Runs on workers of pytest-xdist, on the fake target of conftest.py."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.pytestplugin import xdist
from harness.pytestplugin.reports import NOTHING_TESTED

pytest_plugins = ["pytester"]

SUITE = """
import os, time

@pytest.mark.parametrize("number", range(8))
@clause("2.1.2-D-01")
def test_it(plug, number):
    plug(start=False)
    time.sleep(0.05)

@clause("2.1.2-D-01")
def test_a_worker_dies(plug):
    plug(start=False)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(1)

@clause("2.1.2-D-02")
def test_should(plug): plug(start=False); assert 1 == 2
"""


def properties(path) -> dict[str, str]:
    suite = ElementTree.parse(path).getroot()[0]
    return {
        run_one.get("name"): run_one.get("value")
        for run_one in suite.findall("properties/property")
    }


def test_the_reports_are_those_of_one_process(run, pytester: pytest.Pytester) -> None:
    chosen = ["-k", "not dies"]
    run(SUITE, *chosen, "--junitxml=one.xml", "--matrix=one.json")
    result = run(SUITE, *chosen, "-n2", "--junitxml=two.xml", "--matrix=two.json")

    result.assert_outcomes(passed=8, xfailed=1)
    result.stdout.fnmatch_lines(["median (sum)*tests*once*start*plug*test*after", "guest-pci *9 *"])
    run_one, run_two = (
        json.loads((pytester.path / f"{name}.json").read_text()) for name in ("one", "two")
    )
    assert properties(pytester.path / "two.xml") == properties(pytester.path / "one.xml")
    assert properties(pytester.path / "two.xml")["qemu"] == "a fake"
    assert run_two["targets"] == run_one["targets"]
    verdicts = [
        {
            test["id"]: test["results"]["guest-pci (fake 2.1)"]["verdict"]
            for test in results["tests"]
        }
        for results in (run_one, run_two)
    ]
    assert len(verdicts[0]) == 9
    assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize(
    ("asked", "mode"),
    [(["-n2"], "WorkStealing"), (["-n2", "--dist=load"], "Load"), (["-n2", "-d"], "Load")],
)
def test_the_suite_is_not_dealt_out_beforehand_unless_asked_for(
    pytester: pytest.Pytester, asked: list[str], mode: str
) -> None:
    module = Path(__file__).parents[1] / "conformance" / "test_shared_memory.py"
    result = pytester.runpytest_subprocess(module, "-v", "--target=model", *asked)

    assert result.ret == NOTHING_TESTED  # the model is not on PCI: all tests are skipped
    result.stdout.fnmatch_lines([f"scheduling tests via {mode}Scheduling"])


@pytest.mark.parametrize("mode", ["load", "worksteal"])
def test_a_worker_that_dies_loses_only_its_test(run, mode: str) -> None:
    result = run(SUITE, "-n2", f"--dist={mode}")

    result.assert_outcomes(passed=8, xfailed=1, failed=1)
    result.stdout.fnmatch_lines(["FAILED*test_a_worker_dies*"])


def test_a_target_that_cannot_be_had_ends_the_run_of_all_workers(run) -> None:
    result = run(
        """
@pytest.mark.parametrize("number", range(100))
def test_it(plug, number): plug(serial="impossible")
""",
        "-n2",
    )

    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert result.parseoutcomes()["errors"] <= 4
    result.stdout.fnmatch_lines(["*there is no QEMU*"])


DAEMONS = """
[target.own]
device = "vhost-user"
start = "daemon {socket} {file}"

[target.shared]
device = "vhost-user"
start = "daemon {socket}"
per = "run"
plug = "add {file}"
"""


@pytest.mark.parametrize(
    ("targets", "workers"),
    [
        (["vhost-user"], 6),
        (["vhost-user+a-defect"], 6),
        (["own"], 6),
        (["vhost-user", "own"], 6),
        (["shared"], None),
        (["qtest-pci"], None),
        (["vhost-user", "qtest-pci"], None),
        ([], None),
    ],
)
def test_auto_means_two_workers_for_each_cpu_where_tests_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, targets: list[str], workers: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5})
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    file = tmp_path / "targets.toml"
    file.write_text(DAEMONS)
    option = SimpleNamespace(vblk_target=targets, vblk_targets=file)
    config = cast(pytest.Config, SimpleNamespace(option=option))
    assert xdist.pytest_xdist_auto_num_workers(config) == workers

    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "3")
    assert xdist.pytest_xdist_auto_num_workers(config) is None
