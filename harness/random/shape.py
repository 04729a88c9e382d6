"""What a device allows a legal driver, found out once for each kind of disk."""

from __future__ import annotations

from dataclasses import dataclass

from harness.driver.block import SUPPORTED
from harness.driver.errors import BadArgumentError, DriverError
from harness.random.finding import Known
from harness.targets import Disk
from harness.virtio.features import LEGACY_ONLY, Feature, mask, members

SERVED = SUPPORTED | mask(Feature.RING_PACKED, Feature.EVENT_IDX, Feature.RING_RESET)
"""What a session can deal with: the driver's own, and what the suite's tests negotiate too."""

MUST = mask(Feature.VERSION_1, Feature.ACCESS_PLATFORM, Feature.BLK_RO)
"""What is accepted whenever it is offered."""


@dataclass(frozen=True)
class Shape:
    """A kind of disk: largest virtqueues (descriptors), features, and what is not to be tried.

    `vectors` are the most of MSI-X, 0 without it; `registers` are those of PCI. What a recorded
    deviation would only find again, and spoil the rest of the example with, is not to be tried:
    `resizes`, `resets_in_flight` and so on are false.
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

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the features that are always accepted."""
        return tuple(one.name for one in _named(self.offered & MUST))

    @property
    def optional(self) -> tuple[str, ...]:
        """Names of the features that may be accepted or not."""
        served = SERVED & ~MUST & ~mask(*LEGACY_ONLY)
        return tuple(one.name for one in _named(self.offered & served))


def _named(bits: int) -> list[Feature]:
    return [one for one in members(bits) if isinstance(one, Feature)]


def shape_of(disk: Disk, legacy: bool, known: Known) -> Shape:
    """Ask a disk; its device is left reset."""
    driver = disk.driver
    offered = driver.offered()
    driver.negotiate(offered & (SERVED | MUST) & ~mask(Feature.RING_PACKED))
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
    )


def _has_registers(disk: Disk) -> bool:
    try:
        disk.driver.register_read("queue_enable")
    except DriverError:
        return False
    return True
