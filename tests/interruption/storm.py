"""Interrupt runs at random moments, and check their clean-up: `python storm.py --times 200`.

Each try starts a run in its own process group and temporary directory. It sends SIGINT, SIGTERM
or SIGHUP, once or twice, or SIGKILL, and checks the promised clean-up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]

STARTED = 120.0
"""Seconds until a run has its first run directory, on a busy host."""

ENDED = 90.0
"""Seconds from a signal to the end of the run, on a busy host. Its own waits have lower limits."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

KILLS = 0.15
"""The share of tries that end by SIGKILL."""

SUITE = ("conformance/test_requests.py", "conformance/test_status.py")


@dataclass(frozen=True)
class Scenario:
    """A command, and its duration from its first run directory on, in seconds."""

    name: str
    command: tuple[str, ...]
    span: float
    reports: bool = True


def _suite(target: str, span: float, *options: str) -> Scenario:
    name = " ".join([target, *options])
    return Scenario(
        name, ("-m", "pytest", *SUITE, "--target", target, "--accel", "tcg", *options), span
    )


def _random(target: str, *options: str) -> Scenario:
    words = ("random", "--target", target, "--minutes", "1", *options)
    code = "import sys; from harness.cli import main; sys.exit(main(sys.argv[1:]))"
    return Scenario(" ".join(["vblk", *words]), ("-c", code, *words), 8.0, reports=False)


SCENARIOS = (
    _suite("qtest-pci", 6.0),
    _suite("model", 5.0),
    _suite("vhost-user", 5.0),
    _suite("guest-pci", 15.0),
    _suite("model", 8.0, "-n", "2"),
    _suite("qtest-pci", 8.0, "-n", "2"),
    _random("qtest-pci"),
    _random("vhost-user"),
)


@dataclass
class Outcome:
    """The result of one try; `troubles` are the promises that were not kept."""

    scenario: str
    signals: str
    status: int | None
    troubles: list[str]
    output: str


def interrupt(scenario: Scenario, chance: random.Random, kill: bool = False) -> Outcome:
    """Start the scenario, interrupt it at a random moment, and check what it leaves behind."""
    with TemporaryDirectory(prefix="st-", dir="/tmp") as name:
        directory = Path(name)
        scratch = directory / "t"
        scratch.mkdir()
        line = [sys.executable, *scenario.command]
        if scenario.reports:
            line += ["-p", "no:cacheprovider", f"--junitxml={directory / 'junit.xml'}"]
            line += ["--matrix", str(directory / "matrix.json")]
        else:
            line += ["--artifacts", str(directory / "found")]
        with (directory / "output").open("w+b") as output:
            process = subprocess.Popen(
                line,
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(scratch)},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                sent = _send(process, scratch, scenario.span, chance, kill)
                status = _wait(process)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            text = output.read().decode(errors="replace")
        troubles = list(_troubles(scenario, directory, sent, status, text))
    return Outcome(scenario.name, "+".join(s.name for s in sent) or "none", status, troubles, text)


def _send(
    process: subprocess.Popen[bytes],
    scratch: Path,
    span: float,
    chance: random.Random,
    kill: bool,
) -> list[signal.Signals]:
    deadline = time.monotonic() + STARTED
    while not any(scratch.glob("vblk-*/*")) and process.poll() is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    time.sleep(chance.uniform(0, span))
    first = signal.SIGKILL if kill else chance.choice(SIGNALS)
    sent = [first]
    if not kill and chance.random() < 0.5:
        sent.append(chance.choice(SIGNALS))
    came: list[signal.Signals] = []
    for number, signum in enumerate(sent):
        if number:
            time.sleep(chance.choice((0.0, 0.05, 0.3, 1.0)))
        if process.poll() is None:
            process.send_signal(signum)
            came.append(signum)
    return came


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(ENDED)
    except subprocess.TimeoutExpired:
        return None


