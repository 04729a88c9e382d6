"""The limits that a device sets for a legal driver, determined once for each kind of disk."""

from __future__ import annotations

import os
from dataclasses import dataclass

from harness.driver.block import SUPPORTED
from harness.driver.errors import BadArgumentError, DriverError
from harness.random.finding import Known
from harness.targets import Disk, LacksError
from harness.virtio.features import LEGACY_ONLY, Feature, mask, members

SERVED = SUPPORTED | mask(Feature.RING_PACKED, Feature.EVENT_IDX, Feature.RING_RESET)
"""Features that a session can handle: the driver's own, and others that the suite negotiates."""

MUST = mask(Feature.VERSION_1, Feature.ACCESS_PLATFORM, Feature.ORDER_PLATFORM, Feature.BLK_RO)
"""Features that are accepted whenever they are offered."""

LEGACY_MUST = MUST | Feature.ANY_LAYOUT.mask
"""The same for the legacy interface (virtio 6.3)."""


@dataclass(frozen=True)
class Shape:
    """Shape of a kind of disk: largest virtqueues (descriptors), features, and operations to avoid.

    `vectors` is the largest number of MSI-X vectors, 0 without MSI-X; `registers` is True for PCI
    registers. Operations that would only repeat a recorded deviation, and spoil the rest of the
    example, are avoided: then `resizes`, `resets_in_flight` and so on are False. `pauses` is True
    if what carries the device can be stopped for a while, `large` if the driver has memory for
    requests of some MiB, which it lacks in a guest.
    """

    largest: tuple[int, ...]
    offered: int
    legacy: bool
    vectors: int
    registers: bool
    resizes: bool
    resets_in_flight: bool
    queue_resets: bool
    queue_resets_in_flight: bool
    pauses: bool
    large: bool

    @property
    def required(self) -> tuple[str, ...]:
        """Return the names of the features that are always accepted."""
        must = LEGACY_MUST if self.legacy else MUST
        return tuple(feature.name for feature in _named(self.offered & must))

    @property
    def optional(self) -> tuple[str, ...]:
        """Return the names of the features that may be accepted or not."""
        served = SERVED & ~MUST & ~mask(*LEGACY_ONLY)
        return tuple(feature.name for feature in _named(self.offered & served))


def _named(bits: int) -> list[Feature]:
    return [feature for feature in members(bits) if isinstance(feature, Feature)]


def shape_of(disk: Disk, legacy: bool, known: Known) -> Shape:
    """Determine the shape of a disk. Its device is left in the reset state."""
    driver = disk.driver
    offered = driver.offered()
    must = LEGACY_MUST if legacy else MUST
    driver.negotiate(offered & (SERVED | must) & ~mask(Feature.RING_PACKED))
    queues = driver.config().num_queues or 1
    sizes = []
    for index in range(queues):
        try:
            sizes.append(driver.queue_setup(index).size)
        except BadArgumentError:
            if index == 0:
                raise
            queues = index  # num_queues is too large, which a test of the suite reports
            break
    largest = tuple(sizes)
    driver.reset()
    vectors = 0
    for wanted in (queues + 1, 2):
        try:
            driver.use_msix(wanted)
        except DriverError:
            continue
        driver.use_msix(0)
        vectors = wanted
        break
    queue_resets = bool(offered & Feature.RING_RESET.mask) and "queue-reset" not in known.checks
    return Shape(
        largest=largest,
        offered=offered,
        legacy=legacy,
        vectors=vectors,
        registers=_has_registers(disk),
        resizes=disk.resizable and "resize" not in known.checks,
        resets_in_flight="reset-in-flight" not in known.checks,
        queue_resets=queue_resets,
        queue_resets_in_flight="queue-reset-in-flight" not in known.checks,
        pauses=_pauses(disk) and "pause" not in known.checks,
        large=driver.description().get("pid") == os.getpid(),
    )


def _pauses(disk: Disk) -> bool:
    try:
        with disk.paused():
            return True
    except LacksError:
        return False


def _has_registers(disk: Disk) -> bool:
    try:
        disk.driver.register_read("queue_enable")
    except DriverError:
        return False
    return True
