"""The reset of one virtqueue, and its use after that (virtio 2.6.1)."""

from contextlib import suppress
from dataclasses import replace

import pytest

from conformance.data import sectors, untouched
from conformance.raw import send_reads
from conformance.rings import both_rings, plug_ring
from conformance.waiting import SOON, let_finish, let_pass, need_one_done
from harness.driver.errors import DriverError
from harness.driver.interface import Request
from harness.report import clause, on, reads_only
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature

ENABLED = ("queue_enable", "QueueReady")
"""The names of the register that enables the selected queue, on PCI and on MMIO."""

READ = Request(RequestType.IN, 0, receive=512)


def reset(driver):
    """Reset queue 0. Skip if it is still enabled after that, which other tests check.

    The effect of new ring addresses on a running queue is not defined.
    """
    driver.queue_reset(0)
    for register in ENABLED:
        with suppress(DriverError):
            if driver.register_read(register):
                pytest.skip(f"after the queue's reset {register} is still 1")


@both_rings
@clause("2.6.1.1.1-D-02", "2.6.1.2.1-D-01")
def test_a_queue_that_was_reset_starts_again_with_another_size(plug, packed):
    disk = plug_ring(plug, packed, extra=[Feature.RING_RESET])
    disk.backing.write(0, sectors(11))
    assert [disk.read(n).status for n in range(3)] == [Status.OK] * 3

    reset(disk.driver)
    queue = disk.driver.queue_setup(0, 4)
    completions = [disk.driver.request(replace(READ, sector=n), timeout=SOON) for n in range(11)]

    assert queue.desc != disk.queues[0].desc
    assert b"".join(completion.data for completion in completions) == sectors(11)


@clause("2.6.1.1.1-D-02")
def test_with_event_idx_interrupts_of_a_queue_that_was_reset_start_again(plug):
    disk = plug(extra=[Feature.RING_RESET, Feature.EVENT_IDX])
    driver = disk.driver
    for n in range(5):
        assert disk.read(n).status is Status.OK
    reset(driver)
    queue = driver.queue_setup(0)
    driver.memory_write(queue.driver + 4 + 2 * queue.size, bytes(2))  # used_event
    let_pass(disk=disk)
    before = driver.interrupts().queue

    assert driver.request(READ, timeout=SOON).status == Status.OK

    driver.wait_interrupt("queue", above=before, timeout=SOON)


@on("pci", "modern")
@clause("2.6.1.2.1-D-01")
def test_a_queue_that_was_reset_may_have_another_vector(plug):
    disk = plug(start=False, needs=[Feature.RING_RESET])
    driver = disk.driver
    try:
        driver.use_msix(2)
    except DriverError as error:
        pytest.skip(f"no MSI-X for this driver: {error.message}")
    features = driver.negotiate().accepted | Feature.RING_RESET.mask
    disk.start(features)
    assert disk.read(0).status is Status.OK
    reset(driver)
    driver.queue_setup(0, vector=0)
    assert driver.register_read("queue_msix_vector") == 0
    let_pass(disk=disk)
    before = driver.interrupts().vectors

    assert driver.request(READ, timeout=SOON).status == Status.OK
    let_pass(disk=disk)

    after = driver.interrupts().vectors
    assert (after[0] > before[0], after[1] - before[1]) == (True, 0)


def reset_in_flight(disk):
    """Reset a queue with 20 reads in flight on a disk of 25 reads a second; return the reads."""
    requests = send_reads(disk, 20)
    need_one_done(lambda: any(request.done for request in requests))
    disk.driver.queue_reset(0)
    let_pass(0.1, disk=disk)
    return requests


@both_rings
@clause("2.6.1.1.1-D-01")
@reads_only
def test_a_queue_that_was_reset_with_requests_in_flight_is_silent(plug, packed):
    disk = plug_ring(plug, packed, extra=[Feature.RING_RESET], iops=25)

    requests = reset_in_flight(disk)
    before = [request.data for request in requests]
    if untouched(512) not in before:
        pytest.skip("nothing was in flight when the queue was reset")
    let_finish(disk)
    after = [request.data for request in requests]

    executed = sum(now != then for now, then in zip(after, before, strict=True))
    assert executed == 0, f"{executed} requests were executed after the queue's reset"


@both_rings
@clause("2.6.1.1.1-D-01")
@reads_only
def test_a_queue_that_was_reset_with_requests_in_flight_raises_no_interrupt(plug, packed):
    disk = plug_ring(plug, packed, extra=[Feature.RING_RESET], iops=25)

    requests = reset_in_flight(disk)
    before = disk.driver.interrupts().raised
    in_flight = untouched(512) in [request.data for request in requests]
    let_finish(disk)

    raised = disk.driver.interrupts().raised - before
    assert raised == 0, f"{raised} interrupts after the queue's reset"
    if not in_flight:
        pytest.skip("nothing was in flight when the queue was reset")


@both_rings
@clause("2.6.1.1.1-D-01")
def test_writes_in_flight_do_not_reach_the_disk_after_the_queue_was_reset(plug, packed):
    disk = plug_ring(plug, packed, extra=[Feature.RING_RESET], iops=25)
    disk.needs_sectors(160)
    disk.needs_descriptors(60)
    writes = [Request(RequestType.OUT, 8 * n, sectors(1, salt=n)) for n in range(20)]

    disk.driver.submit(writes)
    need_one_done(lambda: bool(disk.driver.completed()))
    disk.driver.queue_reset(0)
    before = disk.backing.read(0, 160)
    if all(before[8 * n * 512 :][:512] == sectors(1, salt=n) for n in range(20)):
        pytest.skip("nothing was in flight when the queue was reset")
    let_finish(disk, 0.5)
    after = disk.backing.read(0, 160)

    places = range(0, 160 * 512, 8 * 512)
    executed = sum(before[at : at + 512] != after[at : at + 512] for at in places)
    assert executed == 0, f"{executed} requests were executed after the queue's reset"
