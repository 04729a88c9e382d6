"""Rules on registers of a PCI function (virtio 2.5.1, 2.6.1, 4.1, 5.2.5.1)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.blk import CONFIG_FIELD, CONFIG_FIELDS
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.pci import NO_VECTOR
from harness.witness.events import Notified, Register, Status
from harness.witness.rules.rule import Check, rule
from harness.witness.sessions import Session, State

READ_ONLY = {
    "device_feature",
    "num_queues",
    "config_generation",
    "queue_notify_off",
    "queue_notif_config_data",
}
PLACES = ("queue_desc", "queue_driver", "queue_device")
CONFIGURED = {"queue_size", *PLACES}


def common(session: Session) -> Iterator[tuple[Register, State, int]]:
    """Yield accesses to the common configuration, with the virtqueue that is selected."""
    selected = 0
    for event, state in session.walk(Register):
        if isinstance(event, Register) and event.area == "common":
            yield event, state, selected
            if event.write and event.names == ("queue_select",):
                selected = event.value


def writes(session: Session, name: str) -> Iterator[tuple[Register, State, int]]:
    """Yield the writes that touch a register of the common configuration."""
    for event, state, selected in common(session):
        if event.write and name in event.names:
            yield event, state, selected


@rule("4.1.4.3.2-R-01", idle="no register was written", registers=True)
def read_only_registers(session: Session) -> Iterator[Check]:
    """Check that no read-only register is written."""
    for event, _, _ in common(session):
        if event.write:
            wrong = READ_ONLY & set(event.names)
            yield event, f"{', '.join(sorted(wrong))} is read-only" if wrong else ""


@rule("4.1.4.3.2-R-02", idle="queue_size was not written with RING_PACKED", registers=True)
def packed_size(session: Session) -> Iterator[Check]:
    """Check that the size of a packed virtqueue is not 0."""
    for event, state, _ in writes(session, "queue_size"):
        if state.has(Feature.RING_PACKED):
            yield event, "" if event.value else "the size is 0"


@rule("4.1.4.3.2-R-03", idle="queue_size was not written without RING_PACKED", registers=True)
def split_size(session: Session) -> Iterator[Check]:
    """Check that the size of a split virtqueue is a power of 2."""
    for event, state, _ in writes(session, "queue_size"):
        if not state.has(Feature.RING_PACKED):
            wrong = event.value.bit_count() != 1
            yield event, f"{event.value} is not a power of 2" if wrong else ""


@rule("4.1.4.3.2-R-04", idle="no virtqueue was enabled", registers=True)
def configured_before_enabled(session: Session) -> Iterator[Check]:
    """Check that addresses are written before a virtqueue is enabled, and nothing afterwards."""
    enabled: set[int] = set()
    written: dict[int, set[str]] = {}
    for event, _, queue in common(session):
        if not event.write:
            continue
        if "queue_enable" in event.names and event.value == 1:
            enabled.add(queue)
            missing = [name for name in PLACES if name not in written.get(queue, ())]
            yield event, f"{', '.join(missing)} not written" if missing else ""
        if "queue_reset" in event.names:
            enabled.discard(queue)
        written.setdefault(queue, set()).update(event.names)
        if queue in enabled and CONFIGURED & set(event.names):
            yield event, f"virtqueue {queue} is enabled already"


@rule(
    "4.1.4.3.2-R-05",
    "2.4.2-R-01",
    idle="no status was written after a reset by the status",
    registers=True,
)
def waits_for_the_reset(session: Session) -> Iterator[Check]:
    """Check that the status is read as 0 before it is written again."""
    by_status = seen = False
    for event, _ in session.walk(Register):
        if isinstance(event, Register) and "device_status" in event.names:
            if event.write and event.value == 0:
                by_status, seen = True, False
            elif event.write and by_status:
                yield event, "" if seen else "the status was not read as 0 after the reset"
                by_status = False
            elif not event.write and event.value == 0:
                seen = True


@rule("4.1.4.3.2-R-06", idle="queue_enable was not written", registers=True)
def enable_is_one_way(session: Session) -> Iterator[Check]:
    """Check that 0 is not written to queue_enable."""
    for event, _, _ in writes(session, "queue_enable"):
        yield event, "" if event.value else "0 was written"


@rule(
    "4.1.4.3.2-R-07",
    "2.6.1.1.2-R-01",
    idle="no virtqueue was enabled again after a queue reset",
    registers=True,
)
def waits_for_the_queue_reset(session: Session) -> Iterator[Check]:
    """Check that queue_reset is read as 0 before the virtqueue is set up again."""
    waiting: set[int] = set()
    done: set[int] = set()
    for event, state, queue in common(session):
        if "queue_reset" in event.names and state.has(Feature.RING_RESET):
            if event.write and event.value == 1:
                waiting.add(queue)
            elif not event.write and event.value == 0 and queue in waiting:
                done.add(queue)
        if event.write and "queue_enable" in event.names and queue in waiting:
            yield event, "" if queue in done else "queue_reset was not read as 0"
            waiting.discard(queue)
            done.discard(queue)


@rule("2.6.1.2.2-R-01", idle="no virtqueue was enabled again", registers=True)
def configured_again(session: Session) -> Iterator[Check]:
    """Check that the addresses are written again after a queue reset."""
    written: dict[int, set[str]] = {}
    for event, state, queue in common(session):
        if not event.write:
            continue
        if "queue_reset" in event.names and event.value == 1 and state.has(Feature.RING_RESET):
            written[queue] = set()
        if queue in written:
            written[queue].update(event.names)
            if "queue_enable" in event.names:
                missing = [name for name in PLACES if name not in written[queue]]
                yield event, f"{', '.join(missing)} not written again" if missing else ""
                del written[queue]


def device_area(session: Session) -> Iterator[tuple[Register, State]]:
    """Yield accesses to the device-specific configuration."""
    for event, state in session.walk(Register):
        if isinstance(event, Register) and event.area == "device":
            yield event, state


@rule("4.1.3.1-R-01", idle="the device configuration was not accessed", registers=True)
def width_of_fields(session: Session) -> Iterator[Check]:
    """Compare the width of each access with the field, 32 bits for wider ones."""
    yield from field_width(session)


def field_width(session: Session) -> Iterator[Check]:
    """Compare the width of each access to the configuration with the field."""
    for event, _ in device_area(session):
        field = next(
            (known for known in CONFIG_FIELDS if 0 <= event.offset - known.offset < known.size),
            None,
        )
        if field is None or field.name.startswith("unused"):
            continue
        width = min(field.size, 4)
        right = event.width == width and (event.offset - field.offset) % width == 0
        wrong = f"{field.name} has {8 * field.size} bits"
        yield event, "" if right else wrong


@rule("2.5.1-R-02", idle="no optional configuration field was accessed", registers=True)
def optional_fields(session: Session) -> Iterator[Check]:
    """Check that the features of the fields that an access touches are offered."""
    for event, state in device_area(session):
        for field in CONFIG_FIELDS:
            touched = field.offset < event.offset + event.width
            if field.feature is None or not touched or event.offset >= field.offset + field.size:
                continue
            offered = state.device.offered & field.feature.mask
            wrong = f"{field.name} needs {field.feature.name}, which is not offered"
            yield event, "" if offered else wrong


@rule("5.2.5.1-R-04", idle="writeback was not read", registers=True)
def writeback_after_features(session: Session) -> Iterator[Check]:
    """Check that writeback is read after FEATURES_OK."""
    offset = CONFIG_FIELD["writeback"].offset
    for event, state in device_area(session):
        if not event.write and event.offset <= offset < event.offset + event.width:
            known = state.status & DeviceStatus.FEATURES_OK
            yield event, "" if known else "FEATURES_OK is not set"


@rule("4.1.5.1.2.2-R-04", idle="no event was mapped to a vector", registers=True)
def vectors_of_the_table(session: Session) -> Iterator[Check]:
    """Compare the vectors with the size of the MSI-X table."""
    for event, state, _ in common(session):
        vector = {"config_msix_vector", "queue_msix_vector"} & set(event.names)
        if event.write and vector and event.value != NO_VECTOR and state.device.vectors >= 0:
            wrong = f"the table has {state.device.vectors} vectors"
            yield event, wrong if event.value >= state.device.vectors else ""


@rule("4.1.5.1.2.2-R-05", idle="no event was mapped to a vector", registers=True)
def vectors_are_read_back(session: Session) -> Iterator[Check]:
    """Check that a vector is read back before another queue is selected or DRIVER_OK is set."""
    pending: dict[str, Register] = {}
    for event, _ in session.walk(Register, Status):
        if isinstance(event, Register) and event.area == "common":
            for name in ("config_msix_vector", "queue_msix_vector"):
                if name not in event.names:
                    continue
                if event.write and event.value != NO_VECTOR:
                    pending[name] = event
                elif not event.write and name in pending:
                    yield pending.pop(name), ""
            if event.write and event.names == ("queue_select",) and "queue_msix_vector" in pending:
                yield pending.pop("queue_msix_vector"), "not read back"
        if isinstance(event, Status) and event.value & DeviceStatus.DRIVER_OK:
            for name in list(pending):
                yield pending.pop(name), "not read back"


def notifications(
    session: Session, data: bool, own: bool | None = None
) -> Iterator[tuple[Notified, State]]:
    """Yield notifications with NOTIFICATION_DATA (`data`) and NOTIF_CONFIG_DATA (`own`) or not."""
    for event, state in session.walk(Notified):
        if not isinstance(event, Notified) or event.width == 0:
            continue
        matches = own is None or own == state.has(Feature.NOTIF_CONFIG_DATA)
        if matches and data == state.has(Feature.NOTIFICATION_DATA):
            yield event, state


@rule("4.1.5.2.1-R-01", idle="no notification without NOTIFICATION_DATA", registers=True)
def short_notification(session: Session) -> Iterator[Check]:
    """Check that a notification has 16 bits."""
    for event, _ in notifications(session, data=False):
        yield event, "" if event.width == 2 else f"{8 * event.width} bits, not 16"


@rule("4.1.5.2.1-R-02", idle="no notification with NOTIFICATION_DATA", registers=True)
def long_notification(session: Session) -> Iterator[Check]:
    """Check that a notification has 32 bits."""
    for event, _ in notifications(session, data=True):
        yield event, "" if event.width == 4 else f"{8 * event.width} bits, not 32"


@rule("4.1.5.2.1-R-03", idle="no notification without both features", registers=True)
def value_is_the_index(session: Session) -> Iterator[Check]:
    """Check that the value is the index of the virtqueue."""
    for event, _ in notifications(session, data=False, own=False):
        yield event, "" if event.value == event.queue else f"the index is {event.queue}"


@rule("4.1.5.2.1-R-04", idle="no notification with NOTIFICATION_DATA only", registers=True)
def field_is_the_index(session: Session) -> Iterator[Check]:
    """Check that the low 16 bits are the index of the virtqueue."""
    for event, _ in notifications(session, data=True, own=False):
        right = event.value & 0xFFFF == event.queue
        yield event, "" if right else f"the index is {event.queue}"


def own_data(session: Session, data: bool) -> Iterator[Check]:
    """Compare the low 16 bits with queue_notif_config_data, where the driver has read it."""
    known: dict[int, int] = {}
    selected = 0
    for event, state in session.walk(Register, Notified):
        if isinstance(event, Register) and event.area == "common":
            if event.write and event.names == ("queue_select",):
                selected = event.value
            if not event.write and event.names == ("queue_notif_config_data",):
                known[selected] = event.value
        if isinstance(event, Notified) and event.width and event.queue in known:
            both = state.has(Feature.NOTIF_CONFIG_DATA)
            if both and data == state.has(Feature.NOTIFICATION_DATA):
                right = event.value & 0xFFFF == known[event.queue]
                wrong = f"queue_notif_config_data is {known[event.queue]:#x}"
                yield event, "" if right else wrong


@rule("4.1.5.2.1-R-05", idle="no notification with NOTIF_CONFIG_DATA only", registers=True)
def value_is_own_data(session: Session) -> Iterator[Check]:
    """Check the value of a notification without NOTIFICATION_DATA."""
    yield from own_data(session, data=False)


@rule("4.1.5.2.1-R-06", idle="no notification with both features", registers=True)
def field_is_own_data(session: Session) -> Iterator[Check]:
    """Check the low 16 bits of a notification with NOTIFICATION_DATA."""
    yield from own_data(session, data=True)


@rule("4.1.4.10-L-02", idle="no legacy interface was used", registers=True, legacy=True)
def legacy_structure(session: Session) -> Iterator[Check]:
    """Check that a driver of the legacy interface does not use the common configuration too."""
    for event, _ in session.walk(Register):
        if isinstance(event, Register) and event.write and event.area in ("common", "legacy"):
            modern = event.area == "common"
            yield event, "the legacy interface is in use" if modern else ""
