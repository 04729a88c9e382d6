"""Runs of the suite's tests on one defect after the other, from a process that has collected once.

A session of pytest needs seconds for imports and collection before its first test. Here one session
reaches its run loop once, and is then forked for each defect that a socket asks for. Each fork is a
session of its own, on a device of its own, and exits at the end of the session.

    python -m harness.proof.prover SUITE FD

is that process; `Prover` is the other end of its socket.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest

from harness.defects.catalogue import Defect, defects
from harness.inputs import build
from harness.proof.proof import BESIDE, PER_MODULE, Proof, ProofError
from harness.pytestplugin.bench import BENCHES, TargetRun, bench_of
from harness.report import statement_of
from harness.report.collect import Collector
from harness.report.results import Results, Verdict, bare_name, plain_node

DEADLINE = 600.0
"""Longest time for the tests of one defect, in seconds."""

START_DEADLINE = 60.0
ENOUGH = "enough is known"
"""Reason of a fork's session that we have stopped before its end."""

END_DEADLINE = 10.0


def statements(item: pytest.Item) -> frozenset[str]:
    """The ids of the statements that a test is about."""
    statement = statement_of(item)
    return frozenset(statement.clauses) if statement else frozenset()


def sample(items: Iterable[pytest.Item], defect: Defect, suite: Path) -> list[pytest.Item]:
    """Return some tests of each module, always the same for the same defect.

    Tests of random operations are left out: they are about all statements.
    """
    modules: defaultdict[str, list[tuple[int, str, pytest.Item]]] = defaultdict(list)
    for item in items:
        if item.path.parent == suite:
            node = plain_node(item.nodeid)
            lot = zlib.crc32(f"{defect.name} {node}".encode())
            modules[item.path.name].append((lot, node, item))
    return [item for lots in modules.values() for *_, item in sorted(lots)[:PER_MODULE]]


class Session:
    """Plugin of the session that is forked, and of the forks, each for one defect."""

    def __init__(self, control: socket.socket, suite: Path) -> None:
        self._control = control
        self._suite = suite
        self.defect: Defect | None = None
        self._answer = -1
        self._own: set[str] = set()
        self._untested: set[str] = set()
        self._beside = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Literal[True] | None:
        """Fork for each name that arrives.

        A fork continues to pytest's own loop, with its tests.
        """
        gc.freeze()  # forks share what the collection has allocated
        with self._control.makefile("r") as names:
            for name in names:
                defect = defects()[name.strip()]
                ours, theirs = os.pipe()
                child = os.fork()
                if child == 0:
                    os.close(ours)
                    self._become(session, defect, theirs)
                    return None
                os.close(theirs)
                answer = self._wait(child, ours)
                self._control.sendall(answer or b'{"error": "the fork ended without an answer"}\n')
        return True

    def _wait(self, child: int, ours: int) -> bytes:
        """Return what a fork writes until its end.

        The wait also ends when the other side disconnects, and after DEADLINE.
        """
        output, deadline = b"", time.monotonic() + DEADLINE
        while left := max(deadline - time.monotonic(), 0):
            ready, _, _ = select.select([ours, self._control.fileno()], [], [], left)
            if ours in ready:
                piece = os.read(ours, 65536)
                output += piece
                if not piece:
                    break
            elif ready:  # the other side disconnected: it sends nothing before it has its answer
                break
        else:
            output = (
                json.dumps({"error": f"the tests did not end within {DEADLINE:g} s"}).encode()
                + b"\n"
            )
        os.close(ours)
        _end(child)
        return output

    def _become(self, session: pytest.Session, defect: Defect, answer: int) -> None:
        """Change the session in a fork into a session for this defect."""
        self.defect, self._answer, self._session = defect, answer, session
        config = session.config
        items = [item for item in session.items if _target(item) == defect.target]
        config.stash[BENCHES] = {defect.target: TargetRun(f"{defect.target}+{defect.name}")}
        about = {item: statements(item) & set(defect.statements) for item in items}
        own = [item for item in items if about[item]]
        rest = [item for item in items if not about[item]]
        self._own = {plain_node(item.nodeid) for item in own}
        self._untested = set(defect.statements).difference(*about.values())
        session.items = (
            items if not defect.statements else [*own, *sample(rest, defect, self._suite)]
        )
        self._collector = Collector(config.rootpath, ())

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Make SHOULDs strict for the defect's own statements only.

        The real device may break others.
        """
        item.config.option.strict_should = plain_node(item.nodeid) in self._own

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the report. One failure of a test of other statements is enough to stop."""
        self._collector.add(report)
        assert self.defect
        if self.defect.statements and plain_node(report.nodeid) not in self._own:
            self._beside += report.duration
            if report.failed or self._beside > BESIDE:
                self._session.shouldstop = ENOUGH

    def answer(self, code: int) -> NoReturn:
        """Write the result at the end of a fork, and exit without the cleanup of its parent."""
        assert self.defect
        stopped = self.defect.unusable or self._session.shouldstop == ENOUGH
        expected = (0, 1, 2) if stopped else (0, 1)
        if self._untested:
            result = {"error": f"no test on {self.defect.target} checks {self._untested}"}
        elif code in expected:
            result = asdict(judged(self.defect, self._collector.results(True), self._own))
        else:
            result = {"error": f"pytest ended with {code}: {self._session.shouldstop}"}
        os.write(self._answer, json.dumps(result).encode() + b"\n")
        os._exit(0)