def _troubles(
    scenario: Scenario,
    directory: Path,
    sent: Sequence[signal.Signals],
    status: int | None,
    text: str,
) -> list[str]:
    troubles = []
    killed = signal.SIGKILL in sent
    if status is None:
        troubles.append(f"it runs on {ENDED:g} s after {sent[0].name}")
    promised = {2} if scenario.reports else {128 + signum for signum in SIGNALS}
    if killed:
        promised = {-signal.SIGKILL}
    elif not sent:  # it had ended before
        promised = {0}
    elif scenario.reports and _complete(directory, text):  # the signal came after the last test
        promised.add(0)
    if status is not None and status not in promised:
        troubles.append(f"exit status {status}")
    if "Traceback (most recent call last)" in text:
        troubles.append("a traceback")
    if "INTERNALERROR" in text:
        troubles.append("an internal error of pytest")
    # After a kill, child processes need a moment to end.
    if left := _processes(str(directory / "t"), 10.0):
        troubles.append(f"processes: {left}")
    if killed:
        return troubles
    if left := sorted(path.name for path in (directory / "t").glob("vblk-*")):
        troubles.append(f"run directories: {left}")
    if scenario.reports:
        troubles += _reports(directory, text)
    elif "FOUND" in text:
        troubles.append("a finding")
    elif "examples on" not in text:
        troubles.append("no summary")
    return troubles


def _complete(directory: Path, text: str) -> bool:
    """Return True if a run did all of its tests, and its JUnit report has them all."""
    collected = re.search(r"(\d+) selected|(?:collected |workers \[)(\d+) items", text)
    last = (text.strip().splitlines() or [""])[-1]
    if collected is None or " passed" not in last or "!!!!" in text:
        return False
    with suppress(OSError, ElementTree.ParseError):
        cases = ElementTree.parse(directory / "junit.xml").iter("testcase")
        return len(list(cases)) == int(collected[1] or collected[2])
    return False


def _reports(directory: Path, text: str) -> list[str]:
    troubles = []
    if "====" not in (text.strip().splitlines() or [""])[-1] and "!!!!" not in text:
        troubles.append("no summary")
    try:
        cases = list(ElementTree.parse(directory / "junit.xml").iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        troubles.append(f"JUnit: {error}")
    else:
        if [case for case in cases if case.find("failure") is not None]:
            troubles.append("a failure in JUnit")
    try:
        json.loads((directory / "matrix.json").read_text())
    except (OSError, ValueError) as error:
        troubles.append(f"matrix: {error}")
    return troubles


def _processes(name: str, patience: float) -> list[str]:
    """Wait until no command line names the directory, and return those that remain."""
    deadline = time.monotonic() + patience
    while True:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if name in line:
                    found.append(line[:80])
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def main() -> int:
    """Run all tries; return 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--jobs", type=int, default=3, metavar="N", help="tries at once")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="scenarios with this in the name"
    )
    arguments = parser.parse_args()
    # A shell or nohup starts background processes that ignore signals; the runs would inherit it.
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    scenarios = [scenario for scenario in SCENARIOS if arguments.only in scenario.name]
    statuses: Counter[str] = Counter()

    def attempt(number: int) -> Outcome:
        chance = random.Random(arguments.seed * 1_000_003 + number)
        kill = chance.random() < KILLS
        return interrupt(scenarios[number % len(scenarios)], chance, kill)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = pool.map(attempt, range(arguments.times))
        bad = sum(_told(number, outcome, statuses) for number, outcome in enumerate(outcomes, 1))
    for name, count in sorted(statuses.items()):
        print(f"{count:4} {name}")
    print(f"{arguments.times - bad} of {arguments.times} as promised")
    return 1 if bad else 0


def _told(number: int, outcome: Outcome, statuses: Counter[str]) -> bool:
    """Print an outcome, and return whether a promise was not kept."""
    statuses[f"{outcome.scenario}: {outcome.status}"] += 1
    verdict = "; ".join(outcome.troubles) or "as promised"
    print(f"{number} {outcome.scenario} {outcome.signals}: {outcome.status}, {verdict}", flush=True)
    if outcome.troubles:
        for line in outcome.output.splitlines()[-40:]:
            print(f"    {line}", flush=True)
    return bool(outcome.troubles)


if __name__ == "__main__":
    sys.exit(main())
