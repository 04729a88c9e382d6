"""Rules on registers of virtio-mmio (virtio 4.2)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.mmio import (
    INTERRUPT_CONFIG,
    INTERRUPT_USED,
    LEGACY_VERSION,
    MAGIC,
    REGISTERS,
    VERSION,
)
from harness.witness.events import Event, Interrupt, Register, Status
from harness.witness.rules.capabilities import history
from harness.witness.rules.pci import field_width
from harness.witness.rules.rule import Check, rule
from harness.witness.sessions import Session, State

NAMES = {offset: name for name, offset in REGISTERS.items()}

READ_ONLY = {
    *("MagicValue", "Version", "DeviceID", "VendorID", "DeviceFeatures", "QueueSizeMax"),
    *("InterruptStatus", "SHMLenLow", "SHMLenHigh", "SHMBaseLow", "SHMBaseHigh"),
    "ConfigGeneration",
}
READ_AND_WRITE = {"QueueReady", "Status", "QueueReset"}
WRITE_ONLY = set(REGISTERS) - READ_ONLY - READ_AND_WRITE

ADDRESSES = {
    *("QueueDescLow", "QueueDescHigh", "QueueDriverLow", "QueueDriverHigh"),
    *("QueueDeviceLow", "QueueDeviceHigh"),
}
ANY_TIME = {"InterruptACK", "QueueNotify"}
IDENTITY = ("MagicValue", "Version", "DeviceID", "VendorID")
DEFINED = INTERRUPT_USED | INTERRUPT_CONFIG

NOTHING = "no register of a modern virtio-mmio device was accessed"
NO_QUEUE = "no virtqueue was set up"


def version(session: Session) -> int:
    """Return the last Version that the driver has read by the end of the session, 0 if none."""
    for past in reversed(history(session)):
        for event in reversed(past.events):
            if isinstance(event, Register) and offset_of(event) == REGISTERS["Version"]:
                if event.write:
                    continue
                return event.value
    return 0


def accesses(session: Session) -> Iterator[tuple[Register, State, str]]:
    """Yield accesses to registers of a modern device, with the name of the register.

    The name is empty for an offset that no register has.
    """
    if version(session) != VERSION:
        return
    for event, state in session.walk(Register):
        if isinstance(event, Register) and event.area == "mmio":
            yield event, state, NAMES.get(event.offset & ~3, "")


@rule("4.2.2.2-R-01a", idle=NOTHING, registers=True)
def described_locations(session: Session) -> Iterator[Check]:
    """Check that each access is to a register that the table describes."""
    for event, _, name in accesses(session):
        yield event, "" if name else "no register is there"


@rule("4.2.2.2-R-01b", idle="no register was written", registers=True)
def writes(session: Session) -> Iterator[Check]:
    """Check that no read-only register is written."""
    for event, _, name in accesses(session):
        if event.write and name:
            yield event, f"{name} is read-only" if name in READ_ONLY else ""


@rule("4.2.2.2-R-01c", idle=NOTHING, registers=True)
def reads(session: Session) -> Iterator[Check]:
    """Check that no write-only register is read."""
    for event, _, name in accesses(session):
        if not event.write and name:
            yield event, f"{name} is write-only" if name in WRITE_ONLY else ""


@rule("4.2.2.2-R-02", idle=NOTHING, registers=True)
def width(session: Session) -> Iterator[Check]:
    """Check that registers are accessed by aligned 32 bits."""
    for event, _, name in accesses(session):
        if name:
            right = event.width == 4 and event.offset % 4 == 0
            yield event, "" if right else "no aligned access of 32 bits"


@rule("4.2.2.2-R-03", idle="the device configuration was not accessed", registers=True)
def width_of_fields(session: Session) -> Iterator[Check]:
    """Compare the width of each access to the configuration with the field."""
    if version(session) == VERSION:
        yield from field_width(session)


def selected(session: Session, select: str, register: str, write: bool) -> Iterator[Check]:
    """Check that a selector was written before an access to the register that it selects."""
    done = False
    for event, _, name in accesses(session):
        done |= event.write and name == select
        if name == register and event.write == write:
            yield event, "" if done else f"{select} was not written before"


@rule("4.2.2.2-R-07", idle="DeviceFeatures was not read", registers=True)
def device_features(session: Session) -> Iterator[Check]:
    """Check that DeviceFeaturesSel is written before DeviceFeatures is read."""
    yield from selected(session, "DeviceFeaturesSel", "DeviceFeatures", write=False)


@rule("4.2.2.2-R-08", idle="DriverFeatures was not written", registers=True)
def driver_features(session: Session) -> Iterator[Check]:
    """Check that DriverFeaturesSel is written before DriverFeatures is."""
    yield from selected(session, "DriverFeaturesSel", "DriverFeatures", write=True)


def queues(session: Session) -> Iterator[tuple[Register, State, str, int]]:
    """Yield accesses to registers with the virtqueue that is selected."""
    queue = 0
    for event, state, name in accesses(session):
        yield event, state, name, queue
        if name == "QueueSel" and event.write:
            queue = event.value


@rule("4.2.2.2-R-09", idle="QueueSize was not written after a read of QueueSizeMax", registers=True)
def size(session: Session) -> Iterator[Check]:
    """Compare QueueSize with the QueueSizeMax that the driver has read."""
    most: dict[int, int] = {}
    for event, _, name, queue in queues(session):
        if name == "QueueSizeMax" and not event.write:
            most[queue] = event.value
        if name == "QueueSize" and event.write and queue in most:
            wrong = event.value > most[queue]
            yield event, f"QueueSizeMax is {most[queue]}" if wrong else ""


@rule("4.2.2.2-R-10", idle=NO_QUEUE, registers=True)
def ready_queue_stays(session: Session) -> Iterator[Check]:
    """Check that size and addresses are not accessed while QueueReady is not 0."""
    ready: set[int] = set()
    for event, _, name, queue in queues(session):
        if name == "QueueReady" and event.write:
            (ready.add if event.value else ready.discard)(queue)
        if name == "QueueReset" and event.write and event.value:
            ready.discard(queue)
        if name == "QueueSize" or name in ADDRESSES:
            yield event, f"virtqueue {queue} is ready" if queue in ready else ""


@rule(
    "4.2.2.2-R-11a",
    idle="no virtqueue was stopped",
    registers=True,
    never_red="A driver may stop a virtqueue by a reset of the device.",
)
def stops(session: Session) -> Iterator[Check]:
    """Find writes of 0 to QueueReady of a virtqueue that is ready."""
    ready: set[int] = set()
    for event, _, name, queue in queues(session):
        if name == "QueueReady" and event.write:
            if event.value:
                ready.add(queue)
            elif queue in ready:
                ready.discard(queue)
                yield event, ""


@rule("4.2.2.2-R-11b", idle="no virtqueue was stopped", registers=True)
def reads_back(session: Session) -> Iterator[Check]:
    """Check that QueueReady is read after a 0, before the next register that is written.

    Writes by which another processor handles an interrupt or notifies may come in between.
    """
    stopped: Register | None = None
    ready: set[int] = set()
    for event, _, name, queue in queues(session):
        if stopped and name == "QueueReady" and not event.write:
            yield stopped, ""
            stopped = None
        elif stopped and event.write and name not in ANY_TIME:
            yield stopped, "QueueReady was not read back"
            stopped = None
        if name == "QueueReady" and event.write:
            if event.value:
                ready.add(queue)
            elif queue in ready:
                ready.discard(queue)
                stopped = event


@rule("4.2.2.2-R-13b", idle="InterruptACK was not written", registers=True)
def defined_bits(session: Session) -> Iterator[Check]:
    """Check that InterruptACK gets no bits that are not defined."""
    for event, _, name in accesses(session):
        if name == "InterruptACK" and event.write:
            extra = event.value & ~DEFINED
            yield event, f"the bits {extra:#x} are not defined" if extra else ""


def acknowledgements(session: Session) -> Iterator[tuple[Register, int | None]]:
    """Yield writes of InterruptACK with the InterruptStatus that was read since the last one."""
    seen: int | None = None
    for event, _, name in accesses(session):
        if name == "InterruptStatus" and not event.write:
            seen = (seen or 0) | event.value
        if name == "InterruptACK" and event.write:
            yield event, seen
            seen = None


@rule("4.2.2.2-R-13a", idle="no interrupt was acknowledged", registers=True)
def handled_events(session: Session) -> Iterator[Check]:
    """Check that InterruptACK gets bits that InterruptStatus has shown, and not 0."""
    for event, seen in acknowledgements(session):
        if seen:
            wrong = f"InterruptStatus was {seen:#x}"
            yield event, wrong if event.value & DEFINED & ~seen or not event.value else ""


@rule("4.2.3.4.1-R-01", idle="no interrupt was acknowledged", registers=True)
def status_is_read(session: Session) -> Iterator[Check]:
    """Check that InterruptStatus is read between an interrupt and its acknowledgement.

    A stream without interrupts shows only drivers that have read it.
    """
    if version(session) != VERSION:
        return
    interrupted = looked = False
    for event, _ in session.walk(Interrupt, Register):
        if isinstance(event, Interrupt):
            interrupted, looked = True, False
        if not isinstance(event, Register) or event.area != "mmio":
            continue
        name = NAMES.get(event.offset & ~3)
        looked |= name == "InterruptStatus" and not event.write
        if name == "InterruptACK" and event.write and (looked or interrupted):
            yield event, "" if looked else "InterruptStatus was not read"


@rule(
    "4.2.3.4.1-R-03",
    idle="no interrupt was acknowledged",
    registers=True,
    never_red="A driver that reads InterruptStatus may poll, with no interrupt to acknowledge.",
)
def acknowledges(session: Session) -> Iterator[Check]:
    """Find writes of InterruptACK after a read of InterruptStatus."""
    for event, seen in acknowledgements(session):
        if seen:
            yield event, ""


@rule("4.2.2.2-R-14", idle="no virtqueue was made ready after a queue reset", registers=True)
def waits_for_the_queue_reset(session: Session) -> Iterator[Check]:
    """Check that QueueReset is read as 0 before the virtqueue is made ready again."""
    waiting: dict[int, bool] = {}
    for event, state, name, queue in queues(session):
        if name == "QueueReset" and state.has(Feature.RING_RESET):
            if event.write and event.value == 1:
                waiting[queue] = False
            elif not event.write and event.value == 0 and queue in waiting:
                waiting[queue] = True
        if name == "QueueReady" and event.write and event.value and queue in waiting:
            yield event, "" if waiting.pop(queue) else "QueueReset was not read as 0"


# --- initialization (virtio 4.2.3.1)


def first_accesses(session: Session) -> list[Event]:
    """Return the accesses of the first session of a peer, none for a later session.

    None as well if the stream may have begun later than the driver.
    """
    if session.before is not None or session.device.late:
        return []
    return [event for event in session.events if isinstance(event, Register | Status)]


def offset_of(event: Event) -> int:
    """Return the offset of a register of virtio-mmio, -1 for another event."""
    return event.offset if isinstance(event, Register) and event.area == "mmio" else -1


@rule("4.2.3.1.1-R-01", idle="no start of a driver was seen", registers=True)
def begins_with_magic_and_version(session: Session) -> Iterator[Check]:
    """Check that the first two registers that are read are MagicValue and Version."""
    events = first_accesses(session)
    different = list(dict.fromkeys(offset_of(event) for event in events))[:2]
    if len(different) == 2:
        right = set(different) == {REGISTERS["MagicValue"], REGISTERS["Version"]}
        yield events[0], "" if right else "others than MagicValue and Version came first"


def identity(session: Session) -> dict[str, int]:
    """Return what the driver has read of MagicValue, Version, DeviceID and VendorID."""
    return {
        NAMES[event.offset]: event.value
        for event in session.events
        if isinstance(event, Register)
        and event.area == "mmio"
        and not event.write
        and NAMES.get(event.offset) in IDENTITY
    }


@rule("4.2.3.1.1-R-02a", idle="no valid MagicValue and Version were read", registers=True)
def reads_device_id(session: Session) -> Iterator[Check]:
    """Check that DeviceID is read before any register is written."""
    known = identity(session)
    valid = known.get("MagicValue") == MAGIC and known.get("Version") in (VERSION, LEGACY_VERSION)
    for event in first_accesses(session):
        if valid and offset_of(event) == REGISTERS["DeviceID"]:
            yield event, ""
            return
        if valid and isinstance(event, Register) and event.write:
            yield event, "DeviceID was not read"
            return


@rule(
    "4.2.2.2-R-06a",
    "4.2.3.1.1-R-02b",
    idle="no DeviceID of 0 was read",
    registers=True,
)
def leaves_a_placeholder(session: Session) -> Iterator[Check]:
    """Check that nothing is written to a device whose DeviceID is 0."""
    yield from after_a_device_id_of_0(session, reads_too=False)


@rule("4.2.3.1.1-R-02c", idle="no DeviceID of 0 was read", registers=True)
def leaves_other_registers(session: Session) -> Iterator[Check]:
    """Check that no other register is accessed once DeviceID was read as 0.

    A later driver may look at the identity of the device again.
    """
    yield from after_a_device_id_of_0(session, reads_too=True)


def after_a_device_id_of_0(session: Session, reads_too: bool) -> Iterator[Check]:
    """Yield a read of DeviceID as 0, and accesses after it to other registers than the identity."""
    device_id_0 = False
    allowed = {REGISTERS[name] for name in IDENTITY[:3]}
    for event, _ in session.walk(Register):
        if not isinstance(event, Register) or event.area not in ("mmio", "device"):
            continue
        identity_read = event.area == "mmio" and event.offset in allowed and not event.write
        if identity_read and event.offset == REGISTERS["DeviceID"] and event.value == 0:
            device_id_0 = True
            yield event, ""
        elif device_id_0 and not identity_read and (event.write or reads_too):
            yield event, "DeviceID is 0"


@rule("4.2.3.1.1-R-03", idle="no driver set DRIVER_OK", registers=True)
def no_shared_memory(session: Session) -> Iterator[Check]:
    """Check that the registers for shared memory, which a block device lacks, are not used."""
    for event, _, name in accesses(session):
        if name.startswith("SHM"):
            yield event, "a block device has no shared memory"
    for step, _ in session.walk(Status):
        if isinstance(step, Status) and step.value & DeviceStatus.DRIVER_OK:
            yield step, ""
