"""The PCI transport: capabilities, registers, INTx, the configuration window (virtio 4.1)."""

import pytest

from conformance.data import sectors, untouched
from conformance.raw import RawRead, send_reads
from conformance.waiting import (
    SOON,
    eventually,
    let_finish,
    let_pass,
    need_one_done,
    reset_queue_0,
    resize,
    trouble,
)
from harness.driver.errors import NoDeviceError
from harness.driver.interface import Request
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import CONFIG_FIELDS, SECTOR, RequestType, Status
from harness.virtio.features import Feature, mask
from harness.virtio.pci import (
    BAR_0,
    BAR_IO,
    CAP,
    COMMON_REGISTERS,
    DEVICE,
    INTERRUPT_PIN,
    ISR_CONFIG,
    ISR_QUEUE,
    MODERN_DEVICE_ID,
    REVISION,
    STATUS,
    STATUS_INTERRUPT,
    SUBSYSTEM,
    TRANSITIONAL_DEVICE_ID,
    VENDOR,
    VENDOR_ID,
    CapType,
)
from harness.virtio.ring import used_size

NEEDED = (Feature.VERSION_1, Feature.ACCESS_PLATFORM, Feature.ORDER_PLATFORM)
"""Features without which a device may refuse to work (6.2-D-02, D-04, D-06)."""


def capability(driver, kind):
    found = (item for item in driver.capabilities() if not item.reserved)
    return next(item for item in found if item.type == kind)


def interrupt_pending(driver):
    """Return the interrupt status bit of the PCI status register."""
    return bool(driver.pci_read(STATUS, 1)[0] & STATUS_INTERRUPT)


@clause("4.1.2.1-D-01", "4.1.2.1-D-02")
@on("pci")
@reads_only
def test_pci_ids(plug):
    identity = plug(start=False).driver.pci_read(VENDOR, 4)

    assert int.from_bytes(identity[:2], "little") == VENDOR_ID
    assert int.from_bytes(identity[2:], "little") in (MODERN_DEVICE_ID, TRANSITIONAL_DEVICE_ID)


def modern_only(plug):
    """Return the driver of a device without a legacy interface: without an I/O BAR 0."""
    driver = plug(start=False).driver
    if driver.pci_read(BAR_0, 1)[0] & BAR_IO:
        pytest.skip("the device has a legacy interface")
    return driver


@clause("4.1.2.1-D-04")
@on("pci")
@reads_only
def test_pci_device_id_without_a_legacy_interface(plug):
    assert 0x1040 <= int.from_bytes(modern_only(plug).pci_read(DEVICE, 2), "little") <= 0x107F


@clause("4.1.2.1-D-05")
@on("pci")
@reads_only
def test_pci_revision_without_a_legacy_interface(plug):
    assert modern_only(plug).pci_read(REVISION, 1)[0] >= 1


@clause("4.1.2.1-D-06")
@on("pci")
@reads_only
def test_pci_subsystem_id_without_a_legacy_interface(plug):
    assert int.from_bytes(modern_only(plug).pci_read(SUBSYSTEM, 2), "little") >= 0x40


@clause("4.1.4.2-D-01")
@on("pci")
@reads_only
def test_cap_len_covers_what_a_type_adds_and_no_other_capability(plug):
    found = plug(start=False).driver.capabilities()
    wanted = {
        CapType.NOTIFY_CFG: CAP.size + 4,
        CapType.PCI_CFG: CAP.size + 4,
        CapType.SHARED_MEMORY_CFG: CAP.size + 8,
        CapType.VENDOR_CFG: 6,  # it ends with vendor_id and has no BAR or offset
    }

    for item in found:
        assert item.cap_len >= wanted.get(item.type, CAP.size), item
        inside = [other for other in found if item.at < other.at < item.at + item.cap_len]
        assert inside == [], item


@clause("4.1.4.3.1-D-02", "4.1.4.4.1-D-01", "4.1.4.5.1-D-01", "4.1.4.6-T-01", "4.1.4.9.1-D-01")
@on("pci")
@reads_only
def test_the_structures_that_every_device_has_are_there(plug):
    found = {item.type for item in plug(start=False).driver.capabilities()}

    assert found >= {
        CapType.COMMON_CFG,
        CapType.NOTIFY_CFG,
        CapType.ISR_CFG,
        CapType.DEVICE_CFG,
        CapType.PCI_CFG,
    }


