"""The legacy interface of transitional devices (virtio 2.2.3, 3.1.2, 4.1.2.3, 4.1.4.10)."""

import pytest

from conformance.data import needed, sectors
from conformance.waiting import SOON
from harness.diskspec import Fault
from harness.driver.errors import DriverError
from harness.driver.interface import CANARY, Request
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import (
    CONFIG_FIELD,
    CONFIG_FIELDS,
    REQUEST_HEADER,
    SCSI_RESULT,
    SCSI_SENSE,
    SCSI_TYPES,
    SECTOR,
    RequestType,
    Status,
)
from harness.virtio.device import BLOCK_DEVICE, DeviceStatus
from harness.virtio.features import Feature, mask, names
from harness.virtio.pci import BAR_0, BAR_IO, DEVICE, LEGACY_PAGE, REVISION, SUBSYSTEM
from harness.virtio.ring import AVAIL_F_NO_INTERRUPT, DESC_SIZE, avail_size, used_size

WRITEBACK = CONFIG_FIELD["writeback"].offset


def transitional(driver):
    """Return the driver. Skip unless its device has a legacy interface: an I/O BAR 0."""
    if not driver.pci_read(BAR_0, 1)[0] & BAR_IO:
        pytest.skip("the device has no legacy interface")
    return driver


def set_writeback(driver, value):
    driver.config_write(WRITEBACK, bytes([value]))
    assert driver.config_read(WRITEBACK, 1)[0] == value


def writeback(driver):
    return driver.config_read(WRITEBACK, 1)[0]


@on("pci")
@clause("4.1.2.3-L-01", "4.1.2.3-L-02", "4.1.2.3-L-03")
@reads_only
def test_pci_ids_of_a_transitional_device(plug):
    driver = transitional(plug(start=False).driver)

    device = int.from_bytes(driver.pci_read(DEVICE, 2), "little")
    revision = driver.pci_read(REVISION, 1)[0]
    subsystem = int.from_bytes(driver.pci_read(SUBSYSTEM, 2), "little")

    assert 0x1000 <= device <= 0x103F
    assert revision == 0
    assert subsystem == BLOCK_DEVICE


@on("pci", "legacy")
@clause("4.1.4.10-L-01", "4.1.5.1.1.1-L-01")
def test_the_legacy_header_is_in_the_ports_of_bar_0(plug):
    driver = plug(start=False).driver
    driver.reset()

    assert driver.pci_read(BAR_0, 1)[0] & BAR_IO
    assert driver.register_read("device_status") == 0
    driver.register_write("device_status", DeviceStatus.ACKNOWLEDGE)
    assert driver.register_read("device_status") == DeviceStatus.ACKNOWLEDGE
    driver.register_write("queue_select", 0)
    assert driver.register_read("queue_size") > 0


@on("pci", "legacy")
@clause("4.1.4.10-L-03b")
def test_the_configuration_space_reads_the_same_with_any_width(plug):
    driver = plug(start=False, logical_block_size=4096, physical_block_size=8192).driver
    end = CONFIG_FIELD["writeback"].offset
    fields = [field for field in CONFIG_FIELDS if field.offset + field.size <= end]

    # As wide as a field; the capacity's 64 bits are two accesses of 32.
    natural = b"".join(
        driver.config_read(field.offset + at, min(field.size, 4))
        for field in fields
        for at in range(0, field.size, 4)
    )
    by_bytes = b"".join(driver.config_read(at, 1) for at in range(end))
    by_words = b"".join(driver.config_read(at, 2) for at in range(0, end, 2))

    assert natural[:8] != bytes(8)
    assert by_bytes == natural
    assert by_words == natural
    assert b"".join(driver.config_read(at, 4) for at in range(0, end, 4)) == natural


