"""Rules on buffers of both kinds of virtqueues (virtio 3.3.1, 6.1)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.features import Feature
from harness.witness.events import Chain, Changed, Entry, Memory, Started, Stopped, Used
from harness.witness.rules.rule import Check, rule
from harness.witness.sessions import Session


@rule("3.3.1-R-01", idle="no buffer was used", legacy=None)
def entries_stay(session: Session) -> Iterator[Check]:
    """Check that the descriptors of a buffer stay as they are until it is used."""
    for event, _ in session.walk(Changed, Used):
        if isinstance(event, Changed | Used):
            yield event, "the device had not used them" if isinstance(event, Changed) else ""


@rule(
    "3.3.1-R-02",
    idle="no virtqueue was stopped with buffers in flight",
    legacy=None,
    never_red="The device does not see when a driver uses the memory of a buffer again.",
)
def taken_back_after_a_reset(session: Session) -> Iterator[Check]:
    """Find virtqueues that were stopped while buffers were available and not used."""
    in_flight: dict[int, list[Chain]] = {}
    for event, _ in session.walk(Chain, Used, Stopped):
        if isinstance(event, Chain):
            in_flight.setdefault(event.queue, []).append(event)
        if isinstance(event, Used) and in_flight.get(event.queue):
            in_flight[event.queue].pop()
        if isinstance(event, Stopped) and (chains := in_flight.pop(event.queue, [])):
            yield chains[-1], ""
    if session.ended:
        for chains in in_flight.values():
            yield from ((chain, "") for chain in chains[-1:])


def joined(memory: Memory) -> list[tuple[int, int]]:
    """Return start and end of each contiguous part of the memory."""
    parts: list[tuple[int, int]] = []
    for start, length in sorted(memory.regions):
        if parts and parts[-1][1] >= start:
            parts[-1] = (parts[-1][0], max(parts[-1][1], start + length))
        else:
            parts.append((start, start + length))
    return parts


def outside(entries: list[Entry], parts: list[tuple[int, int]]) -> list[str]:
    """Return the elements that are not in the memory, in words."""
    return [
        f"{length} bytes at {address:#x}"
        for _, address, length, _, _ in entries
        if length and not any(a <= address and address + length <= b for a, b in parts)
    ]


@rule("6.1-R-04", idle="no address was handed over without ACCESS_PLATFORM", legacy=None)
def physical_addresses(session: Session) -> Iterator[Check]:
    """Check that each address lies in the driver's memory."""
    known: Memory | None = None
    parts: list[tuple[int, int]] = []
    for event, state in session.walk(Started, Chain):
        if state.memory is None or state.device.offered & Feature.ACCESS_PLATFORM.mask:
            continue
        if state.memory is not known:
            known, parts = state.memory, joined(state.memory)
        if isinstance(event, Started):
            places = (event.desc, event.driver, event.device)
            wrong = outside([(0, place, 1, 0, 0) for place in places], parts)
        elif isinstance(event, Chain):
            wrong = outside(event.descriptors + event.table, parts)
        else:
            continue
        yield event, f"{wrong[0]} are not in its memory" if wrong else ""