@clause("4.1.4.3.1-D-01", "4.1.4.6.1-D-01")
@on("pci")
@reads_only
def test_structures_are_aligned(plug):
    driver = plug(start=False).driver

    assert capability(driver, CapType.COMMON_CFG).offset % 4 == 0
    assert capability(driver, CapType.DEVICE_CFG).offset % 4 == 0


def notification(plug, with_data, features=None, **fields):
    """Return the notification structure, its multiplier, and the offsets of the queues.

    `features` are negotiated of those offered, all if None. With ADMIN_VQ, the administration
    virtqueues are queues, too. Skips a device that does not offer NOTIFICATION_DATA, or does,
    where that is not wanted.
    """
    driver = plug(start=False, **fields).driver
    if bool(driver.offered() & Feature.NOTIFICATION_DATA.mask) != with_data:
        pytest.skip(f"the device {'does not offer' if with_data else 'offers'} NOTIFICATION_DATA")
    accepted = driver.offered() & (~0 if features is None else mask(*features))
    driver.negotiate(accepted)
    structure = capability(driver, CapType.NOTIFY_CFG)
    multiplier = int.from_bytes(driver.pci_read(structure.at + CAP.size, 4), "little")
    indices = [*range(driver.register_read("num_queues"))]
    if accepted & Feature.ADMIN_VQ.mask:
        indices += administration(driver)
    offsets = []
    for index in indices:
        driver.register_write("queue_select", index)
        offsets.append(driver.register_read("queue_notify_off"))
    return structure, multiplier, offsets


def administration(driver):
    """Return the indices of the administration virtqueues, if ADMIN_VQ was negotiated."""
    first = driver.register_read("admin_queue_index")
    return range(first, first + driver.register_read("admin_queue_num"))


QUEUES = pytest.mark.parametrize("fields", [{}, {"queues": 4}], ids=["as-it-comes", "4-queues"])


@QUEUES
@clause("4.1.4.4.1-D-02", "4.1.4.4.1-D-03", "4.1.4.4.1-D-04a", "4.1.4.4.1-D-05")
@on("pci", "modern")
@reads_only
def test_every_queue_has_room_for_its_notifications(plug, fields):
    structure, multiplier, offsets = notification(plug, False, **fields)

    assert structure.offset % 2 == 0
    # "Even power of 2" has two readings. A value that fits neither is wrong.
    assert multiplier & (multiplier - 1) == 0
    assert structure.length >= max(offset * multiplier for offset in offsets) + 2


@QUEUES
@clause("4.1.4.4.1-D-06", "4.1.4.4.1-D-07", "4.1.4.4.1-D-08a", "4.1.4.4.1-D-09")
@on("pci", "modern")
@reads_only
def test_every_queue_has_room_for_its_notifications_with_data(plug, fields):
    structure, multiplier, offsets = notification(plug, True, **fields)

    assert structure.offset % 4 == 0
    assert multiplier & (multiplier - 1) == 0
    assert multiplier % 4 == 0
    assert structure.length >= max(offset * multiplier for offset in offsets) + 4


CONFIGURATIONS = pytest.mark.parametrize(
    "features",
    [
        pytest.param(NEEDED, id="no-features"),
        pytest.param([*NEEDED, Feature.BLK_MQ], id="MQ"),
        pytest.param([*NEEDED, Feature.BLK_MQ, Feature.RING_PACKED], id="MQ-packed"),
        pytest.param([*NEEDED, Feature.BLK_MQ, Feature.NOTIF_CONFIG_DATA], id="MQ-own-data"),
        pytest.param([*NEEDED, Feature.BLK_MQ, Feature.BLK_FLUSH], id="MQ-flush"),
        pytest.param([*NEEDED, Feature.BLK_MQ, Feature.ADMIN_VQ], id="MQ-administration"),
    ],
)


@QUEUES
@CONFIGURATIONS
@clause("4.1.4.4.1-D-04b")
@on("pci", "modern")
@reads_only
def test_there_is_room_for_notifications_whatever_is_negotiated(plug, features, fields):
    structure, multiplier, offsets = notification(plug, False, features, **fields)

    assert structure.length >= max(offset * multiplier for offset in offsets) + 2


