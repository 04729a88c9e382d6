"""The trace of a test: what driver and device did, as events, in words, and as tables of rings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest

from harness.report.failure import printable, words_of
from harness.report.markers import Statement
from harness.report.outcome import expectation
from harness.report.results import made_of, plain_node
from harness.virtio.blk import Status as RequestStatus
from harness.virtio.catalogue import lookup
from harness.virtio.pci import COMMAND
from harness.virtio.ring import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from harness.witness.at_the_driver import at_the_driver
from harness.witness.events import (
    About,
    Answer,
    Available,
    Broken,
    Chain,
    Completed,
    Contents,
    Entry,
    Event,
    Failed,
    Interrupt,
    Loaded,
    Made,
    Message,
    Place,
    Qmp,
    Register,
    Started,
    Stored,
    Used,
    Waited,
    Zeroed,
    dumped,
)

if TYPE_CHECKING:
    from harness.targets import Disk

Side = Literal["driver", "device", "test"]

SIDES: dict[type[Event], Side] = {
    Used: "device",
    Completed: "device",
    Interrupt: "device",
    Answer: "device",
    Broken: "device",
    Made: "test",
    Qmp: "test",
    Contents: "test",
    Waited: "test",
    Failed: "test",
}
"""The side that does what an event is about; all others are the driver's."""

SILENT = (About, Place)
"""Events about the trace, which its words leave out."""

QUIET = (Place, Made, Zeroed, Stored)


def side(event: Event) -> Side:
    """Return who does what an event is about."""
    return SIDES.get(type(event), "driver")


def observed(event: Event) -> bool:
    """Return True for an event in which the driver sees something of the device."""
    if isinstance(event, Register):
        return not event.write
    return isinstance(event, Used | Completed | Interrupt | Answer | Loaded | Broken | Waited)


def marked(events: Sequence[Event]) -> frozenset[int]:
    """Return the indices of the offending event, which is the last that the driver saw.

    A used element and the request that it completes are one, and so are the halves of a register.
    Interrupts do not count if the failure is not about them. It is empty if no test failed.
    """
    if not events or not isinstance(events[-1], Failed):
        return frozenset()
    about = f"{events[-1].expected} {events[-1].seen}".lower()
    seen = [n for n, event in enumerate(events) if observed(event)]
    if not any(word in about for word in ("interrupt", "isr", "pci", "vector")):
        seen = [n for n in seen if not _of_interrupts(events[n])]
    if not seen:
        return frozenset()
    last = seen[-1]
    event, before = events[last], events[last - 1] if last else None
    used = isinstance(event, Completed) and isinstance(before, Used) and before.id == event.id
    if used or (before and _halves(before, event)):
        return frozenset((last - 1, last))
    return frozenset((last,))


def _halves(before: Event, event: Event) -> bool:
    """Return True for two reads of 32 bits one after the other, at adjacent offsets."""
    if not (isinstance(before, Register) and isinstance(event, Register)):
        return False
    reads = not before.write and not event.write and before.area == event.area
    return reads and before.width == 4 and event.offset == before.offset + 4


def _of_interrupts(event: Event) -> bool:
    """Return True for an interrupt, and for what a driver reads because of one."""
    if isinstance(event, Register):
        return event.area == "isr" or (event.area == "pci" and event.offset == COMMAND)
    return isinstance(event, Interrupt)


def traced(
    item: pytest.Item,
    call: pytest.CallInfo[None],
    target: str,
    description: Mapping[str, Mapping[str, str]],
    disks: Iterable[Disk],
) -> list[list[Event]]:
    """Return the events of each disk of a test, up to now: first `About`, and last a failure."""
    failed = []
    if call.excinfo:
        expected, seen = expectation(item, call.excinfo)
        failed.append(Failed(time=time.time(), expected=expected, seen=printable(seen)))
    statement = Statement.parse(item.user_properties)
    names = statement.clauses if statement else ()
    words = "\n".join(f"{name} ({lookup(name).level}): {lookup(name).text}" for name in names)
    found = []
    for disk in disks:
        events = events_of(disk)
        if not events:
            continue
        about = About(
            test=plain_node(item.nodeid),
            target=target,
            transport=transport_of(disk),
            statement=words,
            disk=words_of(disk.spec),
            versions=made_of(description.get("implementations", {})),
        )
        found.append([about, *events, *failed])
    return found


def events_of(disk: Disk) -> list[Event]:
    """Return the events at a disk's driver, of its machine and of its file, up to now."""
    return at_the_driver(disk.events(), transport_of(disk))


def transport_of(disk: Disk) -> str:
    """Return the kind of the driver's transport, "" if the driver is gone."""
    try:
        return disk.driver.transport_kind()
    except Exception:  # a trace is only a help: a guest that is gone is not a second failure
        return ""


def files(traces: Iterable[Sequence[Event]]) -> dict[str, str]:
    """Return the files with these traces, by name."""
    found = {}
    for number, events in enumerate(traces):
        stem = f"trace-{number}" if number else "trace"
        found[f"{stem}.jsonl"] = as_lines(events)
        found[f"{stem}.txt"] = in_words(events)
    return found


def as_lines(events: Iterable[Event]) -> str:
    """Return the text of a file of events, JSON lines."""
    return "".join(f"{dumped(event)}\n" for event in events)


def in_words(events: Sequence[Event]) -> str:
    """Return the events as lines: seconds from the first one, the side, and the event in words.

    A line that begins with ! is the offending event.
    """
    return "".join(f"{row.line}\n" for row in rows(events))


