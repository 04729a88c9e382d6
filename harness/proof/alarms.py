"""Search for false alarms: repeated runs of the suite while the host is busy.

    python -m harness.proof.alarms conformance --target qtest-pci --directory reports/alarms
    python -m harness.proof.alarms conformance --driver self --driver seabios --driver uml

runs the suite 20 times on a healthy device, or judges drivers 20 times, one run after the other,
while a process per processor does nothing but use CPU time. It prints the verdicts that are not the
same in all runs. The exit status is 1 if there are any, and 2 if a run gave no results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness.report.flaky import flaky_results, lines
from harness.report.results import Results, ResultsError, load

RUNS = 20
DEADLINE = 1800.0
"""Longest time of one run, in seconds."""

SPIN = """
import select, sys
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(1_000_000):
        pass
"""
"""Program that keeps a processor busy until its standard input is closed."""


@contextmanager
def load_on(processors: int) -> Iterator[None]:
    """Keep this number of processors busy."""
    with ExitStack() as stack:
        for _ in range(processors):
            child = subprocess.Popen([sys.executable, "-c", SPIN], stdin=subprocess.PIPE)
            stack.callback(child.wait)
            assert child.stdin
            stack.callback(child.stdin.close)
        yield


def run(number: int, subjects: Sequence[str], directory: Path, suite: Path) -> Results:
    """Do one run, whose files stay in the directory. Raise ResultsError if it gives no results.

    `subjects` are options of pytest that name targets or drivers.
    """
    path = directory / f"run-{number:02}.json"
    words = path.with_suffix(".log")
    if path.exists():
        load(path)  # ResultsError for a file that is not of an earlier run
        path.unlink()
        words.unlink(missing_ok=True)
    if words.exists():
        raise ResultsError(f"{words} is there without results: remove it, or use --directory")
    with words.open("xb") as log:
        try:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", str(suite), "-p", "no:cacheprovider", "-q"),
                    *(*subjects, "--vblk-matrix", str(path)),
                    *("--vblk-artifacts", str(directory / f"run-{number:02}")),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=DEADLINE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ResultsError(f"run {number} did not end within {DEADLINE:g} s") from None
    results = load(path)
    if not results.runs[0].complete:
        raise ResultsError(f"run {number} was cut short: {log.name}")
    return results


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m harness.proof.alarms")
    parser.add_argument("suite", type=Path, help="directory of the conformance suite")
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("--target", default="qtest-pci", metavar="NAME")
    subject.add_argument("--driver", action="append", default=[], metavar="NAME")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N")
    parser.add_argument("--directory", type=Path, default=Path("reports/alarms"))
    asked = parser.parse_args()
    drivers = [word for name in asked.driver for word in ("--vblk-driver", name)]
    subjects = drivers or ["--vblk-target", asked.target]
    asked.directory.mkdir(parents=True, exist_ok=True)
    runs = []
    try:
        with load_on(os.cpu_count() or 1):
            for number in range(1, asked.runs + 1):
                results = run(number, subjects, asked.directory, asked.suite)
                print(f"run {number}: {results.runs[0].seconds:.0f} s", flush=True)
                runs.append(results)
    except ResultsError as error:
        print(f"alarms: {error}", file=sys.stderr)
        return 2
    flaky = flaky_results(runs)
    print(*lines(runs, flaky), sep="\n")
    return 1 if flaky else 0


if __name__ == "__main__":
    sys.exit(main())
