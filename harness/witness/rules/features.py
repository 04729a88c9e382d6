"""Rules on the choice of features (virtio 2.2.1, 5.2.5.1, 6)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.blk import CONFIG_FIELD, ZonedModel
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, names
from harness.witness.events import Features, Register, Request, Status
from harness.witness.rules.rule import Check, Function, rule
from harness.witness.sessions import Session


@rule("2.2.1-R-01a", idle="the driver has chosen no features", registers=True)
def only_offered_features(session: Session) -> Iterator[Check]:
    """Compare the choice with the offer."""
    for event, state in session.walk(Features):
        if isinstance(event, Features):
            extra = event.chosen & ~state.device.offered
            yield event, f"not offered: {', '.join(names(extra))}" if extra else ""


def accepts(feature: Feature) -> Function:
    """Return a rule function: the feature is accepted if it is offered."""

    def check(session: Session) -> Iterator[Check]:
        for event, state in session.walk(Features):
            if isinstance(event, Features) and state.device.offered & feature.mask:
                missing = not event.chosen & feature.mask
                yield event, f"{feature.name} is offered and not accepted" if missing else ""

    return check


for _name, _feature in {
    "6.1-R-01": Feature.VERSION_1,
    "6.1-R-03a": Feature.ACCESS_PLATFORM,
    "6.1-R-05": Feature.RING_PACKED,
    "6.1-R-06": Feature.ORDER_PLATFORM,
    "6.1-R-12": Feature.NOTIF_CONFIG_DATA,
    "5.2.6.1-R-03": Feature.BLK_RO,
}.items():
    # A vhost-user front-end may hide what the back-end offers, so registers are needed.
    rule(_name, idle=f"{_feature.name} was not offered to a driver", registers=True)(
        accepts(_feature)
    )


@rule("6.1-R-09", idle="SR_IOV was not offered to a driver", registers=True)
def no_virtual_functions(session: Session) -> Iterator[Check]:
    """Check that SR_IOV is not accepted: no device of a stream has the PCI capability for it."""
    for event, state in session.walk(Features):
        if isinstance(event, Features) and (
            (event.chosen | state.device.offered) & Feature.SR_IOV.mask
        ):
            accepted = event.chosen & Feature.SR_IOV.mask
            yield event, "SR_IOV is accepted" if accepted else ""


@rule("5.2.5.1-R-06", idle="no host-managed zoned disk was offered", registers=True)
def no_discard_for_host_managed(session: Session) -> Iterator[Check]:
    """Check that DISCARD is not accepted for a host-managed disk."""
    for event, state in session.walk(Features):
        if isinstance(event, Features) and state.fields.model == ZonedModel.HOST_MANAGED:
            chosen = event.chosen & Feature.BLK_DISCARD.mask
            yield event, "BLK_DISCARD is accepted" if chosen else ""


@rule("6.3-L-03b", idle="ANY_LAYOUT was not offered", registers=True, legacy=True)
def accepts_any_layout(session: Session) -> Iterator[Check]:
    """Check that a driver of the legacy interface accepts ANY_LAYOUT if it has read the offer."""
    offered = False
    for event, _ in session.walk(Register):
        if isinstance(event, Register) and event.names == ("device_features",):
            offered = bool(event.value & Feature.ANY_LAYOUT.mask)
        if isinstance(event, Register) and event.names == ("driver_features",) and event.write:
            accepted = event.value & Feature.ANY_LAYOUT.mask
            if offered:
                yield event, "" if accepted else "ANY_LAYOUT is offered and not accepted"


@rule("6.3-L-04", idle="the driver has chosen no features", registers=True, legacy=True)
def leaves_bit_30(session: Session) -> Iterator[Check]:
    """Check that a driver of the legacy interface does not accept bit 30."""
    for event, _ in session.walk(Register):
        if isinstance(event, Register) and event.names == ("driver_features",) and event.write:
            chosen = event.value & Feature.UNUSED_30.mask
            yield event, "bit 30 is accepted" if chosen else ""


KNOWN = sum(feature.mask for feature in Feature)
"""Bits that version 1.4 defines for a block device or for every device."""


@rule(
    "2.2.1-R-03a",
    "2.2.1-R-03b",
    idle="no feature bit was offered that version 1.4 does not define",
    registers=True,
)
def leaves_unknown_features(session: Session) -> Iterator[Check]:
    """Check that bits that are not defined are not accepted."""
    for event, state in session.walk(Features):
        if isinstance(event, Features) and state.device.offered & ~KNOWN:
            extra = event.chosen & state.device.offered & ~KNOWN
            yield event, f"not defined: {', '.join(names(extra))}" if extra else ""


@rule(
    "2.2.1-R-05",
    idle="no driver worked with a feature bit that version 1.4 does not define",
    registers=True,
    never_red="A driver that gives up does not show the reason.",
)
def works_with_unknown_features(session: Session) -> Iterator[Check]:
    """Find a request of a driver to whom an undefined bit was offered."""
    if session.device.offered & ~KNOWN:
        for event, _ in session.walk(Request):
            if isinstance(event, Request):
                yield event, ""
                return


@rule(
    "5.2.5.1-R-08",
    idle="no driver set FAILED after it had read the model of a host-managed disk",
    registers=True,
    never_red="A driver that goes on may support host-managed disks.",
)
def fails_at_host_managed(session: Session) -> Iterator[Check]:
    """Find FAILED in the place of FEATURES_OK, after a read of the model."""
    place = CONFIG_FIELD["model"].offset
    read = False
    for event, state in session.walk(Register, Status):
        if state.fields.model != ZonedModel.HOST_MANAGED:
            continue
        if isinstance(event, Register) and event.area == "device" and not event.write:
            read |= event.offset <= place < event.offset + event.width
        failed = isinstance(event, Status) and event.value & DeviceStatus.FAILED
        if failed and read and not state.status & DeviceStatus.FEATURES_OK:
            yield event, ""
