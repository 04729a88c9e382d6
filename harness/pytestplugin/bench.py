"""The targets of a run, each with what the test that runs has on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from harness.diskspec import DiskSpec

if TYPE_CHECKING:
    from harness.targets import Disk, Plugged, Target
    from harness.targets.userfile import UserTarget


SPENT = "spent"
"""The attribute of a test's reports with what its disks took, in seconds.

"once" is for what is made once and kept, "start" for a guest, be it cloned or booted, and
"plug" for the disks themselves.
"""


@dataclass
class TargetRun:
    """A target of this run, once a test wanted it, and the disks of the test that runs."""

    name: str
    target: Target | None = None
    disks: list[Disk] = field(default_factory=list)
    failed: bool = False
    worked: bool = False
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    record: Callable[[str, object], None] = lambda name, value: None
    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """What goes on here is plugging, but for what the target makes and starts meanwhile."""
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

    def plug(self, spec: DiskSpec, writes: bool, session: pytest.Session) -> Plugged:
        """A disk of the target. If not even the run's first one is to be had, the run ends."""
        from harness.targets import LacksError, TargetError

        __tracebackhide__ = True
        assert self.target
        try:
            with self.measured():
                plugged = self.target.plug(spec, writes)
        except LacksError as error:
            pytest.skip(str(error))
        except TargetError as error:
            if not self.worked:
                session.shouldstop = str(error)
            raise error.with_traceback(None) from None  # where in the harness is of no interest
        if not self.worked:
            self.worked = True
            made_of = {
                one.implementation: ".".join(map(str, one.version))
                for one in self.target.identities()
            }
            self.said = {"facts": self.target.facts(), "implementations": made_of}
            for name, value in self.said["facts"].items():
                self.record(name, value)
        return plugged


BENCHES = pytest.StashKey[dict[str, TargetRun]]()
USER_TARGETS: pytest.StashKey[dict[str, UserTarget]] = pytest.StashKey()


def bench_of(item: pytest.Item) -> TargetRun | None:
    """The bench that a test runs on, None for a test that wants no disk."""
    callspec = getattr(item, "callspec", None)
    name = callspec.params.get("_bench") if callspec else None
    return item.config.stash[BENCHES][name] if name else None
