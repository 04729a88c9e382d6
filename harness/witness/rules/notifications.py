"""Rules on notifications by the driver, and on needless interrupts (virtio 2.7.7, 2.7.10, 2.8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from harness.virtio.features import Feature
from harness.virtio.ring import USED_F_NO_NOTIFY
from harness.witness.events import (
    Broken,
    Chain,
    Event,
    Interrupt,
    Notified,
    Prepared,
    Request,
    Started,
    Stopped,
    Unnoticed,
    Used,
)
from harness.witness.rules.rule import Check, rule
from harness.witness.sessions import Session, State

IN_A_ROW = 8
"""Notifications in a row that the device did not want. Fewer may come of a race."""

WRAP = 1 << 15

NO_ACCUSATION = (
    "The notifications that the driver owes are judged by other statements, and the stream does "
    "not show why one is missing."
)


def split(session: Session, event_idx: bool) -> Iterator[tuple[Event, State]]:
    """Yield chains and notifications of split virtqueues with EVENT_IDX or without.

    Events that end the work of a virtqueue are among them.
    """
    for event, state in session.walk(Chain, Notified, Unnoticed, Broken, Stopped):
        if not state.has(Feature.RING_PACKED) and state.has(Feature.EVENT_IDX) == event_idx:
            yield event, state


@rule("2.7.10.1-R-01", idle="no split virtqueue was used from its start", legacy=None)
def used_flags_start_as_0(session: Session) -> Iterator[Check]:
    """Check the flags of each used ring when it is used for the first time."""
    known: set[int] = set()
    base = 0
    for event, state in session.walk(Started, Prepared):
        if isinstance(event, Started):
            base = event.base
        if isinstance(event, Prepared) and not state.has(Feature.RING_PACKED):
            if event.queue not in known and base == 0:
                yield event, f"the flags are {event.flags:#x}" if event.flags else ""
            known.add(event.queue)


def announced(session: Session, event_idx: bool) -> Iterator[tuple[Notified, Chain]]:
    """Yield each notification with the first chain that the device takes after it."""
    last: dict[int, Notified] = {}
    for event, _ in split(session, event_idx):
        if isinstance(event, Notified):
            last[event.queue] = event
        if isinstance(event, Chain) and (notified := last.pop(event.queue, None)):
            yield notified, event


def forgotten(session: Session, event_idx: bool) -> Iterator[Unnoticed]:
    """Yield chains that lay in a virtqueue without a notification until it was stopped or reset.

    The device had to wait for a notification: it had asked for one, and it was able to work.
    """
    following: dict[int, int] = {}
    announced_queues: set[int] = set()
    lying: dict[int, Unnoticed] = {}
    for event, state in split(session, event_idx):
        match event:
            case Chain():
                following[event.queue] = event.position + 1 & 0xFFFF
                announced_queues.discard(event.queue)
                lying.pop(event.queue, None)
            case Notified():
                announced_queues.add(event.queue)
                lying.pop(event.queue, None)
            case Unnoticed() if event.queue not in announced_queues and not state.suspended:
                asked = (
                    event.place == following.get(event.queue)
                    if event_idx
                    else not event.flags & USED_F_NO_NOTIFY
                )
                if asked:
                    lying[event.queue] = event
            case Broken():
                lying.clear()
            case Stopped() if found := lying.pop(event.queue, None):
                yield found
    if session.ended:
        yield from lying.values()


@rule("2.7.10.1-R-04", idle="no notification without EVENT_IDX was seen", legacy=None)
def notifies_by_flags(session: Session) -> Iterator[Check]:
    """Check that no chain lies without a notification while the flags are 0."""
    for notified, chain in announced(session, event_idx=False):
        if not notified.flags & USED_F_NO_NOTIFY or notified.flags < 0:
            yield chain, ""
    for unnoticed in forgotten(session, event_idx=False):
        yield unnoticed, "the flags of the used ring are 0"


@rule("2.7.10.1-R-06", idle="no notification with EVENT_IDX was seen", legacy=None)
def notifies_by_index(session: Session) -> Iterator[Check]:
    """Check that no chain lies without a notification at the index avail_event."""
    for notified, chain in announced(session, event_idx=True):
        if notified.place == chain.position & 0xFFFF:
            yield chain, ""
    for unnoticed in forgotten(session, event_idx=True):
        yield unnoticed, f"avail_event is {unnoticed.place}, which is the index of the chain"


@rule(
    "2.7.10.1-R-02",
    idle="no notification without EVENT_IDX at another index than avail_event was seen",
    legacy=None,
    never_red=NO_ACCUSATION,
)
def ignores_avail_event(session: Session) -> Iterator[Check]:
    """Find notifications that the driver sent though avail_event names another index."""
    for notified, chain in announced(session, event_idx=False):
        if notified.place >= 0 and notified.place != chain.position & 0xFFFF:
            yield notified, ""


@rule(
    "2.7.10.1-R-05",
    idle="no notification with EVENT_IDX and flags 1 was seen",
    legacy=None,
    never_red=NO_ACCUSATION,
)
def ignores_the_flags(session: Session) -> Iterator[Check]:
    """Find notifications that the driver sent though the low bit of the flags is set."""
    for notified, _ in announced(session, event_idx=True):
        if notified.flags > 0 and notified.flags & USED_F_NO_NOTIFY:
            yield notified, ""


@rule("2.7.10.1-R-03", idle="the device did not ask for silence", registers=True, legacy=None)
def keeps_silent(session: Session) -> Iterator[Check]:
    """Check that the driver does not notify again and again while the flags are 1."""
    row: Counter[int] = Counter()
    silent: set[int] = set()
    for event, _ in split(session, event_idx=False):
        if isinstance(event, Notified):
            unwanted = event.flags > 0 and event.flags & USED_F_NO_NOTIFY
            row[event.queue] = row[event.queue] + 1 if unwanted else 0
            silent.discard(event.queue)
            if row[event.queue] >= IN_A_ROW:
                yield event, f"notification {row[event.queue]} in a row while the flags are 1"
        if isinstance(event, Chain):
            if event.queue in silent and row[event.queue]:
                yield event, ""
            silent.add(event.queue)


@rule("2.7.10.1-R-07", idle="no notification with EVENT_IDX was seen", registers=True, legacy=None)
def notifies_no_more_than_needed(session: Session) -> Iterator[Check]:
    """Compare the number of notifications with that of chains, which is at least as large.

    QEMU's trace shows no virtqueues, and so no chains: it does not decide.
    """
    more: Counter[int] = Counter()
    if next(session.walk(Started, Chain), None) is None:
        return
    for event, _ in split(session, event_idx=True):
        if isinstance(event, Notified):
            needless = more[event.queue] > 0
            wrong = "more notifications than chains were seen before"
            yield event, wrong if needless else ""
            more[event.queue] = 1 if needless else more[event.queue] + 1
        if isinstance(event, Chain):
            more[event.queue] -= 1


@rule(
    "2.7.7.1-R-05",
    idle="the driver got no needless interrupt",
    legacy=None,
    never_red="A driver that stops working shows the same as one that has nothing to do.",
)
def survives_needless_interrupts(session: Session) -> Iterator[Check]:
    """Find requests after an interrupt that announced nothing."""
    used: set[int] = set()
    needless = False
    for event, _ in session.walk(Used, Interrupt, Request):
        match event:
            case Used():
                used.add(event.queue)
            case Interrupt() if event.queue >= 0:
                needless |= event.queue not in used
                used.discard(event.queue)
            case Request() if needless:
                needless = False
                yield event, ""


@rule("2.8.16-R-03", idle="no notification of a packed virtqueue with NOTIFICATION_DATA was seen")
def data_names_the_next_descriptor(session: Session) -> Iterator[Check]:
    """Compare offset and wrap counter with the ends of the chains that the device has taken.

    The device takes all that is available once it has a notification. So a place that is no end is
    wrong only if the device has taken a chain after the notification, before the virtqueue was
    stopped.
    """
    ends: dict[int, set[int]] = {}
    sent: list[Notified] = []
    waiting: dict[int, list[Notified]] = {}
    followed: list[Notified] = []
    for event, state in session.walk(Started, Chain, Stopped, Notified, Broken):
        if not state.has(Feature.RING_PACKED):
            continue
        if isinstance(event, Started):
            ends.setdefault(event.queue, {WRAP})
        started = state.queues.get(event.queue) if isinstance(event, Chain) else None
        if isinstance(event, Chain) and started and started.size:
            rounds, offset = divmod(event.position + len(event.descriptors), started.size)
            ends[event.queue].add(offset | (0 if rounds % 2 else WRAP))
            followed += waiting.pop(event.queue, [])
        if isinstance(event, Stopped):
            waiting.pop(event.queue, None)
        data = state.has(Feature.NOTIFICATION_DATA)
        if isinstance(event, Notified) and event.width == 4 and data:
            sent.append(event)
            waiting.setdefault(event.queue, []).append(event)
        if isinstance(event, Broken):
            return
    for notified in sent:
        place = notified.value >> 16
        if place in ends.get(notified.queue, ()):
            yield notified, ""
        elif any(notified is known for known in followed):
            wrong = f"offset {place & ~WRAP} with wrap counter {place >> 15} is the end of no chain"
            yield notified, wrong
