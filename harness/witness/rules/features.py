"""Rules on the choice of features (virtio 2.2.1, 5.2.5.1, 6)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.virtio.blk import ZonedModel
from harness.virtio.features import Feature, names
from harness.witness.events import Features, Register
from harness.witness.rules.rule import Check, Function, rule
from harness.witness.sessions import Session


@rule("2.2.1-R-01a", idle="the driver has chosen no features", registers=True)
def only_offered_features(session: Session) -> Iterator[Check]:
    """Compare the choice with the offer."""
    for event, state in session.walk():
        if isinstance(event, Features):
            extra = event.chosen & ~state.device.offered
            yield event, f"not offered: {', '.join(names(extra))}" if extra else ""


def accepts(feature: Feature) -> Function:
    """Return a rule function: the feature is accepted if it is offered."""

    def check(session: Session) -> Iterator[Check]:
        for event, state in session.walk():
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


@rule("5.2.5.1-R-06", idle="no host-managed zoned disk was offered", registers=True)
def no_discard_for_host_managed(session: Session) -> Iterator[Check]:
    """Check that DISCARD is not accepted for a host-managed disk."""
    for event, state in session.walk():
        if isinstance(event, Features) and state.fields.model == ZonedModel.HOST_MANAGED:
            chosen = event.chosen & Feature.BLK_DISCARD.mask
            yield event, "BLK_DISCARD is accepted" if chosen else ""


@rule("6.3-L-03b", idle="ANY_LAYOUT was not offered", registers=True, legacy=True)
def accepts_any_layout(session: Session) -> Iterator[Check]:
    """Check that a driver of the legacy interface accepts ANY_LAYOUT if it has read the offer."""
    offered = False
    for event, _ in session.walk():
        if isinstance(event, Register) and event.names == ("device_features",):
            offered = bool(event.value & Feature.ANY_LAYOUT.mask)
        if isinstance(event, Register) and event.names == ("driver_features",) and event.write:
            accepted = event.value & Feature.ANY_LAYOUT.mask
            if offered:
                yield event, "" if accepted else "ANY_LAYOUT is offered and not accepted"


@rule("6.3-L-04", idle="the driver has chosen no features", registers=True, legacy=True)
def leaves_bit_30(session: Session) -> Iterator[Check]:
    """Check that a driver of the legacy interface does not accept bit 30."""
    for event, _ in session.walk():
        if isinstance(event, Register) and event.names == ("driver_features",) and event.write:
            chosen = event.value & Feature.UNUSED_30.mask
            yield event, "bit 30 is accepted" if chosen else ""
