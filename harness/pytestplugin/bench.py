"""Targets of a run, each with the state of the test that runs on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from harness import interrupt
from harness.diskspec import DiskSpec
from harness.virtio.catalogue import SPECIFICATION

if TYPE_CHECKING:
    from harness.drivers.watching import WatchedDriver
    from harness.targets import Disk, Plugged, Target
    from harness.targets.userfile import UserTarget


SPENT = "spent"
"""Attribute of a test's reports that holds the time its disks took, in seconds.

"once" is the time for what is made once and kept, "start" the time to clone or boot a guest, and
"plug" the time to plug the disks.
"""


@dataclass
class TargetRun:
    """A target of this run, and the disks of the test that runs now.

    `target` is None until a test needs it. `requests` are the properties of requests to disks that
    the test has given back.

    `offers` and `lacks` are what earlier tests have found: the features that the device offers for
    a disk, and why there is no such disk. A test that will be skipped for one of them is skipped
    before a disk is plugged, which may take a machine of its own.
    """

    name: str
    target: Target | None = None
    disks: list[Disk] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    failed: bool = False
    worked: bool = False
    description: dict[str, dict[str, str]] = field(default_factory=dict)
    record: Callable[[str, object], None] = lambda name, value: None
    spent: dict[str, float] = field(default_factory=dict)
    offers: dict[str, int] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the time of this block as plugging, minus what the target prepares and starts."""
        assert self.target
        target, begun = self.target, time.monotonic()
        starting, preparing = target.starting, target.preparing
        try:
            yield
        finally:
            started, prepared = target.starting - starting, target.preparing - preparing
            self._spend("once", prepared)
            self._spend("start", started)
            self._spend("plug", time.monotonic() - begun - started - prepared)

    def _spend(self, on: str, seconds: float) -> None:
        self.spent[on] = self.spent.get(on, 0.0) + seconds

    def offered_before(self, specs: Sequence[DiskSpec], writes: bool) -> int | None:
        """Return the features that the device offered when these disks were asked for before.

        None if they never were, or if the disk has to be looked at.
        """
        return self.offers.get(_key(specs, writes)) if self._stays() else None

    def note_offered(self, specs: Sequence[DiskSpec], writes: bool, offered: int) -> None:
        """Remember the features that the device offers for the first disk of a test."""
        if len(self.disks) == 1:
            self.offers[_key(specs, writes)] = offered

    def plug(self, specs: Sequence[DiskSpec], writes: bool, session: pytest.Session) -> Plugged:
        """Plug a disk into the target: the first of `specs` that the target can provide.

        End the run if its very first disk cannot be plugged.
        """
        from harness.targets import LacksError, StartError, TargetError

        __tracebackhide__ = True
        assert self.target
        try:
            with self.measured():
                plugged = self._first(specs, writes)
        except LacksError as error:
            pytest.skip(str(error))
        except TargetError as error:
            over = error.over if isinstance(error, StartError) else not self.worked
            if over:
                session.shouldstop = str(error)
            raise error.with_traceback(
                None
            ) from None  # no traceback: the line in the harness does not help
        if not self.worked:
            self.worked = True
            implementations = {
                device.implementation: ".".join(map(str, device.version))
                for device in self.target.identities()
            }
            self.description = {"facts": self.target.facts(), "implementations": implementations}
            for name, value in self.description["facts"].items():
                self.record(name, value)
        return plugged

    def _first(self, specs: Sequence[DiskSpec], writes: bool) -> Plugged:
        """Plug the first disk that the target can provide. LacksError for the last of them."""
        from harness.targets import LacksError

        for spec in specs[:-1]:
            with suppress(LacksError):
                return self._provide(spec, writes)
        return self._provide(specs[-1], writes)

    def _stays(self) -> bool:
        """Return True if what a disk has, or that there is none, stays so.

        The second disk of a test may be lacking only because the first is in use. A device that
        somebody else runs keeps what tests have set.
        """
        assert self.target
        return not self.disks and self.target.made_to_order

    def _provide(self, spec: DiskSpec, writes: bool) -> Plugged:
        """Plug a disk. LacksError at once for one that the target did not have before."""
        from harness.targets import LacksError

        assert self.target
        key = _key([spec], writes)
        stays = self._stays()
        if stays and key in self.lacks:
            raise LacksError(self.lacks[key])
        try:
            return self.target.plug(spec, writes)
        except LacksError as error:
            if stays:
                self.lacks[key] = str(error)
            raise


def _key(specs: Sequence[DiskSpec], writes: bool) -> str:
    """Return a key for disks that a test asks for. A field may be a list, which has no hash."""
    return f"{specs} {writes}"


@dataclass
class DriverRun:
    """A driver of this run, with the state of the test that runs now.

    `target` is None until a test needs it.
    """

    name: str
    target: WatchedDriver | None = None
    disks: Sequence[Disk] = ()
    requests: Sequence[dict[str, Any]] = ()
    failed: bool = False
    started: bool = False
    refused: Exception | None = None
    description: dict[str, dict[str, str]] = field(default_factory=dict)
    record: Callable[[str, object], None] = lambda name, value: None
    spent: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """Find what the driver needs, once. NotHereError if this machine lacks it."""
        assert self.target
        if self.started:
            return
        if self.refused:  # a driver that does not boot takes minutes each time
            raise self.refused
        launcher = self.target.launcher
        try:
            with interrupt.paused():
                launcher.prepare()
        except Exception as error:
            self.refused = error
            raise
        self.started = True
        versions = {launcher.implementation: launcher.version()}
        self.description = {"facts": self.target.facts(), "implementations": versions}
        for name, value in self.description["facts"].items():
            self.record(name, value)


def let_record(
    run: TargetRun | DriverRun, only: bool, write: Callable[[str, object], None]
) -> None:
    """Have the run record properties of the whole suite in JUnit, under its name unless `only`."""

    def record(name: str, value: object) -> None:
        write(name if only else f"{run.name}.{name}", value)

    record("specification", SPECIFICATION)
    run.record = record


BENCHES = pytest.StashKey[dict[str, TargetRun]]()
DRIVERS = pytest.StashKey[dict[str, DriverRun]]()
USER_TARGETS: pytest.StashKey[dict[str, UserTarget]] = pytest.StashKey()


def bench_of(item: pytest.Item) -> TargetRun | DriverRun | None:
    """Return the target or driver that a test runs on, or None for a test without one."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return None
    if name := callspec.params.get("_driver"):
        return item.config.stash[DRIVERS][name]
    name = callspec.params.get("_bench")
    return item.config.stash[BENCHES][name] if name else None
