"""Rules on the legacy interface over PCI (virtio 2.5.4, 2.7.2, 3.1.2, 4.1.4.10, 5.2.6.4)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.blk import REQUEST_HEADER
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.ring import DESC_F_WRITE
from harness.witness.events import Chain, Register, Request, Status
from harness.witness.rules.capabilities import history
from harness.witness.rules.rule import Check, rule
from harness.witness.rules.split import elements
from harness.witness.sessions import Session

VECTORS = {"config_msix_vector", "queue_msix_vector"}


def registers(session: Session) -> Iterator[Register]:
    """Yield accesses to the legacy header and to the device configuration behind it."""
    for event, _ in session.walk(Register):
        if isinstance(event, Register) and event.area in ("legacy", "legacy device"):
            yield event


@rule("2.5.4-L-01", idle="the capacity was not read", registers=True, legacy=True)
def capacity_is_read_twice(session: Session) -> Iterator[Check]:
    """Check that two whole reads of the capacity agree before a request is sent."""
    values: list[int] = []
    known: dict[int, int] = {}
    last: Register | None = None
    for event, _ in session.walk(Register, Request):
        if isinstance(event, Register) and event.area == "legacy device" and not event.write:
            data = max(event.value, 0).to_bytes(8, "little")
            known |= {event.offset + at: data[at] for at in range(min(event.width, 8))}
            if set(range(8)) <= set(known):
                values.append(int.from_bytes(bytes(known[at] for at in range(8)), "little"))
                known, last = {}, event
        if isinstance(event, Request) and last:
            agree = len(values) > 1 and values[-1] == values[-2]
            yield last, "" if agree else f"the reads are {values}"
            return


@rule("2.7.2-L-01a", idle="no virtqueue was set up", registers=True, legacy=True)
def size_is_read(session: Session) -> Iterator[Check]:
    """Check that queue_size is read before an address is written, in this session or before it."""
    known: set[int] = set()
    for past in history(session):
        queue = 0
        for event in registers(past):
            if event.write and event.names == ("queue_select",):
                queue = event.value
            if not event.write and "queue_size" in event.names:
                known.add(queue)
            placed = event.write and event.names == ("queue_address",) and event.value
            if placed and past is session:
                yield event, "" if queue in known else "queue_size was not read"


@rule("3.1.2-L-01", idle="the driver has not set DRIVER_OK", registers=True, legacy=True)
def order_of_initialization(session: Session) -> Iterator[Check]:
    """Check the steps before DRIVER_OK: reset, bits in order, no FEATURES_OK."""
    written = 0
    problem = "" if session.reset else "the driver did not reset the device first"
    for event, _ in session.walk(Status):
        if not isinstance(event, Status) or not event.value:
            continue
        new = event.value & ~written
        if new & DeviceStatus.DRIVER and not (written | event.value) & DeviceStatus.ACKNOWLEDGE:
            problem = problem or "DRIVER was set before ACKNOWLEDGE"
        if new & DeviceStatus.FEATURES_OK:
            problem = problem or "FEATURES_OK was set"
        written |= event.value
        if new & DeviceStatus.DRIVER_OK:
            if not written & DeviceStatus.DRIVER:
                problem = problem or "DRIVER_OK was set before DRIVER"
            yield event, problem


@rule("4.1.4.10-L-04", idle="the configuration was not read", registers=True, legacy=True)
def configuration_follows_the_header(session: Session) -> Iterator[Check]:
    """Check that with MSI-X the vectors are not read as the configuration."""
    for event in registers(session):
        if event.area == "legacy device" and not event.write:
            yield event, ""
        if set(event.names) >= VECTORS:
            yield event, "MSI-X is enabled, so the configuration starts behind the vectors"


@rule(
    "5.2.6.4-L-01",
    idle="no request without ANY_LAYOUT was sent",
    registers=True,
    legacy=True,
)
def fixed_layout(session: Session) -> Iterator[Check]:
    """Check that header and status have descriptors of their own, without ANY_LAYOUT."""
    accepted: int | None = None
    for event, _ in session.walk(Register, Chain):
        if isinstance(event, Register) and event.write and event.names == ("driver_features",):
            accepted = event.value
        if isinstance(event, Chain) and accepted is not None:
            if accepted & Feature.ANY_LAYOUT.mask:
                continue
            parts = elements(event)
            first, last = parts[0], parts[-1]
            header = first[2] == REQUEST_HEADER.size and not first[3] & DESC_F_WRITE
            status = last[2] == 1 and last[3] & DESC_F_WRITE and len(parts) > 1
            wrong = "" if status else "the status byte has no descriptor of its own"
            yield event, wrong if header else "the header has no descriptor of its own"
