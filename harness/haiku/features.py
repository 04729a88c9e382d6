# Derived from Haiku's virtio_block driver:
# Copyright 2013, Jérôme Duval, korli@users.berlios.de.
# Distributed under the terms of the MIT License.
"""Features that the disk accepts, and Haiku's names for them."""

from __future__ import annotations

from harness.virtio.features import Feature, mask, members

BLOCK_FEATURES = mask(
    Feature.BLK_BARRIER,
    Feature.BLK_SIZE_MAX,
    Feature.BLK_SEG_MAX,
    Feature.BLK_GEOMETRY,
    Feature.BLK_RO,
    Feature.BLK_BLK_SIZE,
    Feature.BLK_FLUSH,
    Feature.BLK_TOPOLOGY,
)
"""Features of the block device that Haiku's driver negotiates."""

DEVICE_TYPE_BITS = (1 << 24) - 1
"""Feature bits 0 to 23, of the device type (virtio 2.2); others are of ring and transport."""

_NAMES = {
    Feature.BLK_BARRIER: "host barrier",
    Feature.BLK_SIZE_MAX: "maximum segment size",
    Feature.BLK_SEG_MAX: "maximum segment count",
    Feature.BLK_GEOMETRY: "disk geometry",
    Feature.BLK_RO: "read only",
    Feature.BLK_BLK_SIZE: "block size",
    Feature.BLK_SCSI: "scsi commands",
    Feature.BLK_FLUSH: "flush command",
    Feature.BLK_TOPOLOGY: "topology",
    Feature.BLK_CONFIG_WCE: "config wce",
    Feature.NOTIFY_ON_EMPTY: "notify on empty",
    Feature.ANY_LAYOUT: "any layout",
    Feature.INDIRECT_DESC: "ring indirect",
    Feature.EVENT_IDX: "ring event index",
    Feature.UNUSED_30: "bad feature",
}


def get_feature_name(feature: int) -> str | None:
    """Return Haiku's name of a feature (a mask with one bit), None if Haiku has no name."""
    for known, name in _NAMES.items():
        if feature == known.mask:
            return name
    return None


def feature_names(bits: int) -> list[str]:
    """Return the names of the set bits: Haiku's, else the specification's, else `bit N`."""
    shown = []
    for member in members(bits):
        if isinstance(member, Feature):
            shown.append(get_feature_name(member.mask) or member.name)
        else:
            shown.append(f"bit {member}")
    return shown


def wanted_features(offered: int, served: int) -> int:
    """Return the features to accept: Haiku's block features, and all of ring and transport.

    `served` is the set that the `Driver` accepts by default. BARRIER has a meaning
    on the legacy interface only (virtio 5.2.3.1), so it is not accepted from a
    device that also offers VERSION_1.
    """
    block = offered & BLOCK_FEATURES
    if offered & Feature.VERSION_1.mask:
        block &= ~Feature.BLK_BARRIER.mask
    return block | (served & ~DEVICE_TYPE_BITS)
