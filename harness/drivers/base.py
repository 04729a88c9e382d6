"""The types of launchers: a scenario, what a driver did in it, and the launcher itself."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.diskspec import SECTOR, DiskSpec
from harness.machine.errors import MachineError
from harness.model.illegal import ILLEGAL
from harness.model.whims import reshaped
from harness.targets.model import ModelProcess
from harness.witness.events import Event, Illegal, dumped, read
from harness.witness.judge import Verdict, judge

PAUSE = 0.02
"""Seconds between two checks of a condition that is awaited."""

DEADLINE = 60.0
"""Seconds that a step of a driver may take on a busy machine. A driver that hangs costs as much."""

QUIET = 10.0
"""Seconds after which a driver of an illegal device that does nothing has hung."""

PATIENCE = 45.0
"""Seconds that a step of a driver of an illegal device may take."""

AT_ONCE = min(2, os.cpu_count() or 1)
"""Scenarios at once of a driver whose scenarios share nothing. They wait for most of their time."""

USE = "use"
"""The work that each driver can do: it reads, and writes if it can."""


class NotHereError(Exception):
    """This machine lacks something that a driver needs; the message is one line."""


class CannotError(Exception):
    """A driver cannot do the work of a scenario; the message is one line."""


class Fate(StrEnum):
    """The fate of a driver in a scenario, the best first."""

    WENT_ON = "went on"
    REFUSED = "refused the device"
    HUNG = "hung"
    WRONG_DATA = "accepted wrong data"
    CRASHED = "crashed"

    @property
    def tolerable(self) -> bool:
        """Return whether an illegal device may have this effect on a driver."""
        return self in (Fate.WENT_ON, Fate.REFUSED)


class StuckError(Exception):
    """A driver failed: it gave up, or reported an error. The second argument is its output."""

    fate = Fate.REFUSED


class HungError(StuckError):
    """A driver did not do what was awaited in time; the message says what it was."""

    fate = Fate.HUNG


class WrongDataError(StuckError):
    """A driver took data that is not what it had written, and reported no error."""

    fate = Fate.WRONG_DATA


class CrashedError(StuckError):
    """A driver crashed: its process ended, or its kernel reports an oops or a panic."""

    fate = Fate.CRASHED


@dataclass(frozen=True)
class Scenario:
    """A disk, whims of the device, and the work of the driver.

    `disk` are fields of `DiskSpec`, and `whims` are names in `harness.model.whims`. `work` are
    names of work in the order in which it is done. A driver leaves out work that it cannot do.
    `about` are ids of statements that a driver keeps only if it works in this scenario. `needs` are
    the traits that a driver needs for it.
    """

    name: str
    text: str
    work: tuple[str, ...] = (USE,)
    disk: Mapping[str, Any] = field(default_factory=dict)
    whims: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    defects: tuple[str, ...] = ()
    illegal: tuple[str, ...] = ()
    section: str = ""

    @property
    def legal(self) -> bool:
        """Return whether the device keeps all rules."""
        return not self.defects and not self.illegal

    def spec(self, **more: Any) -> DiskSpec:
        """Return the disk of this scenario; `more` are fields that the driver has to have."""
        fields = {"capacity": 32 << 20 >> 9, **self.disk, **more}
        return reshaped(DiskSpec(**fields), self.whims)


@dataclass(frozen=True)
class Watched:
    """The record of a driver in a scenario: the stream, the verdicts, and its output.

    `trouble` says why the driver hung or failed; it is empty if it did neither. The verdicts are
    empty if the device was illegal. `met` is the number of illegal things that the device did, -1
    if that is not known.
    """

    scenario: Scenario
    stream: Path
    verdicts: dict[str, Verdict]
    trouble: str
    output: str
    fate: Fate = Fate.WENT_ON
    met: int = -1


class Place:
    """The disk that a driver works on: its socket, the file with its bytes, and its size."""

    def __init__(
        self,
        process: ModelProcess,
        spec: DiskSpec,
        way: str,
        busy: Path | None = None,
        given_up: threading.Event | None = None,
    ) -> None:
        """Add a disk to a model. MachineError if the model refuses.

        `busy` is a file that grows as long as the driver does something, if that matters.
        `given_up` ends each wait when it is set.
        """
        self._process = process
        self._busy = busy
        self._given_up = given_up or threading.Event()
        self.spec = spec
        self._name, self.socket, file = process.add(spec, way)
        assert file
        self.file = file

    @property
    def front_end(self) -> DiskSpec:
        """Return what QEMU's vhost-user front-end is told: not all versions know IN_ORDER."""
        return replace(self.spec, in_order=None)

    def read(self, sector: int, count: int) -> bytes:
        """Return the bytes of `count` sectors."""
        with self.file.open("rb") as disk:
            disk.seek(sector * SECTOR)
            return disk.read(count * SECTOR)

    def fill(self, sector: int, data: bytes) -> None:
        """Write bytes to the disk before a driver uses it."""
        with self.file.open("r+b") as disk:
            disk.seek(sector * SECTOR)
            disk.write(data)

    def resize(self, capacity: int) -> None:
        """Change the capacity in sectors, which the device announces."""
        self._process.resize(self._name, capacity)

    def check(self) -> None:
        """Raise MachineError if the device is gone."""
        self._process.check()

    def wait_for(
        self,
        condition: Callable[[], bool],
        what: str,
        output: Callable[[], str],
        seconds: float = DEADLINE,
    ) -> None:
        """Wait until a condition is true. HungError, with the output, if it is not in time.

        A driver of an illegal device has less time, and has hung if it does nothing for QUIET
        seconds. MachineError if the run ends.
        """

        def given_up_or_true() -> bool:
            if self._given_up.is_set():
                raise MachineError("the run has ended")
            return condition()

        if self._busy is None:
            wait_for(given_up_or_true, what, output, seconds)
            return
        size, since = -1, time.monotonic()

        def over() -> bool:
            nonlocal size, since
            if given_up_or_true():
                return True
            assert self._busy
            now = self._busy.stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() > since + QUIET:
                shown = last_line(output())
                words = f"did nothing for {QUIET:g} s; last output: {shown}"
                raise HungError(words, output())
            return False

        wait_for(over, what, output, min(seconds, PATIENCE))


