"""Rules on split virtqueues (virtio 2.7)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.features import Feature
from harness.virtio.ring import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from harness.witness.events import BadIndex, Chain, Entry, Reset, Started
from harness.witness.rules.rule import Check, rule
from harness.witness.sessions import Session, State, asks_for_reset

IDLE = "no chain of a split virtqueue was seen"
MOST = 1 << 32
"""Bytes of a chain at most (virtio 2.7.5.2)."""


def chains(session: Session) -> Iterator[tuple[Chain, State]]:
    """Yield the chains of split virtqueues."""
    for event, state in session.walk(Chain):
        if isinstance(event, Chain) and not state.has(Feature.RING_PACKED):
            yield event, state


def linked(table: list[Entry]) -> list[Entry]:
    """Return the entries of an indirect table that `next` links, from the first one.

    A loop ends after as many entries as the table has.
    """
    found: list[Entry] = []
    at = 0
    while at < len(table) and len(found) < len(table):
        found.append(table[at])
        if not table[at][3] & DESC_F_NEXT:
            break
        at = table[at][4]
    return found


def elements(chain: Chain) -> list[Entry]:
    """Return the descriptors that describe the buffer, without the one of the table."""
    direct = [entry for entry in chain.descriptors if not entry[3] & DESC_F_INDIRECT]
    return direct + linked(chain.table)


def misplaced(entries: list[Entry]) -> str:
    """Return what is wrong if a device-readable element follows a device-writable one."""
    kinds = [bool(entry[3] & DESC_F_WRITE) for entry in entries]
    wrong = "a device-readable element follows a device-writable one"
    return wrong if kinds != sorted(kinds) else ""


@rule("2.7.1-R-01", idle="no split virtqueue was used", legacy=None)
def alignment(session: Session) -> Iterator[Check]:
    """Check the addresses of the three parts."""
    for event, state in session.walk(Started):
        if isinstance(event, Started) and not state.has(Feature.RING_PACKED):
            parts = (("desc", event.desc, 16), ("driver", event.driver, 2))
            yield event, unaligned(*parts, ("device", event.device, 4))


def unaligned(*parts: tuple[str, int, int]) -> str:
    """Return which of the parts (name, address, alignment in bytes) are not aligned."""
    return ", ".join(
        f"{name} at {address:#x} is no multiple of {unit}"
        for name, address, unit in parts
        if address % unit
    )


@rule("2.7.4.2-R-01", idle=IDLE, legacy=None)
def readable_before_writable(session: Session) -> Iterator[Check]:
    """Check the order of the elements."""
    for chain, _ in chains(session):
        yield chain, misplaced(elements(chain))


@rule("2.7.5.2-R-01", idle=IDLE, legacy=None)
def not_endless(session: Session) -> Iterator[Check]:
    """Check that a chain has no loop and at most 2^32 bytes."""
    for chain, _ in chains(session):
        slots = [entry[0] for entry in chain.descriptors]
        total = sum(entry[2] for entry in elements(chain))
        if len(set(slots)) < len(slots):
            yield chain, "the chain has a loop"
        else:
            yield chain, f"{total} bytes" if total > MOST else ""


@rule("2.7.5.2-R-02", idle="no chain of several descriptors with IN_ORDER was seen", legacy=None)
def in_order_next(session: Session) -> Iterator[Check]:
    """Check `next` with IN_ORDER: the following slot, and 0 after the last one."""
    for chain, state in chains(session):
        started = state.queues.get(chain.queue)
        if not state.has(Feature.IN_ORDER) or started is None:
            continue
        for slot, _, _, flags, following in chain.descriptors:
            if flags & DESC_F_NEXT:
                right = (slot + 1) % started.size
                wrong = f"next is {following} in descriptor {slot}, not {right}"
                yield chain, "" if following == right else wrong


@rule("2.7.5.3.1-R-01", idle="no split chain with INDIRECT was seen", legacy=None)
def indirect_is_negotiated(session: Session) -> Iterator[Check]:
    """Check that INDIRECT_DESC was negotiated."""
    for chain, state in chains(session):
        if any(entry[3] & DESC_F_INDIRECT for entry in chain.descriptors):
            known = state.has(Feature.INDIRECT_DESC)
            yield chain, "" if known else "INDIRECT_DESC was not negotiated"


@rule("2.7.5.3.1-R-02", idle="no indirect table of a split virtqueue was seen", legacy=None)
def one_table(session: Session) -> Iterator[Check]:
    """Check that a table has no descriptor with INDIRECT."""
    for chain, _ in chains(session):
        if chain.table:
            wrong = [entry[0] for entry in linked(chain.table) if entry[3] & DESC_F_INDIRECT]
            yield chain, f"INDIRECT in the entries {wrong} of the table" if wrong else ""


@rule("2.7.5.3.1-R-03", idle=IDLE, legacy=None)
def fits_the_queue(session: Session) -> Iterator[Check]:
    """Compare the number of descriptors with the size of the virtqueue."""
    for chain, state in chains(session):
        if started := state.queues.get(chain.queue):
            count = len(set(elements(chain)))
            wrong = f"{count} descriptors in a virtqueue of {started.size}"
            yield chain, wrong if count > started.size else ""


@rule("2.7.5.3.1-R-04", idle="no split chain with INDIRECT was seen", legacy=None)
def indirect_ends_the_chain(session: Session) -> Iterator[Check]:
    """Check that INDIRECT and NEXT are not set together."""
    both = DESC_F_INDIRECT | DESC_F_NEXT
    for chain, _ in chains(session):
        flags = [entry[3] for entry in chain.descriptors if entry[3] & DESC_F_INDIRECT]
        if flags:
            wrong = any(value & both == both for value in flags)
            yield chain, "INDIRECT and NEXT in one descriptor" if wrong else ""


@rule("2.7.5.3.1-R-05", idle="no indirect table with IN_ORDER was seen", legacy=None)
def in_order_table(session: Session) -> Iterator[Check]:
    """Check that `next` counts up in a table with IN_ORDER."""
    for chain, state in chains(session):
        if chain.table and state.has(Feature.IN_ORDER):
            wrong = [
                entry[0]
                for entry in linked(chain.table)
                if entry[3] & DESC_F_NEXT and entry[4] != entry[0] + 1
            ]
            yield chain, f"next is not the following entry in {wrong}" if wrong else ""


@rule("2.7.6.1-R-01", idle="no two chains of a split virtqueue were seen", legacy=None)
def index_goes_forward(session: Session) -> Iterator[Check]:
    """Compare the available index with that of the chain before."""
    last: dict[int, int] = {}
    leaves = False  # the driver has asked for a reset, so it may use the memory for other things
    for event, state in session.walk():
        leaves = not isinstance(event, Reset | Started) and (leaves or asks_for_reset(event))
        if isinstance(event, Started):
            last.pop(event.queue, None)
        if isinstance(event, Chain) and not state.has(Feature.RING_PACKED):
            before = last.get(event.queue)
            last[event.queue] = event.index
            if before is not None:
                back = (event.index - before) & 0xFFFF >= 1 << 15
                yield event, f"from {before} back to {event.index}" if back else ""
        if isinstance(event, BadIndex) and not leaves:
            before = last.get(event.queue, event.position)
            if (event.index - before) & 0xFFFF >= 1 << 15:
                yield event, f"from {before} back to {event.index}"


@rule("2.7.7.1-R-01", idle="no chain of a split virtqueue without EVENT_IDX was seen", legacy=None)
def flags_without_event_idx(session: Session) -> Iterator[Check]:
    """Check that the flags of the available ring are 0 or 1."""
    for chain, state in chains(session):
        if not state.has(Feature.EVENT_IDX):
            yield chain, f"flags {chain.flags:#x}" if chain.flags > 1 else ""


@rule("2.7.7.1-R-03", idle="no chain of a split virtqueue with EVENT_IDX was seen", legacy=None)
def flags_with_event_idx(session: Session) -> Iterator[Check]:
    """Check that the flags of the available ring are 0."""
    for chain, state in chains(session):
        if state.has(Feature.EVENT_IDX):
            yield chain, f"flags {chain.flags:#x}" if chain.flags else ""