@on("pci", "legacy")
@clause("4.1.4.10-L-03b")
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("value", [0, 1])
def test_the_configuration_space_is_written_with_any_width(plug, width, value):
    driver = plug(start=False, needs=[Feature.BLK_CONFIG_WCE]).driver
    driver.reset()
    driver.set_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
    set_writeback(driver, 1 - value)

    # The byte behind writeback is padding.
    driver.config_write(WRITEBACK, value.to_bytes(width, "little"))

    assert writeback(driver) == value


@on("pci", "legacy")
@pytest.mark.parametrize("vectors", [0, 1], ids=["without-msix", "with-msix"])
@clause("4.1.4.10-L-05")
@reads_only
def test_the_configuration_space_follows_the_header(plug, vectors):
    disk = plug(start=False, capacity=0x1234)
    try:
        disk.driver.use_msix(vectors)
    except DriverError as error:
        pytest.skip(f"no MSI-X: {error.message}")

    assert disk.driver.config_read(0, 8) == (0x1234).to_bytes(8, "little")


@on("legacy")
@clause("2.2.3-L-02")
def test_a_driver_without_version_1_is_served(plug):
    disk = plug()
    assert "VERSION_1" not in names(disk.driver.accepted())

    written = disk.write(8, sectors(4))
    read = disk.read(8, 4)

    assert (written.status, read.status) == (Status.OK, Status.OK)
    assert disk.backing.read(8, 4) == read.data == sectors(4)


@on("legacy")
@clause("3.1.2-L-02")
@pytest.mark.parametrize("value", [0, 1])
def test_a_configuration_field_may_be_written_before_the_features_are_read(plug, value):
    driver = plug(start=False, needs=[Feature.BLK_CONFIG_WCE]).driver
    driver.reset()
    driver.set_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)

    driver.config_write(WRITEBACK, bytes([value]))

    assert writeback(driver) == value


@on("legacy")
@clause("3.1.2-L-03")
def test_a_request_before_driver_ok_is_served(plug):
    disk = plug(start=False)
    driver = disk.driver
    disk.backing.write(5, sectors(1))
    driver.negotiate()
    driver.queue_setup(0)

    completion = driver.request(Request(RequestType.IN, 5, receive=512), timeout=SOON)

    assert not driver.status() & DeviceStatus.DRIVER_OK
    assert completion.status == Status.OK
    assert completion.data == sectors(1)


@on("legacy")
@pytest.mark.parametrize("value", [0, 1])
@clause("5.2.5.3-L-03")
def test_device_status_leaves_writeback_alone(plug, value):
    driver = plug(start=False, needs=[Feature.BLK_CONFIG_WCE]).driver
    driver.reset()
    set_writeback(driver, value)
    driver.accept(mask(Feature.BLK_CONFIG_WCE, Feature.BLK_FLUSH))

    seen = []
    status = 0
    for bit in (DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER, DeviceStatus.DRIVER_OK):
        status |= bit
        driver.set_status(status)
        seen.append(writeback(driver))

    assert seen == [value] * 3


@on("legacy")
@pytest.mark.parametrize("value", [0, 1])
@clause("5.2.5.3-L-04")
def test_the_choice_of_features_leaves_writeback_alone(plug, value):
    driver = plug(start=False, needs=[Feature.BLK_CONFIG_WCE]).driver
    driver.reset()
    driver.set_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
    set_writeback(driver, value)

    seen = []
    for features in (
        mask(Feature.BLK_CONFIG_WCE),
        mask(Feature.BLK_FLUSH),
        mask(Feature.BLK_CONFIG_WCE, Feature.BLK_FLUSH),
        0,
    ):
        driver.accept(features)
        seen.append(writeback(driver))

    assert seen == [value] * 4