def _target(item: pytest.Item) -> str:
    bench = bench_of(item)
    return bench.name if bench else ""


def _end(child: int) -> None:
    """Wait for a fork that should be about to end; kill it if it does not."""
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        os.kill(child, number)
        deadline = time.monotonic() + END_DEADLINE
        while time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                return
            time.sleep(0.005)


def judged(defect: Defect, results: Results, own: set[str]) -> Proof:
    """Return the result of a run on a defect; `own` are the ids of its statements' tests."""
    seen_red = {Verdict.BROKEN, *([Verdict.ERROR] if defect.unusable else [])}
    keyed, red, elsewhere = {}, {}, {}
    others = 0
    for test in results.tests.values():
        (verdict,) = (result.verdict for result in test.results.values())
        name = bare_name(test.id)
        if verdict in seen_red:
            red[name] = True
            if test.id in own:
                keyed[name] = True
        if test.id not in own:
            others += verdict is not Verdict.SKIPPED
            if verdict in (Verdict.BROKEN, Verdict.ERROR):
                elsewhere[name] = True
    return Proof(
        defect.name, len(results.tests), others, tuple(keyed), tuple(red), tuple(elsewhere)
    )


class Prover:
    """The process, from the first defect that is asked for until `close`."""

    def __init__(self, suite: Path) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (`close` does)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.proof.prover", str(suite), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=subprocess.STDOUT,
            )
        self._socket.settimeout(START_DEADLINE + DEADLINE + 3 * END_DEADLINE)
        self._answers = self._socket.makefile("r")

    def prove(self, defect: Defect) -> Proof:
        """Run the tests of a defect's statements on it, and in addition a sample of the others.

        A harmless defect gets the whole suite. Raise ProofError if there is no end within
        `DEADLINE` seconds, or no result.
        """
        try:
            self._socket.sendall(defect.name.encode() + b"\n")
            line = self._answers.readline()
        except OSError as error:
            raise ProofError(f"{defect.name}: the prover does not answer: {error}") from None
        if not line:
            self._words.seek(0)
            words = self._words.read().decode(errors="replace").strip().splitlines()
            raise ProofError(f"{defect.name}: {words[-1] if words else 'pytest printed nothing'}")
        result: dict[str, Any] = json.loads(line)
        if "error" in result:
            raise ProofError(f"{defect.name}: {result['error']}")
        return build(Proof, result)

    def close(self) -> None:
        """Close the connection, and wait for the process to end."""
        self._answers.close()
        self._socket.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(4 * END_DEADLINE)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._words.close()


def main() -> int:
    """Collect the suite on every target that has a defect, and serve."""
    with socket.socket(fileno=int(sys.argv[2])) as control:
        suite = Path(sys.argv[1])
        session = Session(control, suite)
        targets = dict.fromkeys(defect.target for defect in defects().values())
        code = pytest.main(
            [
                *(str(suite), "-q", "--tb=no", "-s", "-p", "no:cacheprovider", "-p", "no:xdist"),
                *(word for target in targets for word in ("--target", target)),
            ],
            plugins=[session],
        )
        if session.defect:
            session.answer(code)
        return int(code)


if __name__ == "__main__":
    sys.exit(main())
