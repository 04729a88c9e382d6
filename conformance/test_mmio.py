"""The MMIO transport: its registers and its interrupt (virtio 4.2)."""

import pytest

from conformance.data import untouched
from conformance.raw import RawRead, send_reads
from conformance.waiting import (
    SOON,
    eventually,
    let_finish,
    let_pass,
    need_one_done,
    reset_queue_0,
)
from harness.driver.interface import CANARY
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import SECTOR, Status
from harness.virtio.features import Feature
from harness.virtio.mmio import INTERRUPT_CONFIG, INTERRUPT_USED, LEGACY_VERSION, MAGIC, VERSION

pytestmark = on("mmio")

NOWHERE = 0xFFFF_FFFF
"""The value of each half of length and base of a shared memory region that does not exist."""


def ready(driver, index):
    driver.register_write("QueueSel", index)
    return driver.register_read("QueueReady")


def pending(driver):
    return driver.register_read("InterruptStatus")


def quiet(disk):
    """Wait, and acknowledge all interrupts of the start, so that none is pending."""
    let_pass(disk=disk)
    disk.driver.register_write("InterruptACK", INTERRUPT_USED | INTERRUPT_CONFIG)


@on("modern")
@clause("4.2.2.1-D-01", "4.2.2.1-D-02")
@reads_only
def test_magic_value_and_version(plug):
    driver = plug(start=False).driver

    assert driver.register_read("MagicValue") == MAGIC
    assert driver.register_read("Version") == VERSION


@on("legacy")
@described("4.2.4-P-02")
@reads_only
def test_magic_value_and_version_of_a_legacy_device(plug):
    driver = plug(start=False).driver

    assert driver.register_read("MagicValue") == MAGIC
    assert driver.register_read("Version") == LEGACY_VERSION


@clause("4.2.2.1-D-03", "4.2.2.1-D-04")
def test_a_completion_is_shown_until_it_is_acknowledged(plug):
    disk = plug()
    driver = disk.driver
    driver.service_interrupts(False)
    quiet(disk)

    assert disk.read(0).status is Status.OK
    shown = pending(driver)
    driver.register_write("InterruptACK", INTERRUPT_CONFIG)
    kept = pending(driver)
    driver.register_write("InterruptACK", INTERRUPT_USED)

    assert (shown, kept) == (INTERRUPT_USED, INTERRUPT_USED)
    assert pending(driver) == 0


@clause("4.2.2.1-D-03")
def test_a_resize_is_shown_until_it_is_acknowledged(plug):
    disk = plug()
    driver = disk.driver
    driver.service_interrupts(False)

    disk.resize(disk.spec.capacity * 2)
    assert eventually(lambda: pending(driver) & INTERRUPT_CONFIG)
    assert disk.read(0).status is Status.OK
    driver.register_write("InterruptACK", INTERRUPT_USED)
    kept = pending(driver)
    driver.register_write("InterruptACK", INTERRUPT_CONFIG)

    assert kept == INTERRUPT_CONFIG
    assert pending(driver) == 0


@clause("4.2.2.1-D-04")
def test_a_resize_alone_is_shown_as_nothing_else(plug):
    disk = plug()
    driver = disk.driver
    driver.service_interrupts(False)

    quiet(disk)

    disk.resize(disk.spec.capacity * 2)
    if not eventually(lambda: pending(driver) & INTERRUPT_CONFIG):
        pytest.skip("the resize was not announced, which 5.2.6.2-D-02 is about")

    shown = pending(driver)
    assert shown == INTERRUPT_CONFIG, f"InterruptStatus is {shown:#x} after a resize alone"


@on("modern")
@clause("4.2.2.1-D-05")
@reads_only
def test_a_reset_clears_the_interrupt_and_every_queue_ready(plug):
    disk = plug(queues=2, driver_queues=2)
    driver = disk.driver
    driver.service_interrupts(False)
    assert disk.read(0).status is Status.OK
    assert (pending(driver), ready(driver, 0), ready(driver, 1)) == (INTERRUPT_USED, 1, 1)

    driver.reset()

    assert (pending(driver), ready(driver, 0), ready(driver, 1)) == (0, 0, 0)


@on("legacy")
@described("4.2.4-P-01")
def test_queue_pfn_shows_a_queue_in_use_and_a_reset_clears_it(plug):
    driver = plug().driver
    driver.register_write("QueueSel", 0)
    before = driver.register_read("QueuePFN")

    driver.reset()
    driver.register_write("QueueSel", 0)

    assert before != 0
    assert driver.register_read("QueuePFN") == 0


@on("modern")
@clause("4.2.2.1-D-06")
def test_a_resize_between_two_reads_changes_the_generation(plug):
    disk = plug()
    driver = disk.driver
    before = driver.register_read("ConfigGeneration"), driver.config().capacity
    again = driver.register_read("ConfigGeneration"), driver.config().capacity

    disk.resize(disk.spec.capacity * 2)
    assert eventually(lambda: driver.config().capacity != before[1])
    after = driver.register_read("ConfigGeneration")

    assert again == before
    assert after != before[0]