@QUEUES
@CONFIGURATIONS
@clause("4.1.4.4.1-D-08b")
@on("pci", "modern")
@reads_only
def test_there_is_room_for_notifications_with_data_whatever_is_negotiated(plug, features, fields):
    wanted = [*features, Feature.NOTIFICATION_DATA]
    structure, multiplier, offsets = notification(plug, True, wanted, **fields)

    assert structure.length >= max(offset * multiplier for offset in offsets) + 4


@pytest.mark.parametrize("indices", [(1, 2, 64, 1023), (1024, 0xFFFF)], ids=["near", "far"])
@clause("4.1.4.3.1-D-14")
@on("pci", "modern")
def test_queue_size_is_zero_for_a_queue_that_does_not_exist(plug, indices):
    driver = plug(start=False).driver
    accepted = driver.offered() & mask(*NEEDED, Feature.ADMIN_VQ)
    driver.negotiate(accepted)
    queues = driver.register_read("num_queues")
    there = [*range(queues)]
    if accepted & Feature.ADMIN_VQ.mask:
        there += administration(driver)
    absent = [index for index in indices if index not in there]
    if not absent:
        pytest.skip(f"the device has all of the queues {indices}")

    for index in absent:
        driver.register_write("queue_select", 0)
        assert driver.register_read("queue_size") > 0
        driver.register_write("queue_select", index)
        size = driver.register_read("queue_size")
        assert size == 0, f"queue {index} shows a queue_size of {size}"


SIZES = pytest.mark.parametrize("size", [4, 256, 1024])


def queue_sizes(driver):
    """Return the size of every queue after a reset."""
    driver.reset()
    for index in range(driver.register_read("num_queues")):
        driver.register_write("queue_select", index)
        yield driver.register_read("queue_size")


@SIZES
@clause("4.1.4.3.1-D-15")
@on("pci", "modern")
def test_queue_size_is_a_power_of_two(plug, size):
    driver = plug(start=False, queue_size=size, seg_max_adjust=True).driver

    for shown in queue_sizes(driver):
        assert shown & (shown - 1) == 0


@SIZES
@described("4.1.4.3-P-01")
@on("pci", "modern")
def test_queue_size_is_the_size_that_the_device_was_made_with(plug, size):
    disk = plug(start=False, queue_size=size, seg_max_adjust=True)
    disk.needs_known_storage()

    assert set(queue_sizes(disk.driver)) == {size}


def needs_pin(driver):
    """Skip the test if the function has no interrupt pin: its Interrupt Status may always be 0."""
    if not driver.pci_read(INTERRUPT_PIN, 1)[0]:
        pytest.skip("the function has no interrupt pin")


def quiet(disk):
    """Stop acknowledging interrupts, after those that a new queue may have raised."""
    disk.driver.service_interrupts(False)
    let_pass(disk=disk)
    disk.driver.isr()


@pytest.mark.parametrize("fields", [{}, {"msix": False}], ids=["msix", "no-msix"])
@clause("4.1.4.5.1-D-03", "4.1.4.5.1-D-04", "4.1.4.5.1-D-05")
@on("pci")
@reads_only
def test_a_completion_sets_isr_and_reading_it_clears_it(plug, fields):
    disk = plug(**fields)
    driver = disk.driver
    needs_pin(driver)
    quiet(disk)
    assert (driver.isr(), interrupt_pending(driver)) == (0, False)

    assert disk.read(0).status is Status.OK
    pending = eventually(lambda: interrupt_pending(driver))
    # A change of the configuration may have come before, with a bit of its own.
    shown = eventually(lambda: bool(driver.isr() & ISR_QUEUE))

    assert pending
    assert shown
    assert (driver.isr(), interrupt_pending(driver)) == (0, False)


@clause("4.1.4.5.1-D-02", "4.1.4.5.1-D-04", "4.1.4.5.1-D-05")
@on("pci")
def test_a_resize_sets_isr_and_reading_it_clears_it(plug):
    disk = plug()
    driver = disk.driver
    quiet(disk)
    raised = driver.interrupts().raised

    resize(disk, disk.spec.capacity * 2)
    assert eventually(lambda: driver.interrupts().raised > raised)
    pending = interrupt_pending(driver)
    isr = driver.isr()

    assert pending
    assert isr & ISR_CONFIG
    assert (driver.isr(), interrupt_pending(driver)) == (0, False)


