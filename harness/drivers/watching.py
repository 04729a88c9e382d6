"""A driver in a run of the suite: each scenario once, and the verdicts of all of them together.

Scenarios of some drivers share nothing, and wait for more than they do. They run ahead in threads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from harness import interrupt
from harness.drivers.base import CannotError, Launcher, Scenario, Watched
from harness.machine.errors import MachineError
from harness.machine.rundir import RunDir
from harness.targets.base import DeviceIdentity
from harness.witness.judge import Fate, Verdict

SHOWN = 3
"""Scenarios at most whose evidence, output and stream are shown."""


class WatchedDriver:
    """A driver, and what was seen of it. Nothing starts before the first scenario."""

    def __init__(
        self, launcher: Launcher, scenarios: Sequence[Scenario], ahead: Sequence[Scenario] = ()
    ) -> None:
        """`scenarios` decide on statements. `ahead` are all that will be asked for, in order."""
        self.launcher = launcher
        self._scenarios = scenarios
        self._ahead = ahead
        self._dir: RunDir | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._running: dict[str, Future[Watched]] = {}
        self._seen: dict[str, Watched | CannotError | MachineError] = {}
        self._shown: list[Watched] = []

    @property
    def traits(self) -> frozenset[str]:
        """Return the traits of the driver."""
        return self.launcher.traits

    def watch(self, scenario: Scenario) -> Watched:
        """Return the record of a scenario, which is executed once in a run.

        CannotError if it cannot take part. NotHereError if the machine lacks what it needs.
        MachineError for trouble of the harness, again at each call.
        """
        if scenario.name not in self._seen:
            # The whole run uses the record, and each wait for a driver has its own limit.
            with interrupt.paused():
                self.launcher.prepare()
                self._dir = self._dir or RunDir()
                try:
                    self._seen[scenario.name] = self._result(scenario, self._dir.path)
                except (CannotError, MachineError) as error:
                    self._seen[scenario.name] = error
        seen = self._seen[scenario.name]
        if isinstance(seen, Exception):
            raise seen.with_traceback(None)
        self._shown = [seen]
        return seen

    def _result(self, scenario: Scenario, directory: Path) -> Watched:
        """Return the record of a scenario, and let those after it run in the background."""
        # An illegal device is judged by limits of time: its scenario runs alone.
        most = self.launcher.at_once if scenario.legal else 1
        if most == 1:
            return self.launcher.watch(scenario, directory)
        self._pool = self._pool or ThreadPoolExecutor(most, "scenario")
        names = [following.name for following in self._ahead]
        at = names.index(scenario.name) if scenario.name in names else len(names)
        for each in (scenario, *self._ahead[at + 1 :]):
            if each.name in self._seen or each.name in self._running or not each.legal:
                continue
            if each is not scenario and sum(not f.done() for f in self._running.values()) >= most:
                break
            self._running[each.name] = self._pool.submit(self.launcher.watch, each, directory)
        return self._running.pop(scenario.name).result()

    def verdict(self, statement: str) -> Verdict:
        """Return the verdict of all scenarios on a statement: the worst of them."""
        evidence: list[str] = []
        broken: list[Watched] = []
        reason, checked = "the driver can take part in no scenario", 0
        for scenario in self._scenarios:
            try:
                watched = self.watch(scenario)
            except CannotError:
                continue
            verdict = watched.verdicts[statement]
            reason = verdict.reason
            checked += verdict.checked
            if verdict.fate is Fate.BROKEN:
                broken.append(watched)
                if len(broken) <= SHOWN:
                    evidence += (f"scenario {scenario.name}, {line}" for line in verdict.evidence)
        self._shown = broken
        if broken:
            if len(broken) > SHOWN:
                others = ", ".join(watched.scenario.name for watched in broken[SHOWN:])
                evidence.append(f"the same in the scenarios {others}")
            return Verdict(statement, Fate.BROKEN, evidence=tuple(evidence), checked=checked)
        if checked:
            return Verdict(statement, Fate.KEPT, checked=checked)
        return Verdict(statement, Fate.NOT_EXERCISED, reason)

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Return the implementation of the driver with its version."""
        numbers = re.findall(r"\d+", self.launcher.version())[:3]
        return (DeviceIdentity(self.launcher.implementation, tuple(map(int, numbers))),)

    def facts(self) -> dict[str, str]:
        """Return facts for the report of the whole run."""
        return {"driver": self.launcher.description, **self.launcher.facts()}

    def evidence(self) -> dict[str, str]:
        """Return the driver's output in the scenarios that were shown last."""
        return {
            f"output in the scenario {watched.scenario.name}": watched.output
            for watched in self._shown[:SHOWN]
            if watched.output
        }

    def logs(self) -> dict[str, str]:
        """Return the streams that were judged last, and the driver's output there."""
        logs = {}
        for watched in self._shown[:SHOWN]:
            logs[watched.stream.name] = watched.stream.read_text(encoding="utf-8")
            logs[f"{watched.scenario.name}.log"] = watched.output
        return logs

    def close(self) -> None:
        """End what runs and what the launcher has kept, and remove the streams."""
        try:
            self.launcher.given_up.set()
            if self._pool:
                self._pool.shutdown(cancel_futures=True)
            self.launcher.close()
        finally:
            if self._dir:
                self._dir.remove()
                self._dir = None
