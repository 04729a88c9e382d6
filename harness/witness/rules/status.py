"""Rules on the device status, the initialization and suspension (virtio 2.1.1, 3.1, 3.4)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.witness.events import ConfigWrite, Event, Notified, Register, Status, Waiting
from harness.witness.rules.rule import Check, rule
from harness.witness.sessions import Session

KEPT_BITS = (
    DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.FAILED
)
"""Bits that only a reset clears. The device itself may set NEEDS_RESET and change the others."""

STEPS = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK


@rule("2.1.1-R-01", idle="the driver has not set DRIVER_OK", registers=True)
def steps_are_shown(session: Session) -> Iterator[Check]:
    """Check that the bits of all earlier steps are set when DRIVER_OK is."""
    for event, state in session.walk(Status):
        if isinstance(event, Status) and event.value & DeviceStatus.DRIVER_OK and not state.live:
            missing = STEPS & ~event.value
            yield event, f"DRIVER_OK without {DeviceStatus(missing).name}" if missing else ""


@rule("2.1.1-R-02", idle="the driver has not written the status twice", registers=True)
def bits_stay_set(session: Session) -> Iterator[Check]:
    """Compare each write with what the status read before it."""
    for event, _ in session.walk(Status):
        if isinstance(event, Status) and event.value and event.before:
            lost = KEPT_BITS & event.before & ~event.value
            yield event, f"{DeviceStatus(lost).name} is cleared" if lost else ""


@rule("3.1.1-R-01", idle="the driver has not set DRIVER_OK", registers=True)
def order_of_initialization(session: Session) -> Iterator[Check]:
    """Check the steps before DRIVER_OK: reset, bits in order, features, status read again."""
    features_read = status_read = enabled_early = False
    written = 0
    problem = "" if session.reset else "the driver did not reset the device first"
    for event, state in session.walk(Register, Status):
        if isinstance(event, Register) and not state.live:
            if not event.write and "device_feature" in event.names:
                features_read = True
            if not event.write and "device_status" in event.names:
                status_read = bool(written & DeviceStatus.FEATURES_OK)
            if event.write and "queue_enable" in event.names:
                enabled_early |= not written & DeviceStatus.FEATURES_OK
        if not isinstance(event, Status) or not event.value:
            continue
        new = event.value & ~written
        written |= event.value
        if new & DeviceStatus.ACKNOWLEDGE and event.before & DeviceStatus.DRIVER:
            problem = problem or "DRIVER was set before ACKNOWLEDGE"
        if new & DeviceStatus.FEATURES_OK and not written & DeviceStatus.DRIVER:
            problem = problem or "FEATURES_OK was set before DRIVER"
        if new & DeviceStatus.FEATURES_OK and not features_read:
            problem = problem or "FEATURES_OK was set and the features had not been read"
        if new & DeviceStatus.DRIVER_OK:
            if not written & DeviceStatus.FEATURES_OK:
                problem = problem or "DRIVER_OK was set before FEATURES_OK"
            elif not status_read:
                problem = problem or "the status was not read between FEATURES_OK and DRIVER_OK"
            if enabled_early:
                problem = problem or "a virtqueue was enabled before FEATURES_OK"
            yield event, problem


@rule("3.1.1-R-02b", idle="the driver has not set FEATURES_OK", registers=True)
def no_config_write_before_features(session: Session) -> Iterator[Check]:
    """Check that the configuration is not written before FEATURES_OK."""
    for event, state in session.walk(ConfigWrite, Status):
        early = not state.status & DeviceStatus.FEATURES_OK
        if isinstance(event, ConfigWrite) and early:
            yield event, "FEATURES_OK is not set"
        if isinstance(event, Status) and event.value & DeviceStatus.FEATURES_OK and early:
            yield event, ""


@rule("3.1.1-R-03", idle="the driver has not set FEATURES_OK", registers=True)
def no_new_features_later(session: Session) -> Iterator[Check]:
    """Check that driver_feature gets no new bits after FEATURES_OK."""
    select, words = 0, dict[int, int]()
    for event, state in session.walk(Status, Register):
        done = state.status & DeviceStatus.FEATURES_OK
        if isinstance(event, Status) and event.value & DeviceStatus.FEATURES_OK and not done:
            yield event, ""
        if not isinstance(event, Register) or not event.write:
            continue
        if event.names == ("driver_feature_select",):
            select = event.value
        if event.names == ("driver_feature",):
            new = event.value & ~words.get(select, 0)
            if done and new:
                yield event, f"new bits {new:#x} in word {select} after FEATURES_OK"
            words[select] = event.value


@rule("3.1.1-R-06", idle="the driver has sent no notification", registers=True)
def no_early_notification(session: Session) -> Iterator[Check]:
    """Check that notifications come after DRIVER_OK."""
    for event, state in session.walk(Notified):
        if isinstance(event, Notified):
            yield event, "" if state.live else "DRIVER_OK is not set"


@rule("3.4.1-R-01", idle="the driver has not set SUSPEND", registers=True)
def suspends_a_running_device(session: Session) -> Iterator[Check]:
    """Check that the driver sets SUSPEND only after DRIVER_OK, and if SUSPEND was negotiated."""
    for event, state in session.walk(Status):
        if isinstance(event, Status) and event.value & ~event.before & DeviceStatus.SUSPEND:
            if not state.has(Feature.SUSPEND):
                yield event, "SUSPEND was not negotiated"
            else:
                running = event.before & DeviceStatus.DRIVER_OK
                yield event, "" if running else "DRIVER_OK is not set"


@rule("3.4.1-R-02", idle="the driver has not suspended and resumed the device", registers=True)
def reads_whether_it_is_suspended(session: Session) -> Iterator[Check]:
    """Check that the status is read between suspension and resumption."""
    asked = seen = False
    for event, _ in session.walk(Register, Status):
        if isinstance(event, Register) and not event.write and "device_status" in event.names:
            seen = True
        if isinstance(event, Status) and event.value:
            if asked and event.value & DeviceStatus.DRIVER_OK:
                yield event, "" if seen else "the status was not read after SUSPEND was set"
            asked = bool(event.value & ~event.before & DeviceStatus.SUSPEND)
            seen = False


@rule("3.4.1-R-04", idle="the driver has not suspended the device", registers=True)
def no_notification_while_suspended(session: Session) -> Iterator[Check]:
    """Check that no notification comes between suspension and resumption."""
    for event, state in session.walk(Status, Notified):
        asked = isinstance(event, Status) and event.value & DeviceStatus.SUSPEND
        if asked and state.has(Feature.SUSPEND):
            yield event, ""
        if isinstance(event, Notified) and state.suspended:
            yield event, "SUSPEND is set"


@rule("3.4.1-R-05", idle="the driver has not suspended the device", registers=True)
def no_config_write_while_suspended(session: Session) -> Iterator[Check]:
    """Check that the configuration is not written between suspension and resumption."""
    for event, state in session.walk(Status, ConfigWrite):
        asked = isinstance(event, Status) and event.value & DeviceStatus.SUSPEND
        if asked and state.has(Feature.SUSPEND):
            yield event, ""
        if isinstance(event, ConfigWrite) and state.suspended:
            yield event, "SUSPEND is set"


@rule("2.1.1-R-03", idle="the driver has not set FAILED", registers=True, legacy=None)
def resets_after_failure(session: Session) -> Iterator[Check]:
    """Check that after FAILED no status without it is written, except by a reset."""
    if session.before and session.reset and session.before.failed:
        first = next((event for event, _ in session.walk() if isinstance(event, Status)), None)
        if first:
            yield first, ""
    for event, state in session.walk(Status):
        if isinstance(event, Status) and state.status & DeviceStatus.FAILED:
            again = event.value and not event.value & DeviceStatus.FAILED
            yield event, "the device was not reset after FAILED" if again else ""


def refused(session: Session) -> Iterator[tuple[Event, bool]]:
    """Yield each event after a FEATURES_OK that the device has refused, and whether it goes on.

    The refusal is a read of the status without FEATURES_OK. A new choice of features ends it.
    """
    asked = no = False
    for event, state in session.walk(Status, Register):
        if isinstance(event, Status):
            goes_on = event.value & DeviceStatus.DRIVER_OK & ~state.status
            if no:
                yield event, bool(goes_on)
            asked = bool(event.value & DeviceStatus.FEATURES_OK)
            no = no and not asked
        elif isinstance(event, Register) and not event.write and "device_status" in event.names:
            no |= asked and not event.value & DeviceStatus.FEATURES_OK
            no &= not event.value & DeviceStatus.FEATURES_OK
        elif no and isinstance(event, Register) and event.write and "queue_enable" in event.names:
            yield event, True


@rule("3.1.1-R-04", idle="the device has not refused FEATURES_OK", registers=True)
def sets_failed(session: Session) -> Iterator[Check]:
    """Check that the first status after a refusal of FEATURES_OK has FAILED."""
    for event, _ in refused(session):
        if isinstance(event, Status):
            failed = event.value & DeviceStatus.FAILED
            yield event, "" if failed else "FEATURES_OK was refused, and FAILED is not set"
            return


@rule("3.1.1-R-05", idle="no initialization has failed", registers=True)
def gives_up(session: Session) -> Iterator[Check]:
    """Check that the initialization does not go on after FAILED or a refusal of FEATURES_OK."""
    for event, goes_on in refused(session):
        yield event, "FEATURES_OK was refused" if goes_on else ""
    for event, state in session.walk(Status):
        if isinstance(event, Status) and event.value & DeviceStatus.FAILED and not state.live:
            goes_on = bool(state.status & DeviceStatus.FAILED)
            goes_on = goes_on and bool(event.value & DeviceStatus.DRIVER_OK)
            yield event, "the driver has set FAILED" if goes_on else ""


@rule("3.4.1-R-03", idle="the driver has not suspended and resumed the device", registers=True)
def nothing_available_while_suspended(session: Session) -> Iterator[Check]:
    """Compare what is available at the suspension and at the resumption."""
    known: dict[int, int] = {}
    for event, _ in session.walk(Waiting):
        if not isinstance(event, Waiting):
            continue
        if event.queue in known:
            more = event.count - known.pop(event.queue)
            yield event, f"{more} more than at the suspension" if more > 0 else ""
        else:
            known[event.queue] = event.count


@rule("3.4.1-R-06", idle="the driver has not resumed the device", registers=True)
def waits_for_the_resumption(session: Session) -> Iterator[Check]:
    """Check that the status is read with DRIVER_OK and without SUSPEND before a notification."""
    resumed: Event | None = None
    done = False
    for event, state in session.walk(Status, Register, Notified, ConfigWrite):
        if isinstance(event, Status):
            asked = event.before & DeviceStatus.SUSPEND and state.has(Feature.SUSPEND)
            if asked and event.value & DeviceStatus.DRIVER_OK:
                resumed, done = event, False
        if isinstance(event, Register) and not event.write and "device_status" in event.names:
            running = DeviceStatus(event.value & 0xFF) & (
                DeviceStatus.DRIVER_OK | DeviceStatus.SUSPEND
            )
            done |= running == DeviceStatus.DRIVER_OK
        if resumed and isinstance(event, Notified | ConfigWrite):
            yield event, "" if done else "the status was not read after the resumption"
            resumed = None
