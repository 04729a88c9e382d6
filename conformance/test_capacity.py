"""Capacity, and changes of the capacity while the device runs (virtio 5.2.4, 5.2.6)."""

import pytest

from conformance.data import mib, sectors, untouched
from conformance.waiting import SOON
from harness.driver.interface import Request
from harness.report import clause, described
from harness.virtio.blk import RequestType, Status


@pytest.mark.parametrize("capacity", [1, mib(8) + 1, 2**32 + 5], ids=["1", "8M+1", "2T+5"])
@described("5.2.4-P-04")
def test_capacity_is_the_size_of_the_backing_file(plug, capacity):
    disk = plug(capacity=capacity)

    assert disk.driver.config().capacity == capacity
    assert disk.backing.size == capacity * 512


@pytest.mark.parametrize("capacity", [mib(16), mib(4)], ids=["grown", "shrunk"])
@clause("5.2.6.2-D-02")
def test_one_resize_is_announced_once_with_the_new_capacity(plug, capacity):
    disk = plug(capacity=mib(8))

    disk.resize(capacity)
    changes = disk.driver.wait_config_change(above=0, timeout=SOON)

    assert [change.capacity for change in changes] == [capacity]
    assert disk.driver.config().capacity == capacity
    assert disk.driver.interrupts().config == 1


@clause("5.2.6.2-D-02")
def test_each_of_several_resizes_is_announced_in_turn(plug):
    disk = plug(capacity=mib(8))
    steps = [
        mib(9),
        mib(32),
        mib(2),
        mib(2) + 1,
        mib(8),
    ]

    for count, capacity in enumerate(steps):
        disk.resize(capacity)
        disk.driver.wait_config_change(above=count, timeout=SOON)

    assert [change.capacity for change in disk.driver.config_changes()] == steps


@clause("5.2.6.2-D-02")
def test_a_burst_of_resizes_ends_with_the_last_capacity_announced(plug):
    disk = plug(capacity=mib(8))

    for step in range(1, 21):
        disk.resize(mib(8) + step)
    heard = []
    while not heard or heard[-1].capacity != mib(8) + 20:
        heard = disk.driver.wait_config_change(above=len(heard), timeout=SOON)

    assert len(heard) <= 20
    capacities = [change.capacity for change in heard]
    assert capacities == sorted(capacities), "an older capacity was announced after a newer one"


@clause("5.2.6.2-D-02")
def test_a_resize_while_requests_run_is_announced_and_they_complete(plug):
    disk = plug(capacity=mib(8), iops=10)
    data = sectors(1)
    requests = [Request(RequestType.OUT, 16 * n, data) for n in range(8)]
    tokens = disk.driver.submit(requests)
    assert len(disk.driver.completed()) < len(tokens), "all requests completed before the resize"

    disk.resize(mib(16))
    changes = disk.driver.wait_config_change(above=0, timeout=SOON)
    completions = disk.driver.complete(tokens)

    assert [change.capacity for change in changes] == [mib(16)]
    assert [completion.status for completion in completions] == [Status.OK] * 8
    assert all(completion.damage == () for completion in completions)
    assert all(disk.backing.read(16 * n, 1) == data for n in range(8))


@described("5.2.5-P-05")
def test_a_resize_before_driver_ok_is_the_capacity_after_it(plug):
    disk = plug(start=False, capacity=mib(8))
    disk.driver.negotiate()
    assert disk.driver.config().capacity == disk.backing.size // 512

    disk.resize(mib(24))
    disk.start()

    assert disk.driver.config().capacity == mib(24)
    assert disk.read(mib(24) - 1).status is Status.OK


@described("5.2.4-P-06")
def test_after_a_growth_the_new_sectors_can_be_used_and_the_old_are_as_they_were(plug):
    disk = plug(capacity=mib(8))
    old, new = sectors(2, salt=1), sectors(2, salt=77)
    disk.backing.write(mib(8) - 2, old)

    disk.resize(mib(16))
    disk.driver.wait_config_change(above=0, timeout=SOON)
    fresh = disk.read(mib(8), 1)
    written = disk.write(mib(16) - 2, new)
    across = disk.read(mib(8) - 2, 3)

    assert fresh.status is Status.OK
    assert fresh.data == bytes(512)
    assert written.status is Status.OK
    assert disk.backing.read(mib(16) - 2, 2) == new
    assert across.status is Status.OK
    assert across.data == old + bytes(512)
    assert (fresh.damage, written.damage, across.damage) == ((), (), ())


@described("5.2.4-P-06")
def test_after_a_shrink_the_sectors_beyond_the_end_are_gone_and_the_rest_is_as_it_was(plug):
    disk = plug(capacity=mib(8))
    kept = sectors(2)
    disk.backing.write(mib(4) - 2, kept)

    disk.resize(mib(4))
    disk.driver.wait_config_change(above=0, timeout=SOON)
    last = disk.read(mib(4) - 2, 2)
    reading = disk.read(mib(4), 1)
    writing = disk.write(mib(4) - 1, sectors(2, salt=99))

    assert last.status is Status.OK
    assert last.data == kept
    assert reading.status is Status.IOERR
    assert reading.data == untouched(512)
    assert writing.status is Status.IOERR
    assert disk.backing.size == mib(4) * 512
    assert disk.backing.read(mib(4) - 2, 2) == kept
    assert (last.damage, reading.damage, writing.damage) == ((), (), ())