class Launcher(ABC):
    """A driver by name: its start, its work, and its end.

    `implementation` is the name under which its deviations are filed. `way` is how it reaches the
    model, a key of `harness.model.main.CONNECT`. `works` are the kinds of work that it can do,
    and `traits` what a scenario may need: "pci", "vhost-user", "mmio", "packed", "legacy",
    "modern". `at_once` is the number of scenarios that may run at the same time, in threads.
    `given_up` is set at the end of a run, and ends scenarios that are still running.
    """

    name: str
    description: str
    implementation: str
    way: str = "vhost-user"
    works: frozenset[str] = frozenset({USE})
    traits: frozenset[str] = frozenset()
    at_once: int = 1
    disk: Mapping[str, Any] = {}
    """Fields that each disk of this driver has to have."""

    @cached_property
    def given_up(self) -> threading.Event:
        """The event that ends running scenarios."""
        return threading.Event()

    @abstractmethod
    def prepare(self) -> None:
        """Find the programs that the driver needs. NotHereError names the packages to install."""

    @abstractmethod
    def version(self) -> str:
        """Return the version of the driver, known after `prepare`."""

    @abstractmethod
    def drive(self, scenario: Scenario, place: Place) -> str:
        """Start the driver, let it do its work, and end it. Return its output.

        StuckError if it hangs or fails, with the output as its second argument.
        """

    def also_seen(self) -> Iterable[Event]:
        """Return what another source has seen of the driver in the last scenario."""
        return ()

    def facts(self) -> dict[str, str]:
        """Return facts for the report, known after `prepare`."""
        return {}

    def close(self) -> None:  # noqa: B027  (most launchers keep nothing)
        """End what was kept between scenarios."""

    def check(self, scenario: Scenario) -> None:
        """Raise CannotError if the driver cannot take part in a scenario."""
        if lacking := sorted(scenario.needs - self.traits):
            raise CannotError(f"{self.name} is not {', '.join(lacking)}")
        if not self.works.intersection(scenario.work):
            raise CannotError(f"{self.name} has no way to {' or '.join(scenario.work)}")
        if clash := {
            name for name, value in self.disk.items() if scenario.disk.get(name, value) != value
        }:
            raise CannotError(f"{self.name} needs another {', '.join(sorted(clash))} of the disk")

    def work_of(self, scenario: Scenario) -> tuple[str, ...]:
        """Return the work of a scenario that this driver can do."""
        return tuple(work for work in scenario.work if work in self.works)

    def watch(self, scenario: Scenario, directory: Path) -> Watched:
        """Let the driver take part in a scenario, and judge it.

        The stream becomes a new file in `directory`. MachineError for trouble of the harness.
        """
        self.check(scenario)
        stream = directory / f"{scenario.name}.jsonl"
        trouble, fate = "", Fate.WENT_ON
        process = ModelProcess(scenario.defects, scenario.whims, stream, scenario.illegal)
        try:
            busy = None if scenario.legal else stream
            place = Place(process, scenario.spec(**self.disk), self.way, busy, self.given_up)
            try:
                output = self.drive(scenario, place)
            except StuckError as error:
                trouble, output = str(error.args[0]), str(error.args[1])
                fate = error.fate
            place.check()
        finally:
            process.stop()
        add_events(stream, self.also_seen())
        return watched(scenario, stream, trouble, output, fate)


def add_events(stream: Path, events: Iterable[Event]) -> None:
    """Add the events of another source to a stream; its peers get numbers of their own."""
    found = list(events)
    if not found:
        return
    first = 1 + max((event.connection for event in read(stream)), default=-1)
    with stream.open("a", encoding="utf-8") as file:
        for event in found:
            file.write(dumped(replace(event, connection=first + event.connection)) + "\n")


def watched(scenario: Scenario, stream: Path, trouble: str, output: str, fate: Fate) -> Watched:
    """Return the record of a driver. It is judged by its stream if the device was legal."""
    events = read(stream)
    verdicts = judge(events) if scenario.legal else {}
    shown = any(ILLEGAL[name].shown for name in scenario.illegal)
    met = sum(isinstance(event, Illegal) for event in events) if shown else -1
    return Watched(scenario, stream, verdicts, trouble, output, fate, met)


def wait_for(
    condition: Callable[[], bool], what: str, output: Callable[[], str], seconds: float = DEADLINE
) -> None:
    """Wait until a condition is true. HungError, with the output, if it is not in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            shown = last_line(output())
            raise HungError(f"waited {seconds:g} s for {what}; last output: {shown}", output())
        time.sleep(PAUSE)


def last_line(output: str) -> str:
    """Return the last line of an output that is not empty, or "nothing"."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


class UnknownScenarioError(Exception):
    """There is no scenario of this name; the message is one line."""
