"""State that a reset has to forget (virtio 2.4, 4.1.4.3)."""

import pytest

from conformance.data import sectors
from harness.report import described, on
from harness.virtio.blk import Status
from harness.virtio.features import Feature

SMALL = {"capacity": 64}


def driver_size(driver, queue):
    """Return the size that a queue shows, in descriptors."""
    driver.register_write("queue_select", queue)
    return driver.register_read("queue_size")


def check_at_work(disk, salt):
    """Write and read sectors, one request at a time, with an interrupt for each write."""
    data = sectors(8, salt)
    for sector in range(8):
        before = disk.driver.interrupts().raised
        assert disk.write(sector, data[512 * sector :][:512]).status is Status.OK
        disk.driver.wait_interrupt("raised", above=before)
    completions = [disk.read(sector) for sector in range(8)]
    assert b"".join(completion.data for completion in completions) == data
    assert disk.backing.read(0, 8) == data


@pytest.mark.parametrize(
    "feature",
    [Feature.RING_PACKED, Feature.EVENT_IDX, Feature.IN_ORDER, Feature.INDIRECT_DESC],
    ids=lambda feature: feature.name,
)
@on("modern")
@described("2.4-P-01")
def test_a_reset_forgets_the_features_that_are_not_accepted_again(plug, feature):
    """The device works with the feature, then without it on another size, then with it again."""
    disk = plug(start=False, needs=[feature], prefer=SMALL)
    accepted = disk.driver.negotiate().accepted
    without = accepted & ~feature.mask

    for turn, features in enumerate((accepted | feature.mask, without, accepted | feature.mask)):
        disk.start(features)
        for sector in range(8):
            assert disk.read(sector).status is Status.OK
        largest = disk.queues[0].size
        disk.start(without, 1, largest if turn % 2 else max(largest // 2, min(largest, 4)))
        check_at_work(disk, salt=20 * turn + 1)


@pytest.mark.parametrize("size", [2, 4])
@on("pci", "modern")
@described("4.1.4.3-P-01")
def test_after_a_reset_the_largest_queue_size_is_in_use_unless_written(plug, size):
    """The driver sets a small size, resets, and then uses the size that it finds."""
    disk = plug(driver_queue_size=size, prefer={"capacity": 64}, start=False)
    driver = disk.driver
    largest = driver_size(driver, 0)
    disk.start(None, 1, min(size, largest))
    driver.reset()

    found = driver_size(driver, 0)
    assert found == largest, f"queue_size is {found} after a reset, and was {largest} at first"
    disk.start()
    disk.backing.write(0, sectors(8))
    for sector in range(8):
        completion = disk.read(sector)
        assert completion.status is Status.OK
        assert completion.data == sectors(8)[512 * sector :][:512]
