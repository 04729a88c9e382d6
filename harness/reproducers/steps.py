"""The steps of a trace that another program can repeat: what is written, and what has to be seen.

A step says nothing of virtqueues: chains and positions have become bytes at addresses.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.driver.interface import CANARY
from harness.report.causes import GONE
from harness.report.trace import marked
from harness.virtio.ring import (
    DESC,
    DESC_F_WRITE,
    DESC_SIZE,
    PACKED_DESC,
    avail_size,
    used_size,
)
from harness.witness.events import (
    About,
    Answer,
    Available,
    Chain,
    Completed,
    Contents,
    Event,
    Failed,
    Interrupt,
    Loaded,
    Made,
    Message,
    Notified,
    Place,
    Qmp,
    Register,
    Started,
    Stored,
    Used,
    Waited,
    Zeroed,
)

GAP = 0.05
"""Seconds between two events from which on they are a wait of the test."""

PATIENCE = 0.2
"""Seconds after a notification in which the device works, at least."""

LONGEST = 3.0
"""Seconds that a step waits at most."""

COMPARED = 512
"""Bytes of memory that a check compares at most."""


UNSEEN = re.compile(r"^grew: |\d bytes of .* changed, the first at \+")
"""Failures of hardening tests that no event of a trace shows: of all memory, and of the process."""


class NotPossibleError(Exception):
    """Error of a trace that cannot be exported. The message is one line with the reason."""


@dataclass(frozen=True)
class Write:
    """Bytes that are written to memory."""

    address: int
    data: bytes


@dataclass(frozen=True)
class Fill:
    """Memory that is set to one byte."""

    address: int
    length: int
    byte: int = 0


@dataclass(frozen=True)
class Access:
    """An access to an area of registers; a read has the value that was seen."""

    area: str
    offset: int
    width: int
    value: int
    write: bool
    words: str
    marked: bool = False


@dataclass(frozen=True)
class Send:
    """A vhost-user message, and the answer to it; None if it has none."""

    request: int
    flags: int
    payload: bytes
    answer: bytes | None
    words: str
    marked: bool = False


@dataclass(frozen=True)
class Kick:
    """A signal on the kick descriptor of a virtqueue of vhost-user."""

    queue: int


@dataclass(frozen=True)
class Calls:
    """The signals that a vhost-user back-end has sent for a virtqueue since the last look."""

    queue: int
    count: int
    words: str
    marked: bool = False


@dataclass(frozen=True)
class Pause:
    """A wait, in seconds."""

    seconds: float


@dataclass(frozen=True)
class Check:
    """Memory that has to be as it was in the test."""

    address: int
    data: bytes
    words: str
    marked: bool = False


@dataclass(frozen=True)
class Until:
    """A wait until memory is as it was in the test, for some seconds at most."""

    address: int
    data: bytes


@dataclass(frozen=True)
class Command:
    """A QMP command to the machine or the daemon."""

    command: str
    arguments: dict[str, Any]


Step = Write | Fill | Access | Send | Kick | Calls | Pause | Check | Until | Command


@dataclass(frozen=True)
class Plan:
    """All that a reproducer needs: the test, how the device is made, places, and the steps.

    `contents` are (sector, bytes) that the file of the disk has before the start. `dies` says that
    the device has ended, which is then all that has to be seen.
    """

    about: About
    failed: Failed
    parts: dict[str, dict[str, Any]]
    places: dict[str, Place]
    contents: list[tuple[int, bytes]]
    steps: list[Step]
    dies: bool = False


class _Queue:
    """Positions in a virtqueue."""

    def __init__(self, started: Started) -> None:
        self.ring = started
        self.packed = started.format == "packed"
        self.available = self.used = 0
        self.chains: dict[int, Chain] = {}
        self.kept: dict[int, Chain] = {}

    def areas(self) -> tuple[tuple[int, int], ...]:
        """Return address and length of the three areas."""
        ring, size = self.ring, self.ring.size
        driver, device = (4, 4) if self.packed else (avail_size(size), used_size(size))
        return (ring.desc, DESC_SIZE * size), (ring.driver, driver), (ring.device, device)


class _Planner:
    def __init__(self, bad: frozenset[int]) -> None:
        self._bad = bad
        self._queues: dict[int, _Queue] = {}
        self._waited = True
        self.parts: dict[str, dict[str, Any]] = {}
        self.places: dict[str, Place] = {}
        self.contents: list[tuple[int, bytes]] = []

    def steps(self, events: Sequence[Event]) -> Iterator[Step]:
        """Yield the steps of the events, in their order."""
        makers: dict[type[Event], Callable[..., Iterator[Step]]] = {
            Stored: self._stored,
            Zeroed: lambda event, bad: iter([Fill(event.address, event.length)]),
            Started: self._started,
            Chain: self._chain,
            Available: self._available,
            Used: self._used,
            Completed: self._completed,
            Loaded: self._loaded,
            Register: self._register,
            Notified: self._notified,
            Interrupt: self._interrupt,
            Waited: self._nothing_used,
            Qmp: self._qmp,
        }
        attached, last = False, 0.0
        answers = _answers(events)
        for number, event in enumerate(events):
            if isinstance(event, Place):
                self.places[event.area] = event
                attached = True
                continue
            if isinstance(event, Made):
                self.parts[event.part] = json.loads(event.options)
                continue
            if isinstance(event, Message):
                attached = True
                at, answer = answers.get(number, (-1, None))
                yield from self._message(event, answer, at in self._bad)
            if isinstance(event, Contents):
                if event.length != len(event.data) // 2:
                    raise NotPossibleError("the trace has only a part of the disk's contents")
                if attached and any(type(step) is Used for step in events[:number]):
                    raise NotPossibleError("the test writes to the disk's file in between")
                self.contents.append((event.sector, bytes.fromhex(event.data)))
                continue
            if not attached:
                continue
            if last and event.time - last > GAP and not isinstance(event, Failed | Waited):
                yield Pause(min(event.time - last, LONGEST))
                self._waited = True
            last = event.time or last
            if maker := makers.get(type(event)):
                yield from maker(event, number in self._bad)

    def _stored(self, event: Stored, bad: bool) -> Iterator[Step]:
        del bad
        data = bytes.fromhex(event.data)
        if event.length > len(data):
            yield Fill(event.address, event.length, CANARY)
        yield Write(event.address, data)

    def _started(self, event: Started, bad: bool) -> Iterator[Step]:
        del bad
        queue = self._queues[event.queue] = _Queue(event)
        for address, length in queue.areas():
            yield Fill(address, length)

    def _chain(self, event: Chain, bad: bool) -> Iterator[Step]:
        del bad
        queue = self._of(event.queue)
        queue.chains[event.head] = queue.kept[event.head] = event
        for slot, address, length, flags, following in event.table:
            data = _descriptor(queue.packed, address, length, flags, following)
            yield Write(event.table_at + DESC_SIZE * slot, data)
        for number, (slot, address, length, flags, following) in enumerate(event.descriptors):
            data = _descriptor(queue.packed, address, length, flags, following)
            at = queue.ring.desc + DESC_SIZE * slot
            # The first flags of a packed chain make it available.
            yield Write(at, data[:14] if queue.packed and not number else data)

    def _of(self, number: int) -> _Queue:
        if number not in self._queues:
            raise NotPossibleError(f"the trace does not have the start of virtqueue {number}")
        return self._queues[number]

    def _available(self, event: Available, bad: bool) -> Iterator[Step]:
        del bad
        queue = self._of(event.queue)
        ring = queue.ring
        self._waited = False
        if queue.packed:
            for head in reversed(event.heads):
                slot, _, _, flags, _ = queue.chains[head].descriptors[0]
                yield Write(ring.desc + DESC_SIZE * slot + 14, flags.to_bytes(2, "little"))
            return
        for head in event.heads:
            at = ring.driver + 4 + 2 * (queue.available % ring.size)
            yield Write(at, head.to_bytes(2, "little"))
            queue.available = (queue.available + 1) & 0xFFFF
        yield Write(ring.driver + 2, queue.available.to_bytes(2, "little"))

    def _wait(self) -> Iterator[Step]:
        """Yield a pause if something was made available since the last one."""
        if not self._waited:
            self._waited = True
            yield Pause(PATIENCE)

    def _used(self, event: Used, bad: bool) -> Iterator[Step]:
        queue = self._of(event.queue)
        ring, size = queue.ring, queue.ring.size
        self._waited = True
        words = f"virtqueue {event.queue}: chain {event.id} is used, length {event.length}"
        length = event.length.to_bytes(4, "little")
        if queue.packed:
            at = ring.desc + DESC_SIZE * (queue.used % size)
            at, data = at + 8, length + event.id.to_bytes(2, "little")
            chain = queue.chains.get(event.id)
            queue.used = (queue.used + (len(chain.descriptors) if chain else 1)) % (2 * size)
        else:
            at = ring.device + 4 + 8 * (queue.used % size)
            data = event.id.to_bytes(4, "little") + length
            queue.used = (queue.used + 1) & 0xFFFF
        yield Check(at, data, words, True) if bad else Until(at, data)
        queue.chains.pop(event.id, None)

    def _completed(self, event: Completed, bad: bool) -> Iterator[Step]:
        if event.damage:
            raise NotPossibleError("the device changed memory that it must not: see the trace")
        yield Check(
            event.status_at, bytes([event.status]), f"the status byte is {event.status:#x}", bad
        )
        chain, data = self._of(event.queue).kept.get(event.id), bytes.fromhex(event.data)
        if chain is None:
            return
        for _, address, length, flags, _ in chain.table or chain.descriptors:
            if flags & DESC_F_WRITE and (piece := data[:length]):
                data = data[length:]
                words = f"the first bytes of the {length} at {address:#x}"
                yield Check(address, piece[:COMPARED], words, bad)

    def _loaded(self, event: Loaded, bad: bool) -> Iterator[Step]:
        yield from self._wait()
        words = f"{event.length} bytes at {event.address:#x}"
        yield Check(event.address, bytes.fromhex(event.data)[:COMPARED], words, bad)

    def _register(self, event: Register, bad: bool) -> Iterator[Step]:
        if event.area == "pci" and event.width > 4:
            return  # a structure that the driver reads when it looks for the device
        yield Access(
            event.area, event.offset, event.width, event.value, event.write, str(event), bad
        )

    def _notified(self, event: Notified, bad: bool) -> Iterator[Step]:
        del bad
        self._waited = False
        if event.width == 0:
            yield Kick(event.queue)

    def _interrupt(self, event: Interrupt, bad: bool) -> Iterator[Step]:
        if event.queue >= 0:
            yield from self._wait()
            words = f"virtqueue {event.queue} was signalled {event.count} times"
            yield Calls(event.queue, event.count, words, bad)

    def _nothing_used(self, event: Waited, bad: bool) -> Iterator[Step]:
        """Yield checks that nothing more is used, after a wait that has ended in vain."""
        yield Pause(LONGEST)
        for number, queue in self._queues.items():
            if queue.packed:
                continue
            words = f"virtqueue {number}: the used index stays {queue.used} ({event.text})"
            yield Check(queue.ring.device + 2, queue.used.to_bytes(2, "little"), words, bad)

    @staticmethod
    def _message(event: Message, answer: Answer | None, bad: bool) -> Iterator[Step]:
        payload = bytes.fromhex(answer.payload) if answer else b""
        yield Send(
            event.request,
            event.flags,
            bytes.fromhex(event.payload),
            payload if answer else None,
            f"{event.name} is answered with {payload.hex()}",
            bad,
        )

    @staticmethod
    def _qmp(event: Qmp, bad: bool) -> Iterator[Step]:
        del bad
        yield Command(event.command, json.loads(event.arguments))


def _answers(events: Sequence[Event]) -> dict[int, tuple[int, Answer]]:
    """Return the answer to each message that has one, with its number, by the message's number.

    Several messages may go together, before the answer to the first of them.
    """
    answers: dict[int, tuple[int, Answer]] = {}
    waiting = deque[tuple[int, Message]]()
    for number, event in enumerate(events):
        if isinstance(event, Message):
            waiting.append((number, event))
        while isinstance(event, Answer) and waiting:
            at, message = waiting.popleft()
            if message.request == event.request:
                answers[at] = number, event
                break
    return answers


def _descriptor(packed: bool, address: int, length: int, flags: int, following: int) -> bytes:
    if packed:
        return PACKED_DESC.pack(address, length, following, flags)
    return DESC.pack(address, length, flags, following)


def plan(events: Sequence[Event]) -> Plan:
    """Return the plan of a failed test's trace. Raises NotPossibleError if there is none."""
    if not events or not isinstance(events[0], About):
        raise NotPossibleError("this is not the trace of a test: it does not begin with `about`")
    if not isinstance(events[-1], Failed):
        raise NotPossibleError("the test did not fail: there is nothing to reproduce")
    if UNSEEN.search(events[-1].seen):
        raise NotPossibleError(f"no event of the trace shows what the test saw: {events[-1].seen}")
    dies = bool(GONE.search(events[-1].seen))
    bad = frozenset() if dies else marked(events)
    if not bad and not dies:
        raise NotPossibleError("the driver has seen nothing of the device in this trace")
    if any(isinstance(event, Waited) and "were dropped" in event.text for event in events):
        raise NotPossibleError("the trace is not complete: the test does too much")
    planner = _Planner(bad)
    steps = list(planner.steps(events))
    if not dies and not any(getattr(step, "marked", False) for step in steps):
        raise NotPossibleError("what the driver saw last is nothing that a script can check")
    about, failed, contents = events[0], events[-1], planner.contents
    joined = _joined(steps, dies)
    return Plan(about, failed, planner.parts, planner.places, contents, joined, dies)


def _joined(steps: Sequence[Step], every: bool) -> list[Step]:
    """Return the steps up to the last marked one, or all; pauses become the longest in a row."""
    marks = [number for number, step in enumerate(steps) if getattr(step, "marked", False)]
    end = len(steps) if every else marks[-1] + 1
    joined: list[Step] = []
    for step in steps[:end]:
        before = joined[-1] if joined else None
        if isinstance(step, Pause) and isinstance(before, Pause):
            joined[-1] = Pause(max(step.seconds, before.seconds))
        else:
            joined.append(step)
    return joined
