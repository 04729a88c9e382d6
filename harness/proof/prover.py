"""Runs tests of the suite on one defect after the other, from a process that has collected it once.

A session of pytest spends seconds on imports and collection before its first
test. Here it comes as far as its run loop once, and then lives on as a fork for
each defect that is asked for over a socket: a session of its own, on a device
of its own, whose end it does not survive.

    python -m harness.proof.prover SUITE FD

is that process; `Prover` is the other side of its socket.
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
"""Seconds that the tests of one defect may take."""

START_DEADLINE = 60.0
ENOUGH = "enough is known"
"""Why the session of a fork is stopped before its end, if it is by us."""

END_DEADLINE = 10.0


def statements(item: pytest.Item) -> frozenset[str]:
    """What a test is about: clause ids, and "section: text" of what is only described."""
    statement = statement_of(item)
    if statement is None:
        return frozenset()
    described = (f"{section}: {text}" for section, text in statement.described)
    return frozenset((*statement.clauses, *described))


def sample(items: Iterable[pytest.Item], defect: Defect, suite: Path) -> list[pytest.Item]:
    """Some tests of each module, the same for the same defect whatever else there is.

    None of those that do anything at random: these are about every statement there is.
    """
    modules: defaultdict[str, list[tuple[int, str, pytest.Item]]] = defaultdict(list)
    for item in items:
        if item.path.parent == suite:
            node = plain_node(item.nodeid)
            lot = zlib.crc32(f"{defect.name} {node}".encode())
            modules[item.path.name].append((lot, node, item))
    return [item for lots in modules.values() for *_, item in sorted(lots)[:PER_MODULE]]


class Session:
    """A plugin for the session that forks; in a fork, for the one defect of it."""

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
        """Fork for each name that comes. A fork goes on to pytest's own loop, with its tests."""
        gc.freeze()  # what the collection left is shared with every fork
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
                self._control.sendall(answer or b'{"error": "the fork died without a word"}\n')
        return True

    def _wait(self, child: int, ours: int) -> bytes:
        """What a fork says until its end, or until nobody wants to know or its time is over."""
        said, deadline = b"", time.monotonic() + DEADLINE
        while left := max(deadline - time.monotonic(), 0):
            ready, _, _ = select.select([ours, self._control.fileno()], [], [], left)
            if ours in ready:
                piece = os.read(ours, 65536)
                said += piece
                if not piece:
                    break
            elif ready:  # the other side hung up: it sends nothing before it has its answer
                break
        else:
            said = json.dumps({"error": f"no end within {DEADLINE:g} s"}).encode() + b"\n"
        os.close(ours)
        _end(child)
        return said

    def _become(self, session: pytest.Session, defect: Defect, answer: int) -> None:
        """In a fork: make the session one about this defect."""
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
        """A SHOULD that is no statement of the defect's may be one that the real device breaks."""
        item.config.option.strict_should = plain_node(item.nodeid) in self._own

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note. What goes wrong elsewhere is enough to know that something does."""
        self._collector.add(report)
        assert self.defect
        if self.defect.statements and plain_node(report.nodeid) not in self._own:
            self._beside += report.duration
            if report.failed or self._beside > BESIDE:
                self._session.shouldstop = ENOUGH

    def answer(self, code: int) -> NoReturn:
        """At the end of a fork: say what was found, and end without what its parent does."""
        assert self.defect
        stopped = self.defect.unusable or self._session.shouldstop == ENOUGH
        usual = (0, 1, 2) if stopped else (0, 1)
        if self._untested:
            found = {"error": f"no test on {self.defect.target} is about {self._untested}"}
        elif code in usual:
            found = asdict(judged(self.defect, self._collector.results(True), self._own))
        else:
            found = {"error": f"pytest ended with {code}: {self._session.shouldstop}"}
        os.write(self._answer, json.dumps(found).encode() + b"\n")
        os._exit(0)


def _target(item: pytest.Item) -> str:
    bench = bench_of(item)
    return bench.name if bench else ""


def _end(child: int) -> None:
    """Wait for a fork that should be at its end, and see to it."""
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        os.kill(child, number)
        deadline = time.monotonic() + END_DEADLINE
        while time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                return
            time.sleep(0.005)


def judged(defect: Defect, results: Results, own: set[str]) -> Proof:
    """What a run on a defect shows; `own` are the ids of the tests about its statements."""
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
    """The process, from the first defect that it is asked about until `close`."""

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
        """Run the tests of a defect's statements on it, and beside them a sample of the others.

        On a harmless one, the whole suite. ProofError if that comes to no end
        within `DEADLINE` seconds, or to no results.
        """
        try:
            self._socket.sendall(defect.name.encode() + b"\n")
            line = self._answers.readline()
        except OSError as error:
            raise ProofError(f"{defect.name}: no answer: {error}") from None
        if not line:
            self._words.seek(0)
            words = self._words.read().decode(errors="replace").strip().splitlines()
            raise ProofError(f"{defect.name}: {words[-1] if words else 'no word of pytest'}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ProofError(f"{defect.name}: {found['error']}")
        return build(Proof, found)

    def close(self) -> None:
        """Hang up, and see the process end."""
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
