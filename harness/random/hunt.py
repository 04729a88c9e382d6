"""Examples, played one after the other on as few disks as possible, and their findings."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import inf
from typing import Any, Generic, Protocol, TypeVar

from harness import interrupt
from harness.diskspec import SECTOR, DiskSpec
from harness.driver.errors import DriverError
from harness.driver.interface import REQUEST_TIMEOUT
from harness.random.cut import SECONDS, cut
from harness.random.finding import Finding, Known
from harness.random.hostile import HostileSession
from harness.random.illegal import Mischief
from harness.random.legal import objection
from harness.random.operations import Operation, Plug
from harness.random.session import Session
from harness.random.shape import Shape, shape_of
from harness.report.failure import requests_of
from harness.report.trace import events_of
from harness.robustness.process_watch import DYING, ProcessWatch
from harness.targets import Disk, LacksError, Target, TargetError
from harness.witness.events import Event

TROUBLE = (DriverError, TargetError, OSError)
"""Errors of the harness if the device, or its process, is gone or does not answer."""

SERVES_ON = frozenset({"contents", "generation", "identity", "used-length", "writeback"})
"""Checks after whose failure a reset restores the device.

While hypothesis shrinks a failure, most of its examples fail. A new QEMU for each would take most
of the time.
"""

PATIENCE = 30.0
"""Seconds for which a failure is shrunk. Every example that fails takes time."""

USES = 200
"""Number of examples on one disk, if none fails."""


@dataclass
class Found:
    """The shortest script that led to a finding, and the number of examples with this finding."""

    finding: Finding
    script: tuple[Operation, ...]
    times: int = 1
    again: bool = False
    """True if the script led to the finding once more, on a new disk."""


@dataclass
class Tally:
    """Counters of a hunt so far."""

    examples: int = 0
    operations: int = 0
    requests: int = 0
    disks: int = 0
    seconds: float = 0.0
    known: Counter[str] = field(default_factory=Counter)
    """Signature -> number of findings that were recorded, or found in an earlier round."""


class IllegalError(Exception):
    """A legal driver may not do an operation of a script; one line."""


class Hunt:
    """Plays examples on a target. Findings of the present round are in `fresh`."""

    def __init__(self, target: Target, deadline: float = REQUEST_TIMEOUT) -> None:
        """Prepare a hunt; `deadline` limits every wait of an example, in seconds."""
        self.target = target
        self.deadline = deadline
        self.tally = Tally()
        self.found: dict[str, Found] = {}
        self.fresh: dict[str, Found] = {}
        self.at_first: Callable[[Finding], None] = lambda finding: None
        """Function that is called with a new finding before it is shrunk."""
        self.wrap: Callable[[Disk], Disk] = lambda disk: disk
        """Hook for tests: replaces the driver of a disk with a broken one."""
        self.traced = False
        """True if `events` is wanted; to fetch them takes time."""
        self.events: list[Event] = []
        """Events at the driver of the last example with a finding, up to the finding."""
        self.requests: list[dict[str, Any]] = []
        """Properties of the last requests before the last finding, unless a guest sent them."""
        self._disk: Disk | None = None
        self._plug: Plug | None = None
        self._uses = 0
        self._until = inf
        self._known: Known | None = None
        self._shapes: dict[Plug, Shape] = {}

    @property
    def known(self) -> Known:
        """Return the recorded deviations of the target, which must have plugged a disk before."""
        if self._known is None:
            self._known = Known.of(self.target)
        return self._known

    def shape(self, plug: Plug) -> Shape:
        """Return the shape of a kind of disk. Raise LacksError if the target has no such disk."""
        if plug not in self._shapes:
            disk = self._take(plug)
            self._shapes[plug] = shape_of(disk, "legacy" in self.target.traits, self.known)
        return self._shapes[plug]

    def legal(self, plug: Plug, news: bool = True) -> Example[Session]:
        """Begin an example of a legal driver, on a disk that nothing has been written to."""
        disk = self._take(plug)
        self._uses += 1
        session = Session(disk, self._host_sees(disk), self.known, self.deadline)
        return Example(self, plug, session, news)

    def hostile(self, plug: Plug, news: bool = True) -> Example[HostileSession]:
        """Begin an example of a driver that follows no rule."""
        disk = self._take(plug)
        self._uses += 1
        return Example(self, plug, HostileSession(disk), news)

    def _take(self, plug: Plug) -> Disk:
        if self._disk and (self._plug != plug or self._uses >= USES):
            self.drop()
        if self._disk is None:
            spec = DiskSpec(**asdict(plug))
            self._disk = self.wrap(Disk(self.target.plug(spec)))
            self._plug, self._uses = plug, 0
            self.tally.disks += 1
        return self._disk

    def as_found(self, wanted: Sequence[Plug]) -> list[Plug]:
        """Return kinds of disk that a device with fixed properties may be, `wanted` for others.

        TargetError if there is no device.
        """
        if self.target.made_to_order:
            return list(wanted)
        disk = self.target.plug(DiskSpec())
        disk.unplug()
        capacity = disk.spec.capacity
        kinds = (replace(plug, capacity=capacity, serial=None, iops=None) for plug in wanted)
        return list(dict.fromkeys(kinds))

    def _host_sees(self, disk: Disk) -> bool:
        """Return True for a disk of ours: it begins with zeroes, and the host can write them."""
        try:
            return self.target.made_to_order and disk.backing.size >= 0
        except LacksError:
            return False

    def wipe(self, session: Playing, plug: Plug) -> None:
        """Restore a session's disk to its first state, or drop it."""
        try:
            session.disk.driver.reset()
            if not self._host_sees(session.disk):
                return
            if session.capacity != plug.capacity:
                session.disk.resize(plug.capacity)
                if session.disk.driver.config().capacity != plug.capacity:
                    self.drop()  # some devices do not notice a resize before DRIVER_OK (finding 17)
                    return
            # All of it, because data in the wrong place has to go, too.
            session.disk.backing.write(0, bytes(plug.capacity * SECTOR))
        except TROUBLE:
            self.drop()

    def drop(self) -> None:
        """Unplug the disk, whatever its state."""
        disk, self._disk = self._disk, None
        if disk:
            with suppress(*TROUBLE):
                disk.unplug()

    def trouble(self, error: Exception) -> Finding:
        """Convert an error of the harness to a finding about the device."""
        try:
            if self._disk:
                ProcessWatch(self._disk.processes()).crash(
                    DYING
                )  # its sockets close before the process has ended
            self.target.check()
        except TargetError as gone:
            words = "\n".join(text for text in self.target.evidence().values() if text)
            return Finding("alive", "5.2.6", str(gone), f"{error}\n{words}")
        message = error.message if isinstance(error, DriverError) else str(error)
        return Finding("answers", "5.2.6", message, str(error))

    def note(self, finding: Finding, script: list[Operation]) -> bool:
        """Keep a finding. Return False if it is already known; that only ends its example."""
        signature = finding.signature
        if signature in self.found:
            self.found[signature].times += 1
            self.tally.known[signature] += 1
            return False
        if deviation := self.known.explains(finding):
            self.tally.known[f"{signature} (recorded: {deviation.clause})"] += 1
            return False
        best = self.fresh.get(signature)
        if best is None:
            if not self.fresh:
                self._until = time.monotonic() + PATIENCE
            self.fresh[signature] = Found(finding, tuple(script))
            self.at_first(finding)
        else:
            best.times += 1
            if len(script) <= len(best.script):
                best.finding, best.script = finding, tuple(script)
        return True

    @property
    def impatient(self) -> bool:
        """Return True when PATIENCE has run out after the first finding of this round.

        Remaining operations are skipped then.
        """
        return time.monotonic() > self._until

    def settle(self) -> list[Found]:
        """End the round: play each fresh finding's script once more, cut it, and mark it as known.

        All scripts together are cut for at most `cut.SECONDS`. The shortest is first. Hypothesis
        shrinks one finding of a round, as far as its time allows; the others appeared on the way,
        and may have the same cause.
        """
        fresh, self.fresh = self.fresh, {}
        self._until = inf
        until = time.monotonic() + SECONDS
        for found in fresh.values():
            found.again = self._comes_again(found, found.script)
            if found.again:
                finds = partial(self._comes_again, found)
                found.script = cut(found.script, finds, seconds=until - time.monotonic())
        self.drop()
        self.found |= fresh
        return sorted(fresh.values(), key=lambda found: len(found.script))

    def _comes_again(self, found: Found, script: Sequence[Operation]) -> bool:
        """Return True if a script leads to the same finding on a new disk; update `found` from it.

        A script from which operations were removed may be illegal; then it leads to no finding.
        """
        self.drop()
        example, legal = self._begin(script), True
        for operation in script[1:]:
            if example.finding is None and isinstance(example.session, Session):
                legal = legal and not objection(operation, example.session, example.shape)
            if legal:
                example.play(operation)
        example.end()
        repeated = example.finding
        if not legal or repeated is None or repeated.signature != found.finding.signature:
            return False
        if self.known.explains(repeated):
            return False
        found.finding = repeated
        return True

    def replay(self, script: Sequence[Operation]) -> Finding | None:
        """Play a whole script and return its finding, also a recorded one.

        Raises IllegalError at an operation of a legal script that is not legal there.
        """
        plug = script[0]
        assert isinstance(plug, Plug)
        # An operation that a recorded deviation makes useless is still legal.
        shape = shape_of(self._take(plug), "legacy" in self.target.traits, Known())
        example = self._begin(script)
        for number, operation in enumerate(script[1:], 2):
            if (
                example.finding is None
                and isinstance(example.session, Session)
                and (why := objection(operation, example.session, shape))
            ):
                raise IllegalError(f"operation {number}, {type(operation).__name__}: {why}")
            example.play(operation)
        example.end()
        return example.finding

    def _begin(self, script: Sequence[Operation]) -> Example[Session] | Example[HostileSession]:
        plug = script[0]
        assert isinstance(plug, Plug)
        hostile = any(isinstance(operation, Mischief) for operation in script)
        return self.hostile(plug, False) if hostile else self.legal(plug, False)


