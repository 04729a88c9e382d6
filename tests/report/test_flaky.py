"""Runs that do not agree: `vblk matrix flaky`, and the runs that feed it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from made_up import OTHER, PCI_NEW, broken, kept, made_up

from harness.cli.main import main
from harness.proof.alarms import load_on, run
from harness.report.flaky import FlakyResult, flaky_results
from harness.report.results import Results, Verdict, dumped

START = "suite/test_a.py::test_start"


def with_start(result) -> Results:
    results = made_up()
    results.tests[START].results[PCI_NEW.id] = result
    return results


def test_a_verdict_that_differs_once_is_reported_with_its_message() -> None:
    runs = [with_start(kept()), with_start(broken("513")), with_start(kept())]

    assert flaky_results(runs) == [
        FlakyResult(START, PCI_NEW.id, (Verdict.KEPT, Verdict.BROKEN, Verdict.KEPT), "513")
    ]


def test_other_words_and_other_times_are_the_same_verdict() -> None:
    assert flaky_results([with_start(broken("1")), with_start(broken("2"))]) == []


def test_a_test_that_a_run_does_not_have_wavers() -> None:
    less = made_up()
    del less.tests[START].results[OTHER.id]
    none = made_up()
    del none.tests[START]

    assert [result.seen for result in flaky_results([made_up(), less])] == [
        (Verdict.BROKEN, Verdict.NOT_RUN)
    ]
    assert {result.column for result in flaky_results([made_up(), none])} == {
        column.id for column in made_up().columns
    }


def test_the_command_says_how_often_and_in_which_run(tmp_path: Path, capsys) -> None:
    paths = [tmp_path / f"{n}.json" for n in range(3)]
    for path, result in zip(paths, [kept(), kept(), broken("513")], strict=True):
        path.write_text(dumped(with_start(result)))

    assert main(["matrix", "flaky", *map(str, paths)]) == 1
    output = capsys.readouterr().out
    assert f"{START}, {PCI_NEW.id}: kept in 2, broken in 1; broken in run 3: 513" in output
    assert main(["matrix", "steady", *map(str, paths[:2])]) == 0
    assert "2 runs" in capsys.readouterr().out


def test_the_load_ends_with_its_block_and_with_its_parent() -> None:
    starter = "from harness.proof.alarms import *\nimport os\nwith load_on(2): os._exit(0)"
    with load_on(1):
        pass
    # The spinning processes inherit its stdout, which closes when the last of them ends.
    subprocess.run([sys.executable, "-c", starter], stdout=subprocess.PIPE, timeout=300, check=True)


def test_a_run_leaves_its_results(tmp_path: Path) -> None:
    suite = tmp_path / "test_it.py"
    suite.write_text(
        "from harness.report import clause\n"
        '@clause("2.1.2-D-01")\ndef test_it(plug): assert plug().read(0).status == 0\n'
    )

    results = run(3, ["--vblk-target", "model"], tmp_path, suite)

    assert [test.results.popitem()[1].verdict for test in results.tests.values()] == [Verdict.KEPT]
    assert (tmp_path / "run-03.json").exists()
