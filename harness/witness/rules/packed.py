"""Rules on packed virtqueues (virtio 2.8)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.blk import REQUEST_HEADER
from harness.virtio.features import Feature
from harness.virtio.ring import (
    DESC_F_INDIRECT,
    DESC_F_WRITE,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
)
from harness.witness.events import Chain, Changed, Entry, Started, Stopped, Used
from harness.witness.rules.rule import Check, rule
from harness.witness.rules.split import misplaced, unaligned
from harness.witness.sessions import Session, State

IDLE = "no chain of a packed virtqueue was seen"


def chains(session: Session) -> Iterator[tuple[Chain, State]]:
    """Yield the chains of packed virtqueues."""
    for event, state in session.walk(Chain):
        if isinstance(event, Chain) and state.has(Feature.RING_PACKED):
            yield event, state


@rule("2.8.11-R-01", idle="no packed virtqueue was used")
def alignment(session: Session) -> Iterator[Check]:
    """Check the addresses of the three parts."""
    for event, state in session.walk(Started):
        if isinstance(event, Started) and state.has(Feature.RING_PACKED):
            parts = (("desc", event.desc, 16), ("driver", event.driver, 4))
            yield event, unaligned(*parts, ("device", event.device, 4))


@rule("2.8.17-R-02", idle=IDLE)
def fits_the_queue(session: Session) -> Iterator[Check]:
    """Compare the number of descriptors in the ring with the size of the virtqueue."""
    for chain, state in chains(session):
        if started := state.queues.get(chain.queue):
            count = len(chain.descriptors)
            wrong = f"more than {started.size} descriptors in a virtqueue of {started.size}"
            yield chain, wrong if count > started.size else ""


@rule("2.8.17-R-03", idle=IDLE)
def readable_before_writable(session: Session) -> Iterator[Check]:
    """Check the order of the elements."""
    for chain, _ in chains(session):
        direct = [entry for entry in chain.descriptors if not entry[3] & DESC_F_INDIRECT]
        yield chain, misplaced(direct + chain.table)


@rule("2.8.19-R-01", idle="no packed chain with INDIRECT was seen")
def indirect_is_negotiated(session: Session) -> Iterator[Check]:
    """Check that INDIRECT_DESC was negotiated."""
    for chain, state in chains(session):
        if any(entry[3] & DESC_F_INDIRECT for entry in chain.descriptors):
            known = state.has(Feature.INDIRECT_DESC)
            yield chain, "" if known else "INDIRECT_DESC was not negotiated"


@rule("2.8.19-R-02", idle="no indirect table of a packed virtqueue was seen")
def only_write_in_a_table(session: Session) -> Iterator[Check]:
    """Check that a table has no flag but WRITE."""
    for chain, _ in chains(session):
        if chain.table:
            wrong = [entry[0] for entry in chain.table if entry[3] & ~DESC_F_WRITE]
            yield chain, f"other flags than WRITE in the entries {wrong}" if wrong else ""


@rule("2.8.19-R-04", idle="no packed chain with INDIRECT or of several descriptors was seen")
def indirect_stands_alone(session: Session) -> Iterator[Check]:
    """Check that a list of several descriptors has none with INDIRECT."""
    for chain, _ in chains(session):
        indirect = any(entry[3] & DESC_F_INDIRECT for entry in chain.descriptors)
        if indirect or len(chain.descriptors) > 1:
            wrong = indirect and len(chain.descriptors) > 1
            yield chain, "INDIRECT in a list of several descriptors" if wrong else ""


def data_elements(entries: list[Entry]) -> int:
    """Return the number of elements that have bytes of data: none of header and status only."""
    count, at = 0, 0
    room = sum(length for _, _, length, flags, _ in entries if flags & DESC_F_WRITE)
    written = 0
    for _, _, length, flags, _ in entries:
        if flags & DESC_F_WRITE:
            count += bool(length) and written < room - 1
            written += length
        else:
            at += length
            count += bool(length) and at > REQUEST_HEADER.size
    return count


def longest(session: Session, table: bool) -> Iterator[Check]:
    """Compare the elements of data with seg_max, in an indirect table or in a list."""
    for chain, state in chains(session):
        most = state.fields.seg_max
        if most is None or not state.has(Feature.BLK_SEG_MAX) or table != bool(chain.table):
            continue
        count = data_elements(chain.table if table else chain.descriptors)
        yield chain, f"{count} elements of data, seg_max is {most}" if count > most else ""


@rule("2.8.17-R-01", idle="no list of a packed virtqueue with SEG_MAX was seen")
def list_is_allowed(session: Session) -> Iterator[Check]:
    """Check the elements of data of a list in the ring."""
    yield from longest(session, table=False)


@rule("2.8.19-R-03", idle="no indirect table of a packed virtqueue with SEG_MAX was seen")
def table_is_allowed(session: Session) -> Iterator[Check]:
    """Check the elements of data of an indirect table."""
    yield from longest(session, table=True)


@rule("2.8.17-R-05", idle=IDLE)
def list_has_room(session: Session) -> Iterator[Check]:
    """Check that the lists that are in flight have room in the ring together."""
    in_flight: dict[int, dict[int, int]] = {}
    for event, state in session.walk(Started, Stopped, Used, Chain):
        if isinstance(event, Started | Stopped):
            in_flight.pop(event.queue, None)
        if isinstance(event, Used):
            in_flight.get(event.queue, {}).pop(event.id, None)
        if not isinstance(event, Chain) or not state.has(Feature.RING_PACKED):
            continue
        started = state.queues.get(event.queue)
        if started and 0 < len(event.descriptors) <= started.size:
            lists = in_flight.setdefault(event.queue, {})
            lists[event.descriptors[-1][4]] = len(event.descriptors)
            total = sum(lists.values())
            wrong = f"{total} descriptors in flight in a virtqueue of {started.size}"
            yield event, wrong if total > started.size else ""


@rule("2.8.17-R-06", idle="no list of several descriptors of a packed virtqueue was seen")
def first_comes_last(session: Session) -> Iterator[Check]:
    """Check that all descriptors of a list are available when the first one is."""
    for chain, state in chains(session):
        started = state.queues.get(chain.queue)
        if not started or not 1 < len(chain.descriptors) <= started.size:
            continue
        missing = []
        for number, (slot, _, _, flags, _) in enumerate(chain.descriptors):
            wrap = (chain.position + number) // started.size % 2 == 0
            available = bool(flags & PACKED_DESC_F_AVAIL) == wrap
            if not available or bool(flags & PACKED_DESC_F_USED) == wrap:
                missing.append(slot)
        yield chain, f"the descriptors {missing} are not available" if missing else ""


@rule("2.8.16-R-01", "2.8.16-R-02", idle="no descriptor of a packed virtqueue was used")
def unchanged_until_used(session: Session) -> Iterator[Check]:
    """Check that a descriptor is as the device took it when the device uses it."""
    for event, state in session.walk(Changed, Used):
        if state.has(Feature.RING_PACKED) and isinstance(event, Changed | Used):
            yield event, "the USED bit had not changed" if isinstance(event, Changed) else ""
