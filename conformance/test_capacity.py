"""Capacity, and changes of the capacity while the device runs (virtio 5.2.4, 5.2.6)."""

import pytest

from conformance.data import FAILED, mib, needed, sectors
from conformance.waiting import eventually, resize
from harness.driver.interface import Request
from harness.report import clause, described
from harness.virtio.blk import RequestType, Status


@pytest.mark.parametrize("capacity", [1, mib(8) + 1, 2**32 + 5], ids=["1", "8M+1", "2T+5"])
@described("5.2.4-P-04")
def test_capacity_is_the_size_of_the_backing_file(plug, capacity):
    disk = plug(capacity=capacity)

    assert disk.driver.config().capacity == capacity
    assert disk.backing.size == capacity * 512


def check_announced(disk, capacity):
    """Assert that the last announced change is the change to `capacity` sectors.

    How often a change is announced is the device's to choose.
    """
    disk.needs_announcements()
    driver = disk.driver

    def heard():
        changes = driver.config_changes()
        return bool(changes) and changes[-1].capacity == capacity

    assert eventually(heard), (
        f"a change to {capacity} sectors: {len(driver.config_changes())} changes announced, "
        f"and the capacity is {driver.config().capacity}"
    )


GROWN_OR_SHRUNK = pytest.mark.parametrize("factor", [2, 0.5], ids=["grown", "shrunk"])


@GROWN_OR_SHRUNK
@clause("5.2.6.2-D-02")
def test_a_resize_is_announced_with_the_new_capacity(plug, factor):
    disk = plug()
    capacity = int(disk.spec.capacity * factor)

    disk.resize(capacity)

    check_announced(disk, capacity)
    assert disk.driver.config().capacity == capacity


@clause("5.2.6.2-D-02")
def test_each_of_several_resizes_is_announced_in_turn(plug):
    disk = plug()
    initial = disk.spec.capacity

    for capacity in (initial + 8, initial * 4, initial // 4 or 1, initial // 4 + 1, initial):
        disk.resize(capacity)
        check_announced(disk, capacity)


@clause("5.2.6.2-D-02")
def test_a_burst_of_resizes_ends_with_the_last_capacity_announced(plug):
    disk = plug()
    initial = disk.spec.capacity

    for step in range(1, 21):
        disk.resize(initial + step)

    check_announced(disk, initial + 20)


def resized_under_load(disk):
    """Double the disk's capacity while eight writes of one sector run; return the tokens."""
    disk.needs_sectors(128)
    requests = [Request(RequestType.OUT, 16 * n, sectors(1)) for n in range(8)]
    tokens = disk.driver.submit(requests)
    if len(disk.driver.completed()) == len(tokens):
        pytest.skip("nothing was in flight when the disk was resized")
    disk.resize(2 * disk.spec.capacity)
    return tokens


@clause("5.2.6.2-D-02")
def test_a_resize_while_requests_run_is_announced(plug):
    disk = plug(iops=10)
    disk.needs_descriptors(24)

    tokens = resized_under_load(disk)

    check_announced(disk, 2 * disk.spec.capacity)
    disk.driver.complete(tokens)


@described("5.2.6-P-07")
def test_writes_that_run_while_the_disk_is_resized_are_done(plug):
    disk = plug(iops=10)
    disk.needs_descriptors(24)

    completions = disk.driver.complete(resized_under_load(disk))

    assert [completion.status for completion in completions] == [Status.OK] * 8
    assert all(completion.damage == () for completion in completions)
    assert all(disk.backing.read(16 * n, 1) == sectors(1) for n in range(8))


@described("5.2.5-P-05")
def test_a_resize_before_driver_ok_is_the_capacity_after_it(plug):
    disk = plug(start=False)
    disk.driver.negotiate()
    before = disk.driver.config().capacity
    assert before == disk.backing.size // 512

    disk.resize(3 * before)
    disk.start()

    assert disk.driver.config().capacity == 3 * before
    assert disk.read(3 * before - 1).status is Status.OK


@described("5.2.4-P-06")
def test_after_a_growth_the_new_sectors_can_be_used_and_the_old_are_as_they_were(plug):
    disk = plug()
    disk.needs_sectors(4)
    end = disk.spec.capacity
    old, new = sectors(2, salt=1), sectors(2, salt=77)
    disk.backing.write(end - 2, old)
    # The device has served a request when it grows.
    assert needed(disk.read(end - 2, 2), "the read before the growth").data == old

    resize(disk, 2 * end)
    behind = disk.backing.read(end, 1)
    fresh = disk.read(end, 1)
    written = disk.write(2 * end - 2, new)
    across = disk.read(end - 2, 3)

    assert fresh.status is Status.OK
    assert fresh.data == behind
    assert written.status is Status.OK
    assert disk.backing.read(2 * end - 2, 2) == new
    assert across.status is Status.OK
    assert across.data == old + behind
    assert (fresh.damage, written.damage, across.damage) == ((), (), ())


@described("5.2.4-P-06")
def test_after_a_shrink_the_sectors_beyond_the_end_are_gone_and_the_rest_is_as_it_was(plug):
    disk = plug()
    disk.needs_sectors(4)
    end = disk.spec.capacity // 2
    kept = sectors(2)
    disk.backing.write(end - 2, kept)
    # The device has served a request when it shrinks.
    needed(disk.read(end, 1), "the read before the shrink")

    resize(disk, end)
    last = disk.read(end - 2, 2)
    reading = disk.read(end, 1)
    writing = disk.write(end - 1, sectors(2, salt=99))

    assert last.status is Status.OK
    assert last.data == kept
    assert reading.status in FAILED
    assert writing.status in FAILED
    assert disk.backing.size == end * 512
    assert disk.backing.read(end - 2, 2) == kept
    assert (last.damage, reading.damage, writing.damage) == ((), (), ())
