"""Notification suppression by device and driver (virtio 2.7.7, 2.7.10, 2.8.10)."""

import pytest

from conformance.data import sectors
from harness.driver.interface import Request
from harness.report import clause, described
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature

EXTRA = pytest.mark.parametrize("extra", [[], [Feature.EVENT_IDX]], ids=["flags", "event"])


def plug_suppressed(plug, extra, packed=None):
    """Return a disk whose driver notifies only on demand, and asks only for needed interrupts."""
    disk = plug(packed=packed, extra=[*extra, Feature.RING_PACKED] if packed else extra)
    disk.driver.suppress_notifications(True)
    return disk


def check_each_completion_interrupts(disk):
    """Wait for the interrupt of each read before its completion is looked at.

    Looking at the completion asks for the next interrupt instead.
    """
    disk.needs_sectors(20)
    before = disk.driver.interrupts().queue
    for n in range(20):
        tokens = disk.driver.submit([Request(RequestType.IN, n, receive=512)])
        disk.driver.wait_interrupt("queue", above=before + n)
        (completion,) = disk.driver.complete(tokens)
        assert completion.status == Status.OK


def check_all_are_served(disk):
    """Send requests faster than the device handles them, so that not each is notified.

    Then repeat this after a time in which the device was idle.
    """
    disk.backing.write(0, sectors(20))
    disk.needs_descriptors(10 * 3)
    for first in (0, 10):
        tokens = []
        for n in range(first, first + 10):
            tokens += disk.driver.submit([Request(RequestType.IN, n, receive=512)])

        completions = disk.driver.complete(tokens)

        assert {completion.status for completion in completions} == {Status.OK}
        data = b"".join(completion.data for completion in completions)
        assert data == sectors(20)[512 * first : 512 * (first + 10)]


@clause("2.7.7.2-D-05")
def test_each_completion_interrupts_if_the_driver_asks_for_the_next(plug):
    check_each_completion_interrupts(plug_suppressed(plug, [Feature.EVENT_IDX]))


@described("2.8.10-P-02")
def test_each_completion_of_a_packed_ring_interrupts_if_the_driver_asks_for_the_next(plug):
    check_each_completion_interrupts(plug_suppressed(plug, [Feature.EVENT_IDX], packed=True))


@EXTRA
@described("2.7.10-P-01")
def test_requests_that_are_only_notified_of_when_asked_for_are_served(plug, extra):
    check_all_are_served(plug_suppressed(plug, extra))


@EXTRA
@described("2.8.10-P-01")
def test_requests_of_a_packed_ring_that_are_only_notified_of_when_asked_for_are_served(plug, extra):
    check_all_are_served(plug_suppressed(plug, extra, packed=True))