def point(driver, structure, offset, length):
    """Point the window at `length` bytes of a structure, and return where its data is."""
    window = capability(driver, CapType.PCI_CFG)
    driver.pci_write(window.at + 4, bytes([structure.bar]))
    driver.pci_write(window.at + 8, (structure.offset + offset).to_bytes(4, "little"))
    driver.pci_write(window.at + 12, length.to_bytes(4, "little"))
    return window.at + 16


def aim(driver, register):
    """Point the window at a common register; return its length and where its data is."""
    offset, length = COMMON_REGISTERS[register]
    return length, point(driver, capability(driver, CapType.COMMON_CFG), offset, length)


@clause("4.1.4.9.1-D-03")
@on("pci", "modern")
@reads_only
def test_reading_the_window_reads_the_bar(plug):
    driver = plug().driver

    for register in ("device_status", "num_queues", "queue_size", "device_feature"):
        expected = driver.register_read(register)
        assert expected != 0
        length, place = aim(driver, register)
        value = int.from_bytes(driver.pci_read(place, length), "little")
        assert value == expected, register


@pytest.mark.parametrize("width", [1, 2, 4])
@clause("4.1.4.9.1-D-03")
@on("pci", "modern")
@reads_only
def test_reading_the_window_reads_fields_of_every_width(plug, width):
    disk = plug(logical_block_size=4096, physical_block_size=8192, opt_io_size=65536)
    driver = disk.driver
    structure = capability(driver, CapType.DEVICE_CFG)
    fields = [field for field in CONFIG_FIELDS if field.size == width and field.offset < 0x20]
    values = [driver.config_read(field.offset, width) for field in fields]
    assert any(value != bytes(width) for value in values)

    for field, value in zip(fields, values, strict=True):
        place = point(driver, structure, field.offset, width)
        assert driver.pci_read(place, width) == value, field.name


@clause("4.1.4.9.1-D-03", "4.1.4.5.1-D-05")
@on("pci", "modern")
@reads_only
def test_reading_isr_through_the_window_clears_it(plug):
    disk = plug()
    driver = disk.driver
    needs_pin(driver)
    driver.service_interrupts(False)
    assert disk.read(0).status is Status.OK
    assert eventually(lambda: interrupt_pending(driver))
    place = point(driver, capability(driver, CapType.ISR_CFG), 0, 1)

    assert eventually(lambda: bool(driver.pci_read(place, 1)[0] & ISR_QUEUE))
    assert (driver.isr(), interrupt_pending(driver)) == (0, False)


@clause("4.1.4.9.1-D-02")
@on("pci", "modern")
def test_writing_the_notification_address_through_the_window_notifies(plug):
    # Without these the value is the queue's index, and has 16 bits (4.1.5.2).
    disk = plug(without=[Feature.NOTIFICATION_DATA, Feature.NOTIF_CONFIG_DATA])
    driver = disk.driver
    disk.backing.write(5, sectors(1))
    request = RawRead.of(driver, sector=5)
    driver.queue_publish(0, [driver.queue_add(0, request.buffers)])
    structure = capability(driver, CapType.NOTIFY_CFG)
    multiplier = int.from_bytes(driver.pci_read(structure.at + CAP.size, 4), "little")
    driver.register_write("queue_select", 0)
    offset = driver.register_read("queue_notify_off") * multiplier

    driver.pci_write(point(driver, structure, offset, 2), bytes(2))
    driver.queue_poll(0, timeout=SOON)

    assert (request.status, request.data) == (Status.OK, sectors(1))


