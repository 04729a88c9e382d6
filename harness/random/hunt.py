"""Examples, one after the other on as few disks as will do, and what they find."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import inf
from typing import Generic, Protocol, TypeVar

from harness import interrupt
from harness.diskspec import SECTOR, DiskSpec
from harness.driver.errors import DriverError
from harness.driver.interface import REQUEST_TIMEOUT
from harness.random.cut import cut
from harness.random.finding import Finding, Known
from harness.random.hostile import HostileSession
from harness.random.illegal import Mischief
from harness.random.legal import objection
from harness.random.operations import Operation, Plug
from harness.random.session import Session
from harness.random.shape import Shape, shape_of
from harness.robustness.process_watch import DYING, ProcessWatch
from harness.targets import Disk, LacksError, Target, TargetError

TROUBLE = (DriverError, TargetError, OSError)
"""What the harness raises if the device, or what carries it, is gone or does not answer."""

SERVES_ON = frozenset({"contents", "generation", "identity", "used-length", "writeback"})
"""Checks after whose failure a reset makes the device as good as new. While hypothesis shrinks
a failure, most of its examples fail: a new QEMU for each would take most of the time."""

PATIENCE = 60.0
"""Seconds that a failure is shrunk for. Every example that does not end well takes its time."""

USES = 200
"""Examples on one disk, if none fails."""


@dataclass
class Found:
    """The shortest script that led to a finding, and how often that came."""

    finding: Finding
    script: tuple[Operation, ...]
    times: int = 1
    again: bool = False
    """Whether the script led there once more, on a disk of its own."""


@dataclass
class Tally:
    """What a hunt has done so far."""

    examples: int = 0
    operations: int = 0
    requests: int = 0
    disks: int = 0
    seconds: float = 0.0
    known: Counter[str] = field(default_factory=Counter)
    """By signature, how often a finding came that was recorded, or found in an earlier round."""


class IllegalError(Exception):
    """A legal driver may not do an operation of a script; one line."""


class Hunt:
    """Plays examples on a target. Findings of the round that runs are `fresh`."""

    def __init__(self, target: Target, deadline: float = REQUEST_TIMEOUT) -> None:
        """`deadline` is for every wait of an example, in seconds."""
        self.target = target
        self.deadline = deadline
        self.tally = Tally()
        self.found: dict[str, Found] = {}
        self.fresh: dict[str, Found] = {}
        self.at_first: Callable[[Finding], None] = lambda finding: None
        """Called with what is news, before it is shrunk."""
        self.wrap: Callable[[Disk], Disk] = lambda disk: disk
        """For tests: puts a broken driver on a disk."""
        self._disk: Disk | None = None
        self._plug: Plug | None = None
        self._uses = 0
        self._until = inf
        self._known: Known | None = None
        self._shapes: dict[Plug, Shape] = {}

    @property
    def known(self) -> Known:
        """The recorded deviations of the target; it has plugged a disk by then."""
        if self._known is None:
            self._known = Known.of(self.target.identities(), self.target.name)
        return self._known

    def shape(self, plug: Plug) -> Shape:
        """What a kind of disk allows. LacksError if the target has no such disk."""
        if plug not in self._shapes:
            disk = self._take(plug)
            self._shapes[plug] = shape_of(disk, "legacy" in self.target.traits, self.known)
        return self._shapes[plug]

    def legal(self, plug: Plug, news: bool = True) -> Example[Session]:
        """The beginning of an example, on a disk that nothing has been written to."""
        disk = self._take(plug)
        self._uses += 1
        session = Session(disk, self._host_sees(disk), self.known, self.deadline)
        return Example(self, plug, session, news)

    def hostile(self, plug: Plug, news: bool = True) -> Example[HostileSession]:
        """The same for a driver that keeps to no rule."""
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
        """Make a session's disk as good as new, or drop it."""
        try:
            session.disk.driver.reset()
            if not self._host_sees(session.disk):
                return
            if session.capacity != plug.capacity:
                session.disk.resize(plug.capacity)
                if session.disk.driver.config().capacity != plug.capacity:
                    self.drop()  # not every device hears of it before DRIVER_OK (finding 17)
                    return
            # All of it: what went to the wrong place is there too.
            session.disk.backing.write(0, bytes(plug.capacity * SECTOR))
        except TROUBLE:
            self.drop()

    def drop(self) -> None:
        """Take the disk out, whatever its state."""
        disk, self._disk = self._disk, None
        if disk:
            with suppress(*TROUBLE):
                disk.unplug()

    def trouble(self, error: Exception) -> Finding:
        """What an error of the harness says about the device."""
        try:
            if self._disk:
                ProcessWatch(self._disk.processes()).crash(
                    DYING
                )  # its sockets close before it has ended
            self.target.check()
        except TargetError as gone:
            words = "\n".join(text for text in self.target.evidence().values() if text)
            return Finding("alive", "5.2.6", str(gone), f"{error}\n{words}")
        message = error.message if isinstance(error, DriverError) else str(error)
        return Finding("answers", "5.2.6", message, str(error))

    def note(self, finding: Finding, script: list[Operation]) -> bool:
        """Keep a finding; whether it is news. What is not ends its example, and no more."""
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
        """Whether what there is of the round's examples is enough."""
        return time.monotonic() > self._until

    def settle(self) -> list[Found]:
        """The round is over: what was fresh is tried once more, cut, and known from now on.

        The shortest comes first: hypothesis shrinks one finding of a round, as far as it gets in
        its time, the others came up on the way and may be the same thing seen from elsewhere.
        """
        fresh, self.fresh = self.fresh, {}
        self._until = inf
        for found in fresh.values():
            found.again = self._comes_again(found, found.script)
            if found.again:
                found.script = cut(found.script, partial(self._comes_again, found))
        self.drop()
        self.found |= fresh
        return sorted(fresh.values(), key=lambda found: len(found.script))

    def _comes_again(self, found: Found, script: Sequence[Operation]) -> bool:
        """Whether a script leads there too, on a new disk; then `found` has how it looked now.

        One that something was left out of may be legal no more, and leads nowhere then.
        """
        self.drop()
        example, legal = self._begin(script), True
        for operation in script[1:]:
            if example.finding is None and isinstance(example.session, Session):
                legal = legal and not objection(operation, example.session, example.shape)
            if legal:
                example.play(operation)
        example.end()
        again = example.finding
        if not legal or again is None or again.signature != found.finding.signature:
            return False
        if self.known.explains(again):
            return False
        found.finding = again
        return True

    def replay(self, script: Sequence[Operation]) -> Finding | None:
        """Play a whole script and return its finding, also a recorded one.

        Raises IllegalError at an operation of a legal script that is not legal there.
        """
        plug = script[0]
        assert isinstance(plug, Plug)
        # What a recorded deviation makes useless is legal all the same.
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
    """What an example needs of a session, be it a legal or a hostile one."""

    disk: Disk
    capacity: int
    requests: int

    def play(self, operation: Operation) -> None:
        """Do one operation; Finding for what the device must not do."""

    def finish(self) -> None:
        """Look at all that can be looked at only now; Finding likewise."""

    def guarded(self) -> AbstractContextManager[None]:
        """What has to last as long as the example does."""

    def give_up(self) -> None:
        """Make sure that the disk can be taken out after a failure."""


S = TypeVar("S", bound=Playing)


class Example(Generic[S]):
    """One script as it comes to be. Raises Finding for what is news, unless told not to."""

    def __init__(self, hunt: Hunt, plug: Plug, session: S, news: bool = True) -> None:
        """`session` has just begun, on a disk like `plug`; `news` is whether to raise any."""
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
        """The next operation; nothing, once the example has failed or nobody waits for it."""
        if self.finding or self.hunt.impatient:
            return
        self.script.append(operation)
        self.hunt.tally.operations += 1
        self._guarded(lambda: self.session.play(operation))

    def end(self) -> None:
        """Look at the whole, and give the disk back."""
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
        if self._news and self.hunt.note(finding, self.script):
            raise finding
