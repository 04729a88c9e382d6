"""Rules on the configuration space and its changes (virtio 2.5.1, 5.2.6.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness.virtio.blk import CONFIG_SIZE
from harness.virtio.device import DeviceStatus
from harness.virtio.pci import ISR_CONFIG, ISR_QUEUE
from harness.witness.events import Config, Event, Interrupt, Register, Request, Status
from harness.witness.rules.rule import Check, rule
from harness.witness.sessions import Session

LOW, HIGH = 0, 4
"""Offsets of the two halves of `capacity` in the configuration space."""

PATIENCE = 64
"""Requests that a driver may send after a notification before it looks at the capacity."""


def reads(session: Session) -> Iterator[Event]:
    """Yield reads of the device configuration and of the generation, and other kinds of events."""
    for event, _ in session.walk():
        if isinstance(event, Register):
            generation = event.names == ("config_generation",)
            if not event.write and (event.area == "device" or generation):
                yield event
        else:
            yield event


def half(event: Event, offset: int) -> bool:
    """Return whether an event is a read of 32 bits of the configuration at an offset."""
    right = isinstance(event, Register) and event.area == "device" and not event.write
    return right and isinstance(event, Register) and (event.offset, event.width) == (offset, 4)


@rule("2.5.1-R-01b", idle="the capacity was not read in two halves", registers=True)
def generation_around_reads(session: Session) -> Iterator[Check]:
    """Check that the generation is read before and after the capacity, until both are the same.

    Reads of other fields may stand between. The next status or request ends the attempts.
    """
    before: int | None = None
    halves: set[int] = set()
    last: Event | None = None
    spoilt: Event | None = None
    for event in reads(session):
        if isinstance(event, Status | Request):
            if last and halves == {LOW, HIGH}:
                yield last, "the generation was not read afterwards"
            elif spoilt:
                yield spoilt, "the generation has changed meanwhile, and it was not read again"
            before, halves, spoilt = None, set(), None
        elif half(event, LOW) or half(event, HIGH):
            halves.add(LOW if half(event, LOW) else HIGH)
            last = event
        elif isinstance(event, Register) and event.area != "device":
            if last and halves == {LOW, HIGH}:
                spoilt = last if before not in (None, event.value) else None
                if spoilt is None:
                    wrong = "the generation was not read before"
                    yield last, wrong if before is None else ""
            before, halves = event.value, set()


@rule(
    "2.5.1-R-01a",
    idle="the configuration did not change between two reads of one field",
    registers=True,
)
def reads_again_after_a_change(session: Session) -> Iterator[Check]:
    """Check that a capacity whose halves are of two configurations is read again."""
    low_seen = changed = False
    torn: Event | None = None
    for event in reads(session):
        if isinstance(event, Config):
            changed = low_seen
        elif half(event, LOW):
            if torn:
                yield torn, ""
            low_seen, changed, torn = True, False, None
        elif half(event, HIGH):
            if low_seen and changed:
                torn = event
            low_seen = changed = False
        going_on = isinstance(event, Status) and event.value & DeviceStatus.DRIVER_OK
        if torn and (going_on or isinstance(event, Request)):
            yield torn, "the configuration changed between the halves, and was not read again"
            torn = None


def works(session: Session, condition: bool) -> Iterable[Check]:
    """Return the first request of a session if the device is as the rule asks."""
    requests = (event for event, _ in session.walk(Request))
    first = next(requests, None) if condition else None
    return [(first, "")] if first else []


GAVE_UP = "A driver that gives up does not show the reason."


@rule(
    "2.5.1-R-03",
    idle="the configuration space or a structure was no longer than specified",
    never_red=GAVE_UP,
)
def longer_configuration(session: Session) -> Iterable[Check]:
    """Find a driver that works with a configuration space that is longer than specified."""
    longer = len(session.device.config) // 2 > CONFIG_SIZE
    return works(session, longer)


@rule(
    "2.5.1-R-04", idle="the configuration space was not shorter than specified", never_red=GAVE_UP
)
def shorter_configuration(session: Session) -> Iterable[Check]:
    """Find a driver that works with a configuration space that lacks fields at its end."""
    length = len(session.device.config) // 2
    return works(session, 0 < length < CONFIG_SIZE)


@rule("5.2.6.1-R-01", idle="the driver got no configuration change notification", registers=True)
def looks_at_the_capacity(session: Session) -> Iterator[Check]:
    """Check that the capacity is read soon after a configuration change notification."""
    change: Interrupt | None = None
    sent = 0
    for event, state in session.walk(Interrupt, Register, Request):
        if isinstance(event, Interrupt) and event.queue == -1 and state.live:
            change, sent = change or event, 0
        capacity = isinstance(event, Register) and event.offset < 8 and not event.write
        if change and capacity and isinstance(event, Register) and event.area == "device":
            yield change, ""
            change = None
        if change and isinstance(event, Request):
            sent += 1
            if sent > PATIENCE:
                yield change, f"{sent} requests later the capacity was not read"
                change = None


@rule(
    "4.1.5.4.2-R-01",
    idle="no interrupt told of a configuration change and of used buffers",
    registers=True,
    legacy=None,
    never_red="Only the user of the driver sees which of the two it did not handle.",
)
def both_reasons(session: Session) -> Iterator[Check]:
    """Find a read of ISR status with both bits, a read of the configuration and a request."""
    both = looked = False
    for event, _ in session.walk(Register, Request):
        if isinstance(event, Register) and not event.write:
            isr = event.area == "isr" or event.names == ("isr_status",)
            if isr and event.value & 0xFF == ISR_QUEUE | ISR_CONFIG:
                both, looked = True, False
            looked |= both and event.area in ("device", "legacy device")
        if isinstance(event, Request) and both and looked:
            yield event, ""
            both = False