@pytest.mark.parametrize("fields", [{}, {"notify_port": True}], ids=["as-it-comes", "port"])
@described("4.1.4-P-02")
@on("pci", "modern")
@reads_only
def test_a_notification_through_each_of_several_structures_is_taken(plug, fields):
    # Without these the value is the queue's index, and has 16 bits (4.1.5.2).
    disk = plug(without=[Feature.NOTIFICATION_DATA, Feature.NOTIF_CONFIG_DATA], **fields)
    driver = disk.driver
    structures = [
        item for item in driver.capabilities() if item.type == CapType.NOTIFY_CFG and item.bar < 6
    ]
    if len(structures) < 2:
        pytest.skip("the device has one notification structure")

    for structure in structures:
        request = RawRead.of(driver, sector=5)
        driver.queue_publish(0, [driver.queue_add(0, request.buffers)])
        multiplier = int.from_bytes(driver.pci_read(structure.at + CAP.size, 4), "little")
        driver.register_write("queue_select", 0)
        offset = driver.register_read("queue_notify_off") * multiplier
        try:
            driver.bar_write(structure.bar, structure.offset + offset, 2, 0)
        except NoDeviceError as error:
            pytest.skip(f"a notification structure cannot be reached: {error.message}")
        missing = trouble(lambda: driver.queue_poll(0, timeout=SOON))
        assert missing is None, structure
        assert request.status == Status.OK, structure


@clause("4.1.4.9.1-D-02")
@on("pci", "modern")
def test_writing_the_window_writes_the_bar(plug):
    driver = plug(start=False, queues=2).driver
    driver.reset()

    for register, value in (
        ("device_status", 1),
        ("queue_select", 1),
        ("driver_feature_select", 1),
    ):
        assert driver.register_read(register) != value
        length, place = aim(driver, register)
        driver.pci_write(place, value.to_bytes(length, "little"))
        assert driver.register_read(register) == value, register


@on("pci", "modern")
@clause("4.1.4.3.1-D-10", "4.1.4.3.1-D-11", "4.1.4.3.1-D-13")
def test_queue_reset_and_queue_enable_show_a_queues_reset(plug):
    driver = plug(extra=[Feature.RING_RESET]).driver
    driver.register_write("queue_select", 0)
    assert (driver.register_read("queue_reset"), driver.register_read("queue_enable")) == (0, 1)

    driver.queue_reset(0)
    after = driver.register_read("queue_reset"), driver.register_read("queue_enable")
    driver.queue_setup(0)
    enabled_again = driver.register_read("queue_reset"), driver.register_read("queue_enable")

    assert after == (0, 0)
    assert enabled_again == (0, 1)


@on("pci", "modern")
@clause("4.1.4.3.1-D-09")
def test_queue_reset_is_0_after_a_reset_in_the_middle_of_a_queues_reset(plug):
    disk = plug(queues=2, driver_queues=2, extra=[Feature.RING_RESET], iops=5)
    driver = disk.driver
    disk.needs_descriptors(30)
    driver.submit([Request(RequestType.IN, 8 * n, receive=512) for n in range(10)])
    driver.register_write("queue_select", 0)
    driver.register_write("queue_reset", 1)

    driver.reset()

    shown = []
    for index in range(2):
        driver.register_write("queue_select", index)
        shown.append(driver.register_read("queue_reset"))
    assert shown == [0, 0]


@on("pci", "modern")
@clause("4.1.4.3.1-D-12")
def test_queue_reset_stays_1_until_the_queue_is_left_alone(plug):
    disk = plug(extra=[Feature.RING_RESET], iops=25)
    driver, queue = disk.driver, disk.queues[0]
    requests = send_reads(disk, 20)
    need_one_done(lambda: any(request.done for request in requests))

    shown = reset_queue_0(driver, "queue_select", "queue_reset")
    assert 0 in shown, f"queue_reset did not read 0 within {SOON:g} s"
    assert set(shown) <= {0, 1}
    before = driver.memory_read(queue.device, used_size(queue.size))
    if untouched(SECTOR) not in [request.data for request in requests]:
        pytest.skip("nothing was in flight when the queue was reset")
    let_finish(disk)

    after = driver.memory_read(queue.device, used_size(queue.size))
    assert after == before, "queue_reset is 0, and the used ring still changes"


@on("pci", "modern")
@clause("4.1.4.3.1-D-16a")
@reads_only
def test_administration_virtqueues_come_behind_the_others(plug):
    driver = plug(extra=[Feature.ADMIN_VQ]).driver

    first = driver.register_read("admin_queue_index")

    assert first >= driver.register_read("num_queues")


@on("pci", "modern")
@clause("4.1.4.3.1-D-16b")
@reads_only
def test_the_indices_of_administration_virtqueues_have_16_bits(plug):
    driver = plug(extra=[Feature.ADMIN_VQ]).driver

    first = driver.register_read("admin_queue_index")
    count = driver.register_read("admin_queue_num")

    assert first + count <= 0x10000
