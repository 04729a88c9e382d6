"""Features that the driver accepts from a zoned disk (virtio 5.2.5.1)."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from scripted import ScriptedBackEnd

from harness.driver.block import BlockDriver
from harness.virtio.blk import ZonedModel
from harness.virtio.features import Feature, mask

CONFIG = struct.pack("<Q64x5IB3x", 2048, 256, 3, 4, 128, 4096, 0)
BOTH = mask(Feature.BLK_ZONED, Feature.BLK_DISCARD)
OFFERED = BOTH | mask(Feature.VERSION_1, Feature.BLK_FLUSH, Feature.RING_PACKED)


@pytest.mark.parametrize(
    ("model", "accepted"),
    [
        (ZonedModel.NONE, BOTH),
        (ZonedModel.HOST_MANAGED, Feature.BLK_ZONED.mask),
        (ZonedModel.HOST_AWARE, BOTH),
    ],
)
def test_discard_is_not_asked_of_a_host_managed_disk(
    new_back_end: Callable[..., ScriptedBackEnd],
    attach: Callable[..., BlockDriver],
    model: ZonedModel,
    accepted: int,
) -> None:
    config = CONFIG[:92] + bytes([model]) + bytes(3)
    new_back_end(features=OFFERED, config=config)

    driver = attach()

    assert driver.negotiate().accepted & BOTH == accepted
    found = driver.config()
    assert (found.zone_sectors, found.max_open_zones, found.max_active_zones) == (256, 3, 4)
    assert (found.max_append_sectors, found.write_granularity) == (128, 4096)
    assert found.model == model
