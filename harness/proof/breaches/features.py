"""Breaches of the negotiation of features (virtio 2.2, 5.2.5, 6)."""

from __future__ import annotations

from contextlib import suppress

from harness.driver.errors import FeaturesRefusedError
from harness.proof.breaches.breach import LEGACY, V1, ZONES, begin, breach
from harness.targets.disk import Disk
from harness.virtio.features import Feature, mask


@breach("2.2.1-R-01a")
def accepts_too_much(disk: Disk) -> None:
    """Accept BLK_RO, which is not offered."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(V1 | Feature.BLK_RO.mask)


@breach("2.2.1-R-03a", "2.2.1-R-03b", whims=("future-bits",))
def accepts_an_unknown_bit(disk: Disk) -> None:
    """Accept the bits that version 1.4 does not define."""
    begin(disk)
    unknown = disk.driver.offered() & ~mask(*Feature)
    disk.start(V1 | unknown)


@breach("6.1-R-01")
def does_not_accept_version_1(disk: Disk) -> None:
    """Choose no feature at all."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(0)


@breach("6.1-R-05")
def does_not_accept_packed(disk: Disk) -> None:
    """Do not accept RING_PACKED."""
    disk.start(V1 | Feature.NOTIF_CONFIG_DATA.mask)


@breach("6.1-R-06", whims=("order-platform",))
def does_not_accept_order_platform(disk: Disk) -> None:
    """Do not accept ORDER_PLATFORM."""
    disk.start(V1)


@breach("6.1-R-03a", whims=("access-platform",))
def does_not_accept_access_platform(disk: Disk) -> None:
    """Do not accept ACCESS_PLATFORM."""
    disk.start(V1)


@breach("6.1-R-09", "2.2.1-R-01a")
def accepts_sr_iov(disk: Disk) -> None:
    """Accept SR_IOV of a function without the PCI capability, which also does not offer it."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(V1 | Feature.SR_IOV.mask)


@breach("6.1-R-12")
def does_not_accept_own_data(disk: Disk) -> None:
    """Do not accept NOTIF_CONFIG_DATA."""
    disk.start(V1 | Feature.RING_PACKED.mask)


@breach("5.2.6.1-R-03", read_only=True)
def does_not_accept_read_only(disk: Disk) -> None:
    """Do not accept BLK_RO of a read-only disk."""
    disk.start(V1)


@breach("5.2.5.1-R-06", "2.2.1-R-01a", **ZONES)
def accepts_discard_of_zones(disk: Disk) -> None:
    """Accept BLK_DISCARD of a host-managed zoned disk, which also does not offer it."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(mask(Feature.VERSION_1, Feature.BLK_ZONED, Feature.BLK_DISCARD))


@breach("6.3-L-03b", **LEGACY)
def does_not_accept_any_layout(disk: Disk) -> None:
    """Do not accept ANY_LAYOUT on the legacy interface."""
    disk.driver.negotiate(0)


@breach("6.3-L-04", **LEGACY)
def accepts_bit_30(disk: Disk) -> None:
    """Accept bit 30 on the legacy interface."""
    disk.driver.negotiate(mask(Feature.UNUSED_30, Feature.ANY_LAYOUT))
