"""The configuration space: fields, access, generation (virtio 2.5, 4.1.4.3, 5.2.4, 5.2.5)."""

import pytest

from conformance.data import mib, sectors
from conformance.waiting import resize
from harness.driver.interface import Request
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import CONFIG_FIELD, CONFIG_FIELDS, RequestType, Status
from harness.virtio.features import Feature

CAPACITY = CONFIG_FIELD["capacity"]
WRITEBACK = CONFIG_FIELD["writeback"]


def read(driver, field):
    return driver.config_read(field.offset, field.size)


@clause("2.5.2-D-01")
@reads_only
def test_fields_can_be_read_before_features_ok(plug):
    driver = plug(start=False).driver
    driver.reset()
    offered = driver.offered()
    # The driver must not read writeback before FEATURES_OK.
    fields = [
        field
        for field in CONFIG_FIELDS
        if field is not WRITEBACK and (field.feature is None or offered & field.feature.mask)
        if field.offset + field.size <= driver.config_size()
    ]

    before = {field.name: read(driver, field) for field in fields}
    accepted = driver.negotiate().accepted
    # A field whose feature the driver has not accepted may have another value now.
    kept = [field for field in fields if field.feature is None or accepted & field.feature.mask]
    after = {field.name: read(driver, field) for field in kept}

    assert {name: before[name] for name in after} == after


@clause("5.2.5.2-D-03")
@reads_only
def test_padding_is_zero(plug):
    driver = plug(needs=[Feature.BLK_WRITE_ZEROES]).driver

    padding = {name: read(driver, CONFIG_FIELD[name]) for name in ("unused0", "unused1")}

    assert padding == {"unused0": b"\0", "unused1": b"\0\0\0"}


@clause("4.1.3.2-D-01")
@reads_only
def test_the_halves_of_capacity_can_be_read_in_either_order(plug):
    driver = plug(capacity=2**32 + mib(3)).driver

    low_first = driver.config_read(0, 4), driver.config_read(4, 4)
    high_first = driver.config_read(4, 4), driver.config_read(0, 4)

    assert low_first == (bytes.fromhex("00180000"), bytes.fromhex("01000000"))
    assert high_first == low_first[::-1]


@described("5.2.5-P-03")
@reads_only
def test_block_sizes_and_topology(plug):
    disk = plug(
        logical_block_size=1024,
        physical_block_size=8192,
        min_io_size=8192,
        opt_io_size=65536,
        needs=[Feature.BLK_BLK_SIZE, Feature.BLK_TOPOLOGY],
    )

    config = disk.driver.config()

    assert config.blk_size == 1024
    assert config.physical_block_exp == 3
    assert config.alignment_offset == 0
    assert config.min_io_size == 8
    assert config.opt_io_size == 64


@described("5.2.4-P-05")
def test_num_queues(plug):
    disk = plug(queues=3, driver_queues=3, needs=[Feature.BLK_MQ])
    disk.backing.write(0, sectors(3))

    assert disk.driver.config().num_queues == disk.spec.queues
    for queue in range(3):
        request = Request(RequestType.IN, queue, receive=512)
        completion = disk.driver.request(request, queue=queue)
        assert completion.status == Status.OK
        assert completion.data == sectors(3)[512 * queue : 512 * (queue + 1)]


@described("5.2.5-P-11")
@reads_only
def test_limits_of_discard(plug):
    config = plug(max_discard_sectors=384, needs=[Feature.BLK_DISCARD]).driver.config()

    assert config.max_discard_sectors == 384
    assert config.max_discard_seg >= 1


@described("5.2.5-P-11")
@reads_only
def test_limits_of_write_zeroes(plug):
    config = plug(max_write_zeroes_sectors=640, needs=[Feature.BLK_WRITE_ZEROES]).driver.config()

    assert config.max_write_zeroes_sectors == 640
    assert config.max_write_zeroes_seg >= 1


@pytest.mark.parametrize("mode", [0, 1])
@described("5.2.5-P-12")
def test_writeback_can_be_switched(plug, mode):
    disk = plug(write_cache=not mode, config_wce=True, needs=[Feature.BLK_CONFIG_WCE])
    assert disk.driver.config().writeback == 1 - mode

    disk.driver.config_write(WRITEBACK.offset, bytes([mode]))

    assert disk.driver.config().writeback == mode


@clause("4.1.4.3.1-D-06")
@on("pci", "modern")
def test_generation_differs_after_each_of_two_changes(plug):
    disk = plug(capacity=mib(8))

    seen = [disk.driver.config_generation()]
    for capacity in (mib(9), mib(10)):
        resize(disk, capacity)
        seen.append(disk.driver.config_generation())

    assert seen[0] != seen[1] != seen[2]


@clause("4.1.4.3.1-D-06")
@on("pci", "modern")
def test_generation_differs_after_a_change_before_driver_ok(plug):
    disk = plug(start=False, capacity=mib(8))
    disk.driver.negotiate()
    before = read(disk.driver, CAPACITY), disk.driver.config_generation()

    resize(disk, mib(9))
    after = read(disk.driver, CAPACITY), disk.driver.config_generation()

    assert after[0] == (mib(9)).to_bytes(8, "little")
    assert after[1] != before[1], "the config generation stayed the same"


@clause("4.1.4.3.1-D-06")
@on("pci", "modern")
def test_generation_differs_after_256_changes_between_two_reads(plug):
    disk = plug(capacity=mib(8))
    disk.driver.service_interrupts(False)  # the driver does not read the fields in between
    before = read(disk.driver, CAPACITY), disk.driver.config_generation()

    for step in range(1, 256):
        disk.resize(mib(8) + step)
    resize(disk, mib(8) + 256)
    after = read(disk.driver, CAPACITY), disk.driver.config_generation()

    assert after[0] == (mib(8) + 256).to_bytes(8, "little")
    assert after[1] != before[1], "the config generation has the value it had 256 changes before"