@on("modern")
@clause("4.2.2.1-D-07")
def test_a_queue_that_is_not_ready_is_left_alone(plug):
    disk = plug()
    driver, queue = disk.driver, disk.queues[0]
    request = RawRead.of(driver, sector=5)
    head = driver.queue_add(0, request.buffers)
    driver.register_write("QueueSel", 0)
    driver.register_write("QueueReady", 0)
    assert driver.register_read("QueueReady") == 0

    driver.queue_publish(0, [head])
    driver.queue_kick(0)
    let_finish(disk)

    used = int.from_bytes(driver.memory_read(queue.device + 2, 2), "little")
    assert used == 0, f"with QueueReady 0 the used index is {used}"
    assert set(request.data) == {CANARY}


@on("modern")
@clause("4.2.2.1-D-08", "4.2.2.1-D-09")
def test_queue_reset_reads_0_for_a_ready_queue_and_after_a_reset(plug):
    driver = plug(extra=[Feature.RING_RESET]).driver
    driver.register_write("QueueSel", 0)
    enabled = driver.register_read("QueueReset"), driver.register_read("QueueReady")

    driver.reset()
    driver.register_write("QueueSel", 0)

    assert enabled == (0, 1)
    assert driver.register_read("QueueReset") == 0


@on("modern")
@clause("4.2.2.1-D-10", "4.2.2.1-D-12")
@reads_only
def test_a_queues_reset_ends_with_queue_reset_and_queue_ready_0(plug):
    driver = plug(extra=[Feature.RING_RESET]).driver
    assert ready(driver, 0) == 1

    driver.queue_reset(0)

    shown = ready(driver, 0)
    assert shown == 0, f"after the queue's reset QueueReady is {shown}"
    assert driver.register_read("QueueReset") == 0


@on("modern")
@clause("4.2.2.1-D-11")
def test_queue_reset_stays_1_until_the_queue_is_left_alone(plug):
    disk = plug(extra=[Feature.RING_RESET], iops=25)
    driver, queue = disk.driver, disk.queues[0]
    requests = send_reads(disk, 20)
    need_one_done(lambda: any(request.done for request in requests))

    shown = reset_queue_0(driver, "QueueSel", "QueueReset")
    assert 0 in shown, f"QueueReset did not read 0 within {SOON:g} s"
    assert set(shown) <= {0, 1}
    before = int.from_bytes(driver.memory_read(queue.device + 2, 2), "little")
    if untouched(SECTOR) not in [request.data for request in requests]:
        pytest.skip("nothing was in flight when the queue was reset")
    let_finish(disk)

    after = int.from_bytes(driver.memory_read(queue.device + 2, 2), "little")
    assert after == before, f"QueueReset is 0, and the used index goes from {before} to {after}"


@on("modern")
@pytest.mark.parametrize("select", [4, 0x80000000])
@clause("2.2.2-D-03")
def test_device_features_is_zero_beyond_the_defined_bits(plug, select):
    driver = plug(start=False).driver

    driver.register_write("DeviceFeaturesSel", select)
    features = driver.register_read("DeviceFeatures")

    assert features == 0, f"DeviceFeaturesSel {select:#x} shows features {features:#x}"


@on("modern")
@pytest.mark.parametrize("select", [2, 3])
@clause("2.2.2-D-03")
def test_device_features_is_zero_where_no_bit_is_described(plug, select):
    driver = plug(start=False).driver
    low = driver.offered() >> 32

    driver.register_write("DeviceFeaturesSel", select)
    features = driver.register_read("DeviceFeatures")

    # The bits there are the device type's: a later version may describe them.
    shown = f"DeviceFeaturesSel {select:#x} shows features {features:#x}"
    assert not low or features != low, f"{shown}, which are bits 32 to 63"
    if features:
        pytest.skip(f"{shown}, and virtio 1.4 describes none of them")


@on("modern")
@pytest.mark.parametrize("indices", [(1, 2, 64, 1023), (1024, 0xFFFF)], ids=["near", "far"])
@described("4.2.2-P-01")
def test_queue_size_max_is_zero_for_a_queue_that_does_not_exist(plug, indices):
    driver = plug(start=False).driver
    driver.negotiate()
    queues = driver.config().num_queues or 1
    indices = [index for index in indices if index >= queues]
    if not indices:
        pytest.skip(f"the device has {queues} queues")

    for index in indices:
        driver.register_write("QueueSel", 0)
        assert driver.register_read("QueueSizeMax") > 0
        driver.register_write("QueueSel", index)
        size = driver.register_read("QueueSizeMax")
        assert size == 0, f"queue {index} shows a QueueSizeMax of {size}"


@on("modern")
@pytest.mark.parametrize("registers", ["SHMLen", "SHMBase"])
@described("4.2.2-P-02")
def test_a_shared_memory_region_that_does_not_exist(plug, registers):
    driver = plug(start=False).driver

    driver.register_write("SHMSel", 0)  # a block device has none
    low, high = driver.register_read(f"{registers}Low"), driver.register_read(f"{registers}High")

    assert (low, high) == (NOWHERE, NOWHERE), f"{registers} is {high:#x}, {low:#x}"
