"""Rules on PCI configuration space, capabilities and MSI-X (virtio 4.1.2, 4.1.4, 4.1.5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness.virtio.pci import (
    CAP,
    CAP_MSIX,
    DEVICE,
    MODERN_DEVICE_ID,
    MSIX_ENABLE,
    REVISION,
    TRANSITIONAL_DEVICE_ID,
    CapType,
)
from harness.witness.events import Interrupt, PciCapability, Register
from harness.witness.rules.config import GAVE_UP, works
from harness.witness.rules.rule import Check, rule
from harness.witness.sessions import Session, structures

IGNORED = "A driver that does not match the device leaves no trace."

LENGTHS = {CapType.NOTIFY_CFG: 20, CapType.PCI_CFG: 20, CapType.SHARED_MEMORY_CFG: 24}
"""Bytes of the capabilities that are longer than the others."""

STRUCTURES = {CapType.COMMON_CFG: 0x40, CapType.ISR_CFG: 1, CapType.DEVICE_CFG: 96}
"""Bytes of the structures in version 1.4."""

DATA = CAP.size
"""Offset of pci_cfg_data in the capability of type PCI_CFG."""


def history(session: Session) -> list[Session]:
    """Return the sessions of a peer up to this one."""
    found = [session]
    while before := found[-1].before:
        found.append(before)
    return found[::-1]


def identity(session: Session, offset: int, width: int) -> int:
    """Return a number in PCI configuration space, -1 if the stream does not have it."""
    space = bytes.fromhex(session.device.space)
    return int.from_bytes(space[offset : offset + width], "little") if space else -1


@rule("4.1.2.2-R-01", idle="no device had the modern device id", registers=True, never_red=IGNORED)
def modern_id(session: Session) -> Iterable[Check]:
    """Find a driver of a device with the modern device id."""
    return works(session, identity(session, DEVICE, 2) == MODERN_DEVICE_ID)


@rule(
    "4.1.2.2-R-02",
    idle="no device had the transitional device id",
    registers=True,
    legacy=None,
    never_red=IGNORED,
)
def transitional_id(session: Session) -> Iterable[Check]:
    """Find a driver of a device with the transitional device id."""
    return works(session, identity(session, DEVICE, 2) == TRANSITIONAL_DEVICE_ID)


@rule(
    "4.1.2.2-R-03",
    idle="no device had another revision than 0 and 1",
    registers=True,
    never_red=IGNORED,
)
def any_revision(session: Session) -> Iterable[Check]:
    """Find a driver of a device with an unusual revision."""
    return works(session, identity(session, REVISION, 1) > 1)


def virtio(session: Session) -> list[PciCapability]:
    """Return the virtio capabilities of the device."""
    return [capability for capability in session.device.capabilities if capability.virtio]


@rule(
    "4.1.4.1-R-01",
    idle="the device had no capability of a reserved type",
    registers=True,
    never_red=GAVE_UP,
)
def reserved_type(session: Session) -> Iterable[Check]:
    """Find a driver that works with a capability of a reserved type."""
    known = set(CapType)
    return works(session, any(capability.type not in known for capability in virtio(session)))


@rule(
    "4.1.4.1-R-03",
    idle="the device had no capability that is longer than specified",
    registers=True,
    never_red=GAVE_UP,
)
def longer_capability(session: Session) -> Iterable[Check]:
    """Find a driver that works with a capability that is longer than specified."""
    found = (
        capability
        for capability in virtio(session)
        if capability.type in set(CapType) - {CapType.VENDOR_CFG}
        and capability.size > LENGTHS.get(CapType(capability.type), CAP.size)
    )
    return works(session, any(found))


@rule(
    "4.1.4.1-R-04",
    idle="the device had no capability with a reserved bar",
    registers=True,
    never_red=GAVE_UP,
)
def reserved_bar(session: Session) -> Iterable[Check]:
    """Find a driver that works with a capability whose bar is reserved."""
    return works(session, any(capability.bar > 5 for capability in virtio(session)))


@rule(
    "4.1.4.1-R-06a",
    idle="the device had no structure that is longer than specified",
    registers=True,
    never_red=GAVE_UP,
)
def longer_structure(session: Session) -> Iterable[Check]:
    """Find a driver that works with a structure that is longer than specified."""
    found = (
        capability.length > STRUCTURES[CapType(capability.type)]
        for capability in virtio(session)
        if capability.type in STRUCTURES
    )
    return works(session, any(found))


@rule(
    "4.1.4.1-R-02", idle="the device had no second capability of one structure type", registers=True
)
def first_instance(session: Session) -> Iterator[Check]:
    """Check that registers are accessed in the first structure of each type, not in a later one."""
    twice = {area for area, found in structures(session.device).items() if len(found) > 1}
    for event, _ in session.walk(Register):
        if isinstance(event, Register) and event.area in twice:
            wrong = f"this is in structure {event.structure + 1} of its type"
            yield event, wrong if event.structure else ""


def vendor_data(session: Session) -> Iterator[tuple[Register, bool]]:
    """Yield writes to a capability with vendor data, and whether its vendor id was read before."""
    places = [known for known in virtio(session) if known.type == CapType.VENDOR_CFG]
    read: set[int] = set()
    for past in history(session):
        for event in configuration(past):
            for place in places:
                if not event.write and touches(event, place.at + 4, place.at + 6):
                    read.add(place.at)
                written = event.write and touches(event, place.at, place.at + place.size)
                if written and past is session:
                    yield event, place.at in read


@rule("4.1.4.8.2-R-01", idle="the device had no capability with vendor data", registers=True)
def leaves_vendor_data(session: Session) -> Iterator[Check]:
    """Check that vendor data is not written by a driver that works without it."""
    for event, _ in vendor_data(session):
        yield event, "this is vendor data"
    kinds = {known.type for known in virtio(session)}
    yield from works(session, CapType.VENDOR_CFG in kinds)


@rule("4.1.4.8.2-R-02", idle="no vendor data was written", registers=True)
def looks_at_the_vendor(session: Session) -> Iterator[Check]:
    """Check that the vendor id is read before vendor data is written."""
    for event, looked in vendor_data(session):
        yield event, "" if looked else "the vendor id was not read"


def configuration(session: Session) -> Iterator[Register]:
    """Yield accesses to PCI configuration space."""
    for event, _ in session.walk(Register):
        if isinstance(event, Register) and event.area == "pci":
            yield event


def touches(event: Register, start: int, end: int) -> bool:
    """Return whether an access touches the bytes from `start` to before `end`."""
    return event.offset < end and start < event.offset + event.width


@rule(
    "4.1.4.1-R-07",
    idle="PCI configuration space was not written where virtio capabilities are",
    registers=True,
    legacy=None,
)
def capabilities_are_not_written(session: Session) -> Iterator[Check]:
    """Check that writes go to no virtio capability but the one of type PCI_CFG."""
    for event in configuration(session):
        for capability in virtio(session):
            if event.write and touches(event, capability.at, capability.at + capability.size):
                wrong = f"the capability at {capability.at:#x} has type {capability.type}"
                yield event, "" if capability.type == CapType.PCI_CFG else wrong


def window(session: Session) -> Iterator[tuple[Register, PciCapability]]:
    """Yield accesses to pci_cfg_data, and the capability as the driver has set it by then.

    A window that the driver has not written is left out: tools read all of PCI configuration space.
    """
    place = next((known for known in virtio(session) if known.type == CapType.PCI_CFG), None)
    if place is None:
        return
    values = bytearray(bytes.fromhex(session.device.space))
    written = False
    for past in history(session):
        for event in configuration(past):
            if touches(event, place.at + DATA, place.at + DATA + 4):
                if written and past is session:
                    _, _, size, kind, bar, _, offset, length = CAP.unpack_from(values, place.at)
                    yield event, PciCapability(place.at, 0, size, kind, bar, offset, length)
            elif event.write and touches(event, place.at + 4, place.at + DATA):
                data = event.value.to_bytes(8, "little")[: event.width]
                values[event.offset : event.offset + event.width] = data
                written = True


NO_WINDOW = "the PCI configuration window was not used"


@rule("4.1.4.9.2-R-01a", idle=NO_WINDOW, registers=True, legacy=None)
def window_offset(session: Session) -> Iterator[Check]:
    """Check that the offset is a multiple of the length."""
    for event, place in window(session):
        if place.length:
            wrong = f"the offset is {place.offset:#x}, the length {place.length}"
            yield event, wrong if place.offset % place.length else ""


@rule("4.1.4.9.2-R-01b", idle=NO_WINDOW, registers=True, legacy=None)
def window_access(session: Session) -> Iterator[Check]:
    """Check that the data is accessed at its start and by as many bytes as the length says."""
    for event, place in window(session):
        right = event.offset == place.at + DATA and event.width == place.length
        wrong = f"{event.width} bytes at {event.offset:#x}, the length is {place.length}"
        yield event, "" if right else wrong


@rule("4.1.4.9.2-R-02", idle=NO_WINDOW, registers=True, legacy=None)
def window_target(session: Session) -> Iterator[Check]:
    """Check that the bytes lie in a structure of another virtio capability."""
    for event, place in window(session):
        inside = place.length in (1, 2, 4) and any(
            known.bar == place.bar
            and known.offset <= place.offset
            and place.offset + place.length <= known.offset + known.length
            for known in virtio(session)
            if known.type != CapType.PCI_CFG
        )
        wrong = f"{place.length} bytes at {place.offset:#x} of BAR {place.bar} are in no structure"
        yield event, "" if inside else wrong


def looks_for_capabilities(session: Session) -> Iterator[Check]:
    """Find reads of virtio capabilities, in this session or before it."""
    for past in history(session):
        for event in configuration(past):
            found = (touches(event, known.at, known.at + 4) for known in virtio(session))
            if not event.write and any(found):
                yield event, ""
                return


CACHED = "A driver may have the contents of PCI configuration space from elsewhere."


@rule(
    "4.1.5.1.1.1-L-04",
    idle="no read of a virtio capability of a modern device was seen",
    registers=True,
    never_red=CACHED,
)
def modern_driver_looks(session: Session) -> Iterable[Check]:
    """Find reads of the virtio capabilities of a device that has no legacy interface."""
    modern = identity(session, DEVICE, 2) == MODERN_DEVICE_ID
    return looks_for_capabilities(session) if modern else []


@rule(
    "4.1.5.1.1.1-L-02",
    idle="no driver of the legacy interface read virtio capabilities",
    registers=True,
    legacy=True,
    never_red=CACHED,
)
def transitional_driver_looks(session: Session) -> Iterable[Check]:
    """Find reads of virtio capabilities by a driver that then uses the legacy interface."""
    return looks_for_capabilities(session)


@rule(
    "4.1.5.1.2.2-R-01",
    idle="the MSI-X table was not smaller than the number of events",
    registers=True,
    legacy=None,
    never_red=GAVE_UP,
)
def few_vectors(session: Session) -> Iterable[Check]:
    """Find a driver that works with fewer vectors than virtqueues and configuration changes."""
    return works(session, 0 <= session.device.vectors < session.device.queues + 1)


@rule(
    "4.1.4.5.2-R-01", idle="no interrupt of a virtqueue came by MSI-X", registers=True, legacy=None
)
def isr_is_left_alone(session: Session) -> Iterator[Check]:
    """Check that ISR status is not read after an interrupt of a virtqueue with MSI-X."""
    control = next(
        (known.at + 2 for known in session.device.capabilities if known.ident == CAP_MSIX), None
    )
    if control is None:
        return
    enabled = False
    cause: Interrupt | None = None
    for past in history(session):
        cause = None
        for event, _ in past.walk():
            if isinstance(event, Register) and event.area == "pci" and event.write:
                at = control + 1 - event.offset
                if 0 <= at < event.width:
                    enabled = bool(event.value >> 8 * at << 8 & MSIX_ENABLE)
            if past is not session:
                continue
            if isinstance(event, Interrupt) and enabled:
                cause = event if event.queue >= 0 else None
                if cause:
                    yield event, ""
            if isinstance(event, Register) and event.area == "isr" and cause and enabled:
                yield event, f"the interrupt was of virtqueue {cause.queue}"