class Playing(Protocol):
    """Interface that an example needs of a session, legal or hostile."""

    disk: Disk
    capacity: int
    requests: int

    def play(self, operation: Operation) -> None:
        """Do one operation. Raise Finding for a violation by the device."""

    def finish(self) -> None:
        """Check what can only be checked at the end. Raise Finding for a violation."""

    def guarded(self) -> AbstractContextManager[None]:
        """Return a context that lasts as long as the example."""

    def give_up(self) -> None:
        """Make sure that the disk can be unplugged after a failure."""


S = TypeVar("S", bound=Playing)


class Example(Generic[S]):
    """One script while it is played. New findings are raised, unless `news` is False."""

    def __init__(self, hunt: Hunt, plug: Plug, session: S, news: bool = True) -> None:
        """Begin with a new `session` on a disk like `plug`; with `news` new findings are raised."""
        self.hunt = hunt
        self.plug = plug
        self.shape = hunt.shape(plug)
        self.session = session
        self.script: list[Operation] = [plug]
        self.finding: Finding | None = None
        self._news = news
        self._given_up = False
        self._begun = time.monotonic()
        self._guard = ExitStack()
        self._guard.enter_context(session.guarded())

    def play(self, operation: Operation) -> None:
        """Play the next operation; do nothing after a failure or when the time is over."""
        if self.finding or self.hunt.impatient:
            return
        self.script.append(operation)
        self.hunt.tally.operations += 1
        self._guarded(lambda: self.session.play(operation))

    def end(self) -> None:
        """Do the final checks, and return the disk."""
        if self._given_up or interrupt.received() is not None:
            # An exchange with the device may be half done, which is no fault of the device.
            self.hunt.drop()
            self._guard.close()
            return
        try:
            if not self.finding and not self.hunt.impatient:
                self._guarded(self.session.finish)
        finally:
            tally = self.hunt.tally
            tally.examples += 1
            tally.requests += self.session.requests
            tally.seconds += time.monotonic() - self._begun
            if self.finding is None or self.finding.check in SERVES_ON:
                self.hunt.wipe(self.session, self.plug)
            else:
                self.session.give_up()
                self.hunt.drop()
            self._guard.close()

    def _guarded(self, act: Callable[[], None]) -> None:
        interrupt.check()
        try:
            act()
        except Finding as finding:
            self._failed(finding)
        except TROUBLE as error:
            interrupt.check()
            self._failed(self.hunt.trouble(error))
        except BaseException:  # Ctrl-C, or a deadline
            self._given_up = True
            raise

    def _failed(self, finding: Finding) -> None:
        self.finding = finding
        self.hunt.requests = requests_of([self.session.disk], failed=False)
        if self.hunt.traced:
            self.hunt.events = events_of(self.session.disk)
        if self._news and self.hunt.note(finding, self.script):
            raise finding
