"""Feature bits of a virtio block device (virtio 5.2.3, 6, 6.3)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum


class Feature(IntEnum):
    """Feature bits, by number."""

    BLK_BARRIER = 0
    BLK_SIZE_MAX = 1
    BLK_SEG_MAX = 2
    BLK_GEOMETRY = 4
    BLK_RO = 5
    BLK_BLK_SIZE = 6
    BLK_SCSI = 7
    BLK_FLUSH = 9
    BLK_TOPOLOGY = 10
    BLK_CONFIG_WCE = 11
    BLK_MQ = 12
    BLK_DISCARD = 13
    BLK_WRITE_ZEROES = 14
    BLK_LIFETIME = 15
    BLK_SECURE_ERASE = 16
    BLK_ZONED = 17
    BLK_REQ_FLAGS = 18
    BLK_REQ_FLAGS_OUT_FUA = 19
    NOTIFY_ON_EMPTY = 24
    ANY_LAYOUT = 27
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    UNUSED_30 = 30
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    ORDER_PLATFORM = 36
    SR_IOV = 37
    NOTIFICATION_DATA = 38
    NOTIF_CONFIG_DATA = 39
    RING_RESET = 40
    ADMIN_VQ = 41
    SUSPEND = 43

    @property
    def mask(self) -> int:
        """Mask with the bit of this feature."""
        return 1 << self._value_  # `value` is a slower way to it


DRAFT = frozenset({Feature.BLK_REQ_FLAGS, Feature.BLK_REQ_FLAGS_OUT_FUA})
"""Feature bits that virtio 1.4 does not describe, from the draft of a later version.

REQ_FLAGS makes the second word of a request's header a word of flags, and REQ_FLAGS_OUT_FUA defines
its first flag: a write with it is stable when it completes (forced unit access). A device may offer
them today, and a driver of 1.4 does not accept them.
"""

LEGACY_ONLY = frozenset(
    {Feature.BLK_BARRIER, Feature.BLK_SCSI, Feature.NOTIFY_ON_EMPTY, Feature.ANY_LAYOUT}
)
"""Feature bits that have a meaning on a legacy interface only (virtio 5.2.3.1, 6.3)."""

REQUIRES: dict[Feature, frozenset[Feature]] = {
    Feature.BLK_CONFIG_WCE: frozenset({Feature.BLK_FLUSH}),
}
"""Feature -> features that a device has to offer together with it (virtio 2.2.2, 5.2.5.2, 6)."""


def mask(*features: Feature) -> int:
    """Return the mask with the bits of all these features."""
    bits = 0
    for feature in features:
        bits |= feature.mask
    return bits


def members(bits: int) -> Iterator[Feature | int]:
    """Yield every set bit, lowest first: its `Feature` if it has a name, else its number."""
    number = 0
    while bits:
        if bits & 1:
            yield Feature(number) if number in Feature._value2member_map_ else number
        bits >>= 1
        number += 1


def names(bits: int) -> list[str]:
    """Return the names of the set bits, `bit N` for a bit without a name."""
    return [
        member.name if isinstance(member, Feature) else f"bit {member}" for member in members(bits)
    ]