@dataclass(frozen=True)
class Row:
    """A line of a trace. `seconds` count from the first event."""

    seconds: float
    side: Side
    words: str
    offending: bool

    @property
    def line(self) -> str:
        """Return the row as a line of text."""
        mark = "!" if self.offending else " "
        return f"{mark}{self.seconds:10.6f}  {self.side:<6}  {self.words}"

    @classmethod
    def parse(cls, line: str) -> Row:
        """Return the row of a line. Raises ValueError for another text."""
        seconds, who, words = line[1:11], line[13:19].strip(), line[21:]
        if who not in ("driver", "device", "test"):
            raise ValueError(f"no line of a trace: {line[:40]!r}")
        return cls(float(seconds), who, words, line.startswith("!"))  # type: ignore[arg-type]


def rows(events: Sequence[Event]) -> Iterator[Row]:
    """Yield the rows of the events that have words."""
    begun = next((event.time for event in events if event.time), 0.0)
    bad = marked(events)
    last = begun
    for number, event in enumerate(events):
        if isinstance(event, SILENT):
            continue
        last = event.time or last
        yield Row(max(0.0, last - begun), side(event), _words(event), number in bad)


def _words(event: Event) -> str:
    match event:
        case Made():
            return f"made the {event.part}: {event.options}"
        case Message():
            files = f", {event.files} files" if event.files else ""
            return f"sent {event.name} {event.payload[:64]}{files}"
        case Used():
            return f"used {event.id} of virtqueue {event.queue}, length {event.length}"
        case Started():
            return (
                f"set up virtqueue {event.queue} ({event.format}): {event.size} descriptors at"
                f" {event.desc:#x}, driver area {event.driver:#x}, device area {event.device:#x}"
            )
        case Chain():
            table = f", table: {'; '.join(map(descriptor, event.table))}" if event.table else ""
            text = "; ".join(map(descriptor, event.descriptors))
            return f"wrote chain {event.head} of virtqueue {event.queue}: {text}{table}"
        case Interrupt():
            times = f" {event.count} times" if event.count > 1 else ""
            if event.vector >= 0:
                return f"sent the message of vector {event.vector}{times}"
            if event.queue >= 0:
                return f"signalled virtqueue {event.queue}{times}"
            return f"{'announced a change' if event.queue == -1 else 'interrupted'}{times}"
        case Register(value=-1):
            verb = "wrote" if event.write else "read"
            return f"{verb} {event.width} bytes of {event.area} at {event.offset:#x}"
        case Completed():
            known = event.status in RequestStatus._value2member_map_
            name = f" ({RequestStatus(event.status).name})" if known else ""
            return f"{event}{name}"
        case _:
            return str(event)


def descriptor(entry: Entry) -> str:
    """Return a descriptor in words: slot, address, length, flags."""
    slot, address, length, flags, following = entry
    names = [
        name
        for bit, name in (
            (DESC_F_NEXT, f"next {following}"),
            (DESC_F_WRITE, "write"),
            (DESC_F_INDIRECT, "indirect"),
        )
        if flags & bit
    ]
    return f"[{slot}] {address:#x}+{length}{' ' if names else ''}{' '.join(names)}"


@dataclass
class Ring:
    """A virtqueue as the events show it: its chains, what is available, and what was used."""

    queue: int
    size: int
    form: str
    chains: dict[int, str] = field(default_factory=dict)
    available: list[int] = field(default_factory=list)
    used: list[tuple[int, int]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield a line for each chain: what it has, and its state."""
        lengths = dict(self.used)
        for head, text in self.chains.items():
            state = (
                f"used, length {lengths[head]}"
                if head in lengths
                else "available"
                if head in self.available
                else "not available"
            )
            yield f"queue {self.queue} ({self.form}, {self.size}) | {head} | {text} | {state}"
        for head in lengths.keys() - self.chains.keys():
            where = f"queue {self.queue} ({self.form}, {self.size})"
            yield f"{where} | {head} | unknown | used, length {lengths[head]}"


SHOWN = 8
"""Chains of a virtqueue that a table shows, the last ones."""


def rings(events: Sequence[Event], end: int) -> list[str]:
    """Return the chains of all virtqueues after the first `end` events, as lines of a table."""
    found: dict[int, Ring] = {}
    for event in events[:end]:
        match event:
            case Started():
                found[event.queue] = Ring(event.queue, event.size, event.format)
            case Chain() if event.queue in found:
                ring = found[event.queue]
                ring.chains.pop(event.head, None)
                ring.used = [used for used in ring.used if used[0] != event.head]
                text = "; ".join(map(descriptor, event.descriptors))
                if event.table:
                    text += f"; table: {'; '.join(map(descriptor, event.table))}"
                ring.chains[event.head] = text
                if event.head in ring.available:
                    ring.available.remove(event.head)
            case Available() if event.queue in found:
                found[event.queue].available += event.heads
            case Used() if event.queue in found:
                ring = found[event.queue]
                ring.used.append((event.id, event.length))
                if event.id in ring.available:
                    ring.available.remove(event.id)
    return [line for ring in found.values() for line in list(ring.lines())[-SHOWN:]]


LINES = 150
"""Lines of a trace that a page shows, the last ones."""


def shown(events: Sequence[Event], most: int = LINES) -> dict[str, list[str]]:
    """Return what a page shows of a trace: the last lines, and the rings before and after.

    The keys are "lines", "before" and "after"; the rings are those around the offending event.
    """
    lines = [row.line[:300] for row in rows(events)]
    if len(lines) > most:
        lines = lines[-most:]
    bad = marked(events)
    if not bad:
        return {"lines": lines, "before": [], "after": rings(events, len(events))}
    return {
        "lines": lines,
        "before": rings(events, min(bad)),
        "after": rings(events, max(bad) + 1),
    }
