"""Breaches of notifications (virtio 2.7.10, 2.8.16)."""

from __future__ import annotations

from harness.proof.breaches.breach import NOTIFY, REGISTER_BAR, breach, request_buffers, ring
from harness.proof.breaches.split import offer, put_all
from harness.targets.disk import Disk
from harness.virtio.features import Feature


@breach("2.7.10.1-R-01")
def leaves_flags_in_the_used_ring(disk: Disk) -> None:
    """Begin with flags of the used ring that are not 0."""
    at = ring(disk)
    put_all(disk, at, (0, 1, 2), request_buffers(disk))
    disk.driver.memory_write(at.device, b"\1\0")
    offer(disk, at)


@breach("2.7.10.1-R-03", whims=("polls-and-wants-no-kicks",))
def notifies_against_the_flags(disk: Disk) -> None:
    """Notify again and again while the flags of the used ring are 1."""
    ring(disk)
    for _ in range(12):
        disk.read(0)


def forgets_to_notify(disk: Disk, *features: Feature) -> None:
    """Send a request, and make another one available without a notification."""
    ring(disk, *features)
    disk.read(0)
    disk.driver.queue_publish(0, [disk.driver.queue_add(0, request_buffers(disk))])


@breach("2.7.10.1-R-04", awaits="unnoticed")
def forgets_to_notify_by_flags(disk: Disk) -> None:
    """Make a buffer available and do not notify, without EVENT_IDX."""
    forgets_to_notify(disk)


@breach("2.7.10.1-R-06", awaits="unnoticed")
def forgets_to_notify_by_index(disk: Disk) -> None:
    """Make a buffer available and do not notify, with EVENT_IDX."""
    forgets_to_notify(disk, Feature.EVENT_IDX)


@breach("2.7.10.1-R-07")
def notifies_too_often(disk: Disk) -> None:
    """Notify three times for one buffer with EVENT_IDX."""
    ring(disk, Feature.EVENT_IDX)
    disk.read(0)
    for _ in range(2):
        disk.driver.queue_kick(0)
    disk.driver.status()


@breach("2.8.16-R-03")
def names_another_descriptor(disk: Disk) -> None:
    """Notify with an offset at which no list of the packed virtqueue ends."""
    ring(disk, Feature.RING_PACKED, Feature.NOTIFICATION_DATA)
    disk.driver.queue_publish(0, [disk.driver.queue_add(0, request_buffers(disk))])
    disk.driver.bar_write(REGISTER_BAR, NOTIFY, 4, 5 << 16)
    disk.driver.status()
