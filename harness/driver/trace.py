"""The last events at a driver, kept in memory for the trace of a test.

An event is a tuple of plain values: the time, the name of the event, and its values.
`harness/witness/at_the_driver.py` makes the typed events of the witness of them.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

from harness.driver.bus.base import Access, Bus, MmioWindow, PciFunction

KEPT = 4000
"""Events of a driver that are kept, the last ones."""

BYTES = 1 << 20
"""Bytes of data of the events that a trace shows, the last ones. As text they are two to three
times as long."""

SHOWN = 4096
"""Bytes of a piece of memory, or of a message, that an event has at most."""

REPEATED = 4
"""Events before this one, in a wait, that are compared with it."""

WATCHED = (
    *("read", "write", "bar_read", "bar_write", "bar_accesses"),
    *("pci_read", "pci_write", "take_messages"),
)

Recorded = tuple[Any, ...]


class Trace:
    """The last events at a driver.

    `time.time()` is their clock, so that events of a guest and of its host have one order. While
    `polling`, an access that equals one of the last few is not recorded: a wait of some seconds
    would displace everything else.
    """

    def __init__(self) -> None:
        self._events: deque[Recorded] = deque(maxlen=KEPT)
        self._made = 0
        self._polling = False
        self._lately: deque[Recorded] = deque(maxlen=REPEATED)

    def __call__(self, *event: Any) -> None:
        """Record an event: its name, and its values."""
        self._made += 1
        self._events.append((time.time(), *event))

    def access(self, *event: Any) -> None:
        """Record an access that a wait may repeat."""
        if self._polling:
            if event in self._lately:
                return
            self._lately.append(event)
        self(*event)

    def poll(self, polling: bool) -> None:
        """Say that a wait begins or ends."""
        self._polling = polling
        self._lately.clear()

    def events(self) -> list[Recorded]:
        """Return the last events, with at most BYTES of data.

        If older ones were dropped, the first is "dropped" with their number.
        """
        kept: deque[Recorded] = deque()
        size = 0
        for event in reversed(self._events):
            size += sum(len(value) for value in event if isinstance(value, bytes))
            if size > BYTES:
                break
            kept.appendleft(event)
        dropped = self._made - len(kept)
        first = [(self._events[-len(kept)][0], "dropped", dropped)] if dropped else []
        return [*first, *kept]


def cut(data: bytes) -> bytes:
    """Return at most SHOWN bytes of data."""
    return bytes(data[:SHOWN])


def watch(bus: Bus, trace: Trace) -> None:
    """Record every access through a bus, and the interrupts that it delivers."""
    for bar, (base, ports) in sorted(bus.windows().items()):
        trace("window", bar, base, ports)
    if isinstance(bus, PciFunction):
        _watch_function(bus, trace)
    elif isinstance(bus, MmioWindow):
        _watch_window(bus, trace)
    take_interrupts = bus.take_interrupts

    def interrupts(timeout: float) -> int:
        raised = take_interrupts(timeout)
        if raised:
            trace("interrupt", -1, raised)
        return raised

    bus.take_interrupts = interrupts  # type: ignore[method-assign]


def _watch_window(bus: MmioWindow, trace: Trace) -> None:
    read, write, access = bus.read, bus.write, trace.access

    def reads(offset: int, width: int) -> int:
        value = read(offset, width)
        access("register", -1, offset, width, value, False)
        return value

    def writes(offset: int, width: int, value: int) -> None:
        access("register", -1, offset, width, value, True)
        write(offset, width, value)

    bus.read, bus.write = reads, writes  # type: ignore[method-assign]


def _watch_function(bus: PciFunction, trace: Trace) -> None:
    bar_read, bar_write, bar_accesses = bus.bar_read, bus.bar_write, bus.bar_accesses
    access = trace.access
    pci_read, pci_write, take_messages = bus.pci_read, bus.pci_write, bus.take_messages

    def reads(bar: int, offset: int, width: int) -> int:
        value = bar_read(bar, offset, width)
        access("register", bar, offset, width, value, False)
        return value

    def several(bar: int, accesses: Sequence[Access]) -> list[int]:
        values = bar_accesses(bar, accesses)
        left = iter(values)
        for offset, width, written in accesses:
            value = next(left) if written is None else written
            access("register", bar, offset, width, value, written is not None)
        return values

    def writes(bar: int, offset: int, width: int, value: int) -> None:
        access("register", bar, offset, width, value, True)
        bar_write(bar, offset, width, value)

    def config_reads(offset: int, length: int) -> bytes:
        data = pci_read(offset, length)
        access("pci", offset, data, False)
        return data

    def config_writes(offset: int, data: bytes) -> None:
        access("pci", offset, data, True)
        pci_write(offset, data)

    def messages(timeout: float) -> Counter[int]:
        taken = take_messages(timeout)
        for vector, count in taken.items():
            trace("interrupt", vector, count)
        return taken

    # Otherwise `reads` and `writes` see each of them.
    if type(bus).bar_accesses is not PciFunction.bar_accesses:
        bus.bar_accesses = several  # type: ignore[method-assign]
    bus.bar_read, bus.bar_write = reads, writes  # type: ignore[method-assign]
    bus.pci_read, bus.pci_write = config_reads, config_writes  # type: ignore[method-assign]
    bus.take_messages = messages  # type: ignore[method-assign]


def unwatch(bus: Bus) -> None:
    """Undo `watch`, so that the bus is freed with its last reference."""
    for name in ("take_interrupts", *WATCHED):
        vars(bus).pop(name, None)


def merged(*parts: Iterable[Recorded]) -> list[Recorded]:
    """Return the events of several observers in the order of their times."""
    return sorted((event for part in parts for event in part), key=lambda event: float(event[0]))
