"""Several request virtqueues in use at the same time (virtio 2.6, 5.2.2)."""

import pytest

from conformance.data import sectors
from harness.driver.interface import Request
from harness.report import described, on
from harness.virtio.blk import RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature

QUEUES = 4


def several(plug, extra=(), **fields):
    needs = [Feature.BLK_MQ]
    return plug(queues=QUEUES, driver_queues=QUEUES, needs=needs, extra=extra, **fields)


def read(sector):
    return Request(RequestType.IN, sector, receive=512)


def at_once(disk):
    """Return the number of requests that each queue gets: 6, or fewer if they have no room."""
    return min(6, min(queue.size for queue in disk.queues) // 3)


def on_every_queue(disk, queues=range(QUEUES)):
    """Submit reads of different sectors on all queues, then wait for all of them."""
    each = at_once(disk)
    places = [(queue, each * queue + n) for n in range(each) for queue in queues]
    tokens = []
    for queue, sector in places:
        tokens += disk.driver.submit([read(sector)], queue)
    completions = disk.driver.complete(tokens)
    wanted = [sectors(each * QUEUES)[512 * sector :][:512] for _, sector in places]
    assert {completion.status for completion in completions} == {Status.OK}
    assert [completion.data for completion in completions] == wanted
    return [disk.driver.queue_state(queue).used_idx for queue in queues]


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@described("5.2.2-P-01")
def test_requests_on_all_queues_at_once_are_each_answered_on_their_own(plug, packed):
    disk = several(plug, [Feature.RING_PACKED], packed=True) if packed else several(plug)
    disk.backing.write(0, sectors(6 * QUEUES))

    used = on_every_queue(disk)

    if not packed:
        assert used == [at_once(disk)] * QUEUES
    assert [disk.driver.queue_state(queue).in_flight for queue in range(QUEUES)] == [0] * QUEUES


@described("5.2.2-P-01")
def test_a_write_on_one_queue_is_read_on_the_others(plug):
    disk = several(plug)

    written = disk.driver.request(Request(RequestType.OUT, 5, sectors(1)), queue=QUEUES - 1)
    found = [disk.driver.request(read(5), queue=queue) for queue in range(QUEUES)]

    assert written.status == Status.OK
    assert [completion.data for completion in found] == [sectors(1)] * QUEUES


@on("pci")
@described("2.6.1-P-01")
def test_the_reset_of_a_queue_leaves_the_others_alone(plug):
    disk = several(plug, [Feature.RING_RESET])
    disk.backing.write(0, sectors(6 * QUEUES))
    on_every_queue(disk)

    disk.driver.queue_reset(1)
    others = on_every_queue(disk, [0, 2, 3])
    disk.driver.queue_setup(1)
    after = on_every_queue(disk)

    each = at_once(disk)
    assert others == [2 * each] * 3
    assert after == [3 * each, each, 3 * each, 3 * each]


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@on("modern")
@described("5.2.2-P-01")
def test_queues_may_have_different_sizes(plug, packed):
    disk = several(plug, [Feature.RING_PACKED], packed=True) if packed else several(plug)
    disk.backing.write(0, sectors(6 * QUEUES))
    driver, largest = disk.driver, disk.queues[0].size
    agreed = driver.negotiate(driver.accepted())
    sizes = [min(size, largest) for size in (4, 64, 8, largest)]
    disk.queues = [driver.queue_setup(index, size) for index, size in enumerate(sizes)]
    driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)

    for _ in range(10):
        on_every_queue(disk)


@on("modern")
@described("5.2.2-P-01")
def test_a_queue_serves_while_those_before_it_are_not_set_up(plug):
    disk = several(plug)
    disk.backing.write(0, sectors(8))
    driver = disk.driver
    agreed = driver.negotiate(driver.accepted())
    driver.queue_setup(QUEUES - 1)
    driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)

    found = [driver.request(read(sector), QUEUES - 1) for sector in range(8)]

    assert {completion.status for completion in found} == {Status.OK}
    assert b"".join(completion.data for completion in found) == sectors(8)