@on("legacy")
@pytest.mark.parametrize(
    "features",
    [[Feature.BLK_CONFIG_WCE], [Feature.BLK_CONFIG_WCE, Feature.BLK_FLUSH]],
    ids=["CONFIG_WCE", "CONFIG_WCE-FLUSH"],
)
@clause("5.2.5.3-L-04")
def test_the_choice_of_features_leaves_the_cache_mode_alone(plug, features):
    needs = [Feature.BLK_CONFIG_WCE, Feature.BLK_FLUSH]
    driver = plug(start=False, needs=needs, faults=(Fault("flush"),)).driver
    driver.reset()
    driver.set_status(DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)
    set_writeback(driver, 0)

    driver.accept(mask(*features))
    driver.queue_setup(0)
    driver.set_status(driver.status() | DeviceStatus.DRIVER_OK)
    completion = driver.request(Request(RequestType.OUT, 8, sectors(1)))

    # Nothing can be committed, and without a volatile cache nothing else is a success.
    assert completion.status != Status.OK, "the cache is volatile, and writeback was set to 0"


@on("legacy")
@clause("2.7.2-L-02")
def test_the_rings_in_one_piece_are_wrapped_around(plug):
    disk = plug()
    queue = disk.queues[0]
    end = queue.desc + DESC_SIZE * queue.size + avail_size(queue.size)
    assert queue.driver == queue.desc + DESC_SIZE * queue.size
    assert queue.device == -(-end // LEGACY_PAGE) * LEGACY_PAGE
    disk.backing.write(7, sectors(1))

    if queue.size > 4096:
        pytest.skip(f"to go around {queue.size} descriptors twice takes minutes on a slow device")
    count = 2 * queue.size + 3
    outcome = disk.driver.repeat(Request(RequestType.IN, 7, receive=512), count)

    assert outcome.statuses == {Status.OK: count}
    used = int.from_bytes(disk.driver.memory_read(queue.device + 2, 2), "little")
    assert used == count
    assert needed(disk.read(7), "the read afterwards").data == sectors(1)


@on("legacy")
@clause("2.7.3-L-01")
def test_the_fields_of_a_virtqueue_have_the_byte_order_of_the_guest(plug):
    # The guest is little-endian: the device has to know that.
    disk = plug()
    driver, queue = disk.driver, disk.queues[0]
    disk.backing.write(0x102, sectors(1))
    read = Request(RequestType.IN, 0x102, receive=512)
    driver.repeat(read, 0x103)
    completion = disk.read(0x102)

    used = driver.memory_read(queue.device, used_size(queue.size))
    element = 4 + 8 * (0x103 % queue.size)
    head = driver.memory_read(queue.driver + 4 + 2 * (0x103 % queue.size), 2)
    assert used[2:4] == (0x104).to_bytes(2, "little")
    assert used[element : element + 4] == head + bytes(2)
    assert int.from_bytes(used[element + 4 : element + 8], "little") <= 513
    assert completion.data == sectors(1)


@on("pci", "legacy")
@clause("4.1.4.10-L-06")
def test_a_legacy_driver_gets_the_split_virtqueue_of_a_device_that_can_do_packed(plug):
    disk = plug(packed=True)
    driver, queue = disk.driver, disk.queues[0]
    disk.backing.write(5, sectors(1))

    completion = disk.read(5)

    assert (completion.status, completion.data) == (Status.OK, sectors(1))
    assert driver.memory_read(queue.device + 2, 2) == (1).to_bytes(2, "little")


@on("legacy")
@pytest.mark.parametrize("extra", [[], [Feature.EVENT_IDX]], ids=["flags", "used_event"])
@clause("6.3-L-02")
def test_with_notify_on_empty_the_last_of_the_buffers_interrupts(plug, extra):
    disk = plug(extra=[Feature.NOTIFY_ON_EMPTY, *extra])
    driver, queue = disk.driver, disk.queues[0]
    # Neither the flag nor used_event asks for an interrupt.
    flags = AVAIL_F_NO_INTERRUPT.to_bytes(2, "little")
    driver.memory_write(queue.driver, flags)
    driver.memory_write(queue.driver + 4 + 2 * queue.size, (0x4000).to_bytes(2, "little"))
    for sector in range(3):
        before = driver.interrupts().queue

        assert disk.read(sector).status is Status.OK

        driver.wait_interrupt("queue", above=before, timeout=SOON)


@on("pci", "legacy")
@clause("6.3-L-03a")
def test_any_layout_is_offered(plug):
    assert "ANY_LAYOUT" in names(plug(start=False).driver.offered())


# --- SCSI commands (virtio 5.2.6.3)

TEST_UNIT_READY = bytes(6)
ALLOCATED = 36
INQUIRY = bytes([0x12, 0, 0, 0, ALLOCATED, 0])
NO_COMMAND = bytes([0x1F, 0, 0, 0, 0, 0])
"""SCSI commands: without data, with 36 bytes of them, and one whose operation code is reserved."""


def plug_scsi(plug):
    """Return a disk that offers SCSI commands, after one that clears the unit's attention."""
    disk = plug(scsi=True, needs=[Feature.BLK_SCSI], extra=[Feature.BLK_SCSI])
    send_scsi(disk, TEST_UNIT_READY)
    return disk


def send_scsi(disk, command, receive=0, type=RequestType.SCSI_CMD):
    """Send a SCSI command that receives some bytes of data.

    Return its status, data, sense data, errors, sense_len and residual.
    """
    writable = (*([receive] if receive else []), SCSI_SENSE, SCSI_RESULT.size, 1)
    disk.needs_descriptors(2 + len(writable))
    completion = disk.request(
        type,
        data=command,
        receive=sum(writable) - 1,
        readable=(REQUEST_HEADER.size, len(command)),
        writable=writable,
    )
    assert completion.damage == ()
    data, rest = completion.data[:receive], completion.data[receive:]
    errors, _, sense_len, residual = SCSI_RESULT.unpack(rest[SCSI_SENSE:])
    return completion.status, data, rest[:SCSI_SENSE], errors, sense_len, residual


def served(status):
    """Skip the test if the device does not execute the SCSI command."""
    if status is not Status.OK:
        pytest.skip(f"the device executes no such SCSI command: {status!r}")


@on("legacy")
@pytest.mark.parametrize(
    ("command", "receive"),
    [(TEST_UNIT_READY, 0), (INQUIRY, SECTOR), (NO_COMMAND, 0)],
    ids=["test-unit-ready", "inquiry", "reserved"],
)
@described("5.2.6.3-P-01")
@reads_only
def test_the_two_types_of_a_scsi_command_are_the_same(plug, command, receive):
    disk = plug_scsi(plug)

    def answer(type):
        status, data, sense, errors, sense_len, residual = send_scsi(disk, command, receive, type)
        if status is not Status.OK:
            return (status,)
        return status, data, sense[:sense_len], errors, sense_len, residual

    first, other, again, other_again = (answer(type) for type in (*SCSI_TYPES, *SCSI_TYPES))

    if first != again or other != other_again:
        pytest.skip("the unit does not answer the same command twice in the same way")
    assert first == other


@on("legacy")
@described("5.2.6.3-P-02")
@reads_only
def test_sense_len_counts_the_bytes_of_sense_data(plug):
    status, _, sense, _, sense_len, _ = send_scsi(plug_scsi(plug), NO_COMMAND)

    served(status)
    assert sense_len <= SCSI_SENSE
    assert set(sense[sense_len:]) <= {CANARY}, "bytes after the sense data were written"
    # One byte of the sense data may be like this one; two at its end were not written.
    assert not sense[:sense_len].endswith(bytes([CANARY] * 2)), "sense_len counts too many"


@on("legacy")
@pytest.mark.parametrize("receive", [SECTOR, 2 * SECTOR])
@described("5.2.6.3-P-03")
@reads_only
def test_residual_counts_the_bytes_that_were_not_transferred(plug, receive):
    status, data, _, errors, _, residual = send_scsi(plug_scsi(plug), INQUIRY, receive)

    served(status)
    if errors:
        pytest.skip(f"the unit does not execute INQUIRY: errors is {errors:#x}")
    # The answer says how long it is. The command asks for no more than ALLOCATED bytes of it.
    assert residual == receive - min(data[4] + 5, ALLOCATED)
