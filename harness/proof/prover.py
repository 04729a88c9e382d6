"""Runs of the suite's tests on one defect after the other, from a process that has collected once.

    python -m harness.proof.prover SUITE FD

is that process; `Prover` is the other end of its socket.
"""

from __future__ import annotations

import socket
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.defects.catalogue import Defect, defects
from harness.inputs import build
from harness.proof.forks import ForkError, ForkingSession, ForkServer, serve, target_of
from harness.proof.proof import BESIDE, PER_MODULE, Proof, ProofError
from harness.pytestplugin.bench import BENCHES, TargetRun
from harness.report import statement_of
from harness.report.results import Results, Verdict, bare_name, plain_node

ENOUGH = "enough is known"
"""Reason of a fork's session that we have stopped before its end."""


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


class Session(ForkingSession):
    """Plugin of the session that is forked, and of the forks, each for one defect."""

    def __init__(self, control: socket.socket, suite: Path) -> None:
        super().__init__(control)
        self._suite = suite
        self.defect: Defect | None = None
        self._own: set[str] = set()
        self._untested: set[str] = set()
        self._beside = 0.0

    def become(self, session: pytest.Session, request: str) -> None:
        """Change the session in a fork into a session for this defect."""
        self.defect = defect = defects()[request]
        items = [item for item in session.items if target_of(item) == defect.target]
        name = f"{defect.target}+{defect.name}"
        session.config.stash[BENCHES] = {defect.target: TargetRun(name)}
        about = {item: statements(item) & set(defect.statements) for item in items}
        own = [item for item in items if about[item]]
        rest = [item for item in items if not about[item]]
        self._own = {plain_node(item.nodeid) for item in own}
        self._untested = set(defect.statements).difference(*about.values())
        session.items = (
            items if not defect.statements else [*own, *sample(rest, defect, self._suite)]
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Make SHOULDs strict for the defect's own statements only.

        The real device may break others.
        """
        item.config.option.vblk_strict_should = plain_node(item.nodeid) in self._own

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the report. One failure of a test of other statements is enough to stop."""
        self._collector.add(report)
        assert self.defect
        if self.defect.statements and plain_node(report.nodeid) not in self._own:
            self._beside += report.duration
            if report.failed or self._beside > BESIDE:
                self._session.shouldstop = ENOUGH

    def found(self, code: int) -> dict[str, Any]:
        """Return the proof, or why there is none."""
        assert self.defect
        stopped = self.defect.unusable or self._session.shouldstop == ENOUGH
        expected = (0, 1, 2) if stopped else (0, 1)
        if self._untested:
            return {"error": f"no test on {self.defect.target} checks {self._untested}"}
        if code in expected:
            return asdict(judged(self.defect, self._collector.results(True), self._own))
        return {"error": f"pytest ended with {code}: {self._session.shouldstop}"}


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
        self._suite = suite
        self._server = self._new()

    def _new(self) -> ForkServer:
        return ForkServer("harness.proof.prover", self._suite)

    def prove(self, defect: Defect) -> Proof:
        """Run the tests of a defect's statements on it, and in addition a sample of the others.

        On a harmless one, the whole suite. ProofError if that comes to no end
        within `forks.DEADLINE` seconds, or to no results.
        """
        try:
            return build(Proof, self._server.ask(defect.name))
        except ForkError as error:
            raise ProofError(str(error)) from None
        except BaseException:
            # The answer is still to come, and the next question would get it.
            self._server.close()
            self._server = self._new()
            raise

    def close(self) -> None:
        """Close the connection, and wait for the process to end."""
        self._server.close()


def main() -> int:
    """Collect the suite on every target that has a defect, and serve."""
    with socket.socket(fileno=int(sys.argv[2])) as control:
        suite = Path(sys.argv[1])
        targets = dict.fromkeys(defect.target for defect in defects().values())
        return serve(Session(control, suite), suite, list(targets))


if __name__ == "__main__":
    sys.exit(main())
