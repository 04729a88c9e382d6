"""Rules on packed virtqueues (virtio 2.8)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.features import Feature
from harness.virtio.ring import DESC_F_INDIRECT, DESC_F_WRITE
from harness.witness.events import Chain, Started
from harness.witness.rules.rule import Check, rule
from harness.witness.rules.split import misplaced, unaligned
from harness.witness.sessions import Session, State

IDLE = "no chain of a packed virtqueue was seen"


def chains(session: Session) -> Iterator[tuple[Chain, State]]:
    """Yield the chains of packed virtqueues."""
    for event, state in session.walk():
        if isinstance(event, Chain) and state.has(Feature.RING_PACKED):
            yield event, state


@rule("2.8.11-R-01", idle="no packed virtqueue was used")
def alignment(session: Session) -> Iterator[Check]:
    """Check the addresses of the three parts."""
    for event, state in session.walk():
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
