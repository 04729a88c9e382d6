"""Feature sets that a test negotiates, and messages of a reset that a back-end gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.virtio.blk import CONFIG_FIELD, ZonedModel
from harness.virtio.features import Feature, mask

if TYPE_CHECKING:
    from harness.driver.interface import Driver

NEEDED = mask(Feature.VERSION_1, Feature.ACCESS_PLATFORM, Feature.ORDER_PLATFORM)
"""Bits without which a device may refuse to work (6.2-D-02, D-04, D-06)."""


def insisted_on(driver: Driver) -> int:
    """Return the offered bits without which a device may, or has to, refuse to work.

    It resets a device that offers ZONED.
    """
    offered = driver.offered()
    needed = offered & NEEDED
    if offered & Feature.BLK_ZONED.mask:
        model = CONFIG_FIELD["model"]
        driver.reset()
        if driver.config_read(model.offset, model.size)[0] == ZonedModel.HOST_MANAGED:
            needed |= Feature.BLK_ZONED.mask  # 5.2.5.2-D-07
    return needed


def told_of_resets(driver: Driver) -> bool:
    """Return False for a vhost-user back-end that gets no message when the driver resets it."""
    if driver.transport_kind() != "vhost-user":
        return True
    features = driver.description()["protocol_features"]
    return "RESET_DEVICE" in features or "STATUS" in features
