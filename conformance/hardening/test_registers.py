"""Invalid register accesses: wrong widths, reserved bits, writes to read-only registers."""

from contextlib import suppress

import pytest

from harness.driver.errors import BadArgumentError
from harness.report import hardening, on
from harness.robustness.bad_addresses import end_of_memory, place, status_register
from harness.virtio.device import DeviceStatus
from harness.virtio.mmio import LEGACY_REGISTERS as MMIO_LEGACY_REGISTERS
from harness.virtio.mmio import REGISTERS as MMIO_REGISTERS
from harness.virtio.pci import (
    BAR_0,
    BAR_IO,
    CAP,
    COMMAND,
    COMMAND_MASTER,
    COMMON_REGISTERS,
    CapType,
)
from harness.virtio.pci import LEGACY_REGISTERS as PCI_LEGACY_REGISTERS

ALL_ONES = 0xFFFF_FFFF

READ_ONLY = [
    *("device_feature", "num_queues", "config_generation", "queue_notify_off"),
    *("queue_notif_config_data", "device_features", "isr_status"),
    *("MagicValue", "Version", "DeviceID", "VendorID", "DeviceFeatures", "HostFeatures"),
    *("QueueSizeMax", "QueueNumMax", "InterruptStatus", "ConfigGeneration"),
    *("SHMLenLow", "SHMLenHigh", "SHMBaseLow", "SHMBaseHigh"),
]

STATUS = ["device_status", "Status"]
SELECT = ["queue_select", "QueueSel"]
SIZE = ["queue_size", "QueueSize", "QueueNum"]
ENABLE = ["queue_enable", "QueueReady"]

NAMES = list(
    dict.fromkeys(
        [*COMMON_REGISTERS, *PCI_LEGACY_REGISTERS, *MMIO_REGISTERS, *MMIO_LEGACY_REGISTERS]
    )
)


@pytest.fixture(params=["split"])
def kind(request):
    """The format of the rings: split, as most register tests do not depend on it."""
    return request.param


def there(driver, names):
    """Return those of the named registers that the device's transport has."""
    found = []
    for name in names:
        try:
            driver.register_read(name)
        except BadArgumentError:
            continue
        found.append(name)
    return found


def one_of(driver, names):
    """Return the first register with one of these names; skip if there is none."""
    found = there(driver, names)
    if not found:
        pytest.skip(f"the transport has no {names[0]}")
    return found[0]


def select(driver, queue):
    driver.register_write(one_of(driver, SELECT), queue)


@hardening("4.1.3.1", "writes to the registers that are only to be read")
def test_writes_to_read_only_registers(registers):
    disk = registers()
    names = there(disk.driver, READ_ONLY)

    with disk.must_survive():
        for name in names:
            for value in (0, 1, ALL_ONES):
                disk.driver.register_write(name, value)


@hardening("4.1.3.1", "writes to every byte of the configuration space")
def test_writes_to_the_configuration_space(victim):
    disk = victim()

    with disk.must_survive():
        for offset in range(0, min(disk.driver.config_size(), 128) - 4, 4):
            for data in (b"\xff\xff\xff\xff", b"\xff\xff", b"\xff", bytes(4)):
                disk.driver.config_write(offset, data)


@pytest.mark.parametrize("width", [1, 2, 4])
@hardening("4.1.3.1", "reads of every register with every width")
def test_reads_of_another_width(registers, width):
    disk = registers()
    names = there(disk.driver, NAMES)

    with disk.must_survive():
        for name in names:
            with suppress(BadArgumentError):  # a transport may have no unaligned accesses
                disk.driver.register_read(name, width)


@pytest.mark.parametrize("value", [0, ALL_ONES, 0x5555_5555], ids=["zeroes", "ones", "every-other"])
@pytest.mark.parametrize("width", [1, 2, 4])
@hardening("4.1.3.1", "writes to every register, with every width, while the device runs")
def test_writes_of_another_width(registers, width, value):
    disk = registers()
    names = there(disk.driver, NAMES)

    with disk.must_survive():
        for name in names:
            with suppress(BadArgumentError):  # a transport may have no unaligned accesses
                disk.driver.register_write(name, value & ((1 << 8 * width) - 1), width)


@pytest.mark.parametrize("status", [0x10, 0x30, 0x40, 0x80, 0xFF, 0x04, 0x0B])
@hardening("2.1.1", "device status written with reserved bits, or with bits taken back")
def test_invalid_values_of_device_status(victim, status):
    disk = victim()

    with disk.must_survive():
        disk.send(*disk.read())
        disk.driver.set_status(status)
        disk.kick()


@hardening("3.1.1", "DRIVER_OK without anything before it, and a notification")
def test_driver_ok_first(registers):
    disk = registers()
    disk.lay(*disk.read())

    with disk.must_survive():
        disk.driver.set_status(0)
        disk.driver.set_status(DeviceStatus.DRIVER_OK)
        disk.go()


@hardening("2.2.1", "other features, and no ring's kind, while the device runs")
def test_features_written_while_the_device_runs(victim):
    disk = victim()

    with disk.must_survive():
        disk.send(*disk.read())
        for features in (0, 0xFFFF_FFFF, disk.driver.offered()):
            disk.driver.accept(features)
            disk.kick()


@pytest.mark.parametrize("size", [0, 1, 3, 1024, 1025, 32768, 0xFFFF])
@hardening("2.6", "a virtqueue of a size that it cannot have")
def test_an_invalid_queue_size(registers, size):
    disk = registers()
    name = one_of(disk.driver, SIZE)

    with disk.must_survive():
        select(disk.driver, 0)
        disk.driver.register_write(name, size)
        disk.send(*disk.read())


@pytest.mark.parametrize("kind", ["split", "packed"], indirect=True)
@pytest.mark.parametrize("size", [0, 3, 1024, 32768, 0xFFFF])
@hardening("2.6", "a virtqueue of an impossible size, from the start")
def test_a_queue_enabled_with_an_impossible_size(registers, size):
    disk = registers()
    size_of, enable = one_of(disk.driver, SIZE), one_of(disk.driver, ENABLE)

    def change():
        select(disk.driver, 0)
        disk.driver.register_write(size_of, size)
        disk.driver.register_write(enable, 1)

    with disk.must_survive():
        disk.repeat_after(change)
        disk.send(*disk.read())


@pytest.mark.parametrize("value", [2, 0xFFFF])
@hardening("4.1.4.3", "queue_enable with other values than 1")
def test_a_queue_enable_that_is_not_1(registers, value):
    disk = registers()
    name = one_of(disk.driver, ENABLE)

    with disk.must_survive():
        select(disk.driver, 0)
        disk.driver.register_write(name, value)
        disk.send(*disk.read())


@hardening("4.1.4.3", "queue_enable cleared under a request")
def test_a_queue_disabled_while_it_is_used(registers):
    disk = registers(iops=20)
    name = one_of(disk.driver, ENABLE)

    with disk.must_survive():
        disk.send(*disk.read())
        select(disk.driver, 0)
        disk.driver.register_write(name, 0)
        disk.send(*disk.read())


@pytest.mark.parametrize("queue", [2, 255, 1023, 1024, 0x7FFF, 0xFFFF])
@hardening("4.1.4.3", "every register of a virtqueue that does not exist")
def test_the_registers_of_a_queue_that_does_not_exist(registers, queue):
    disk = registers()
    names = [name for name in there(disk.driver, NAMES) if name.lower().startswith("queue")]
    names = [name for name in names if name not in (*SELECT, "queue_notify", "QueueNotify")]

    with disk.must_survive():
        for value in (0, 1, ALL_ONES):
            for name in names:
                select(disk.driver, queue)
                disk.driver.register_read(name)
                disk.driver.register_write(name, value)


@pytest.mark.parametrize("queue", [1, 2, 63, 255, 1023, 1024, 0xFFFF])
@hardening("2.9", "notifications for virtqueues that do not exist, or were not set up")
def test_notifications_for_absent_queues(registers, queue):
    disk = registers(queues=4)
    name = there(disk.driver, ["queue_notify", "QueueNotify"])
    if not name:
        structure = capability(disk.driver, CapType.NOTIFY_CFG)
        raw = disk.driver.pci_read(structure.at + CAP.size, 4)
        offset = min(queue * int.from_bytes(raw, "little"), structure.length - 4)

    with disk.must_survive():
        for _ in range(10):
            if name:
                disk.driver.register_write(name[0], queue)
            else:
                through_window(disk.driver, structure, offset, queue.to_bytes(2, "little"))
                through_window(disk.driver, structure, offset, b"\xff\xff\xff\xff")


@hardening("2.9", "notifications at a port for virtqueues that do not exist, and of another width")
@on("pci")
def test_notifications_at_a_port_for_absent_queues(registers):
    disk = registers(notify_port=True)
    driver = disk.driver
    ports = [
        item
        for item in driver.capabilities()
        if item.type == CapType.NOTIFY_CFG and not item.reserved and in_ports(driver, item.bar)
    ]
    if not ports:
        pytest.skip("no notification structure is at an I/O port")

    with disk.must_survive():
        for width in (1, 2, 4):
            for queue in (2, 255, 1023, 1024, 0xFFFF, ALL_ONES):
                if queue < 1 << 8 * width:
                    driver.bar_write(ports[0].bar, ports[0].offset, width, queue)


def in_ports(driver, bar):
    """Return True if a BAR is in I/O space."""
    return bool(driver.pci_read(BAR_0 + 4 * bar, 1)[0] & BAR_IO)


def capability(driver, kind):
    found = (candidate for candidate in driver.capabilities() if not candidate.reserved)
    return next(candidate for candidate in found if candidate.type == kind)


def through_window(driver, structure, offset, data):
    """Write into a structure through the window in PCI configuration space (virtio 4.1.4.9)."""
    window = capability(driver, CapType.PCI_CFG)
    driver.pci_write(window.at + 4, bytes([structure.bar]))
    driver.pci_write(window.at + 8, (structure.offset + offset).to_bytes(4, "little"))
    driver.pci_write(window.at + 12, len(data).to_bytes(4, "little"))
    driver.pci_write(window.at + 16, data)


@pytest.mark.parametrize("bar", [0, 1, 4, 5, 255])
@hardening("4.1.4.9.2", "the window in PCI configuration space over all that there is not")
@on("pci")
def test_the_window_at_unused_addresses(registers, bar):
    disk = registers()
    driver = disk.driver
    window = capability(driver, CapType.PCI_CFG)

    with disk.must_survive():
        for offset in (0xFFFF_FFFC, 0x4000, 0xFFF, 1, 0):
            for length in (0, 1, 2, 3, 4, 8, ALL_ONES):
                driver.pci_write(window.at + 4, bytes([bar]))
                driver.pci_write(window.at + 8, offset.to_bytes(4, "little"))
                driver.pci_write(window.at + 12, length.to_bytes(4, "little"))
                for width in (1, 2, 4):
                    driver.pci_read(window.at + 16, width)
                    driver.pci_write(window.at + 16, b"\xff" * width)


@pytest.mark.parametrize("fields", [{}, {"notify_port": True}], ids=["memory", "port"])
@hardening("4.1.4.4", "reads of notifications and writes of ISR status, with every width they have")
@on("pci")
def test_structures_in_the_wrong_direction(registers, fields):
    disk = registers(**fields)
    driver = disk.driver
    kinds = {CapType.NOTIFY_CFG, CapType.ISR_CFG}
    found = [item for item in driver.capabilities() if not item.reserved and item.type in kinds]
    if not found:
        pytest.skip("the function has no such structure")

    with disk.must_survive():
        for structure in found:
            for width in (1, 2, 4):
                if structure.type == CapType.NOTIFY_CFG:
                    driver.bar_read(structure.bar, structure.offset, width)
                fits = width <= structure.length and structure.offset % width == 0
                if structure.type == CapType.ISR_CFG and fits:
                    driver.bar_write(structure.bar, structure.offset, width, (1 << 8 * width) - 1)


@hardening("4.1.4.9.2", "the window in PCI configuration space over itself")
@on("pci")
def test_every_byte_of_the_virtio_capabilities(registers):
    disk = registers()

    with disk.must_survive():
        for candidate in disk.driver.capabilities():
            for offset in range(0, candidate.cap_len, 4):
                disk.driver.pci_write(candidate.at + offset, b"\xff\xff\xff\xff")


@pytest.mark.parametrize("vector", [0, 1, 0x7FF, 0xFFFE])
@hardening("4.1.5.1.2", "MSI-X vectors that do not exist")
@on("pci")
def test_vectors_that_do_not_exist(registers, vector):
    disk = registers()
    names = there(disk.driver, ["config_msix_vector", "queue_msix_vector"])

    with disk.must_survive():
        for queue in (0, 1, 2, 0xFFFF):
            select(disk.driver, queue)
            for name in names:
                disk.driver.register_write(name, vector)
        disk.send(*disk.read())


@hardening("4.1.2", "a device that may not master the bus any more")
@on("pci")
def test_bus_mastering_disabled_during_a_request(registers):
    disk = registers(iops=20)
    command = disk.driver.pci_read(COMMAND, 2)
    without = bytes([command[0] & ~COMMAND_MASTER, command[1]])

    with disk.must_survive(mend=lambda: disk.driver.pci_write(COMMAND, command)):
        disk.send(*disk.read())
        disk.driver.pci_write(COMMAND, without)
        disk.kick()


@pytest.mark.parametrize("value", [0, 1, 3, 4095, 0x8000_0000, ALL_ONES])
@hardening("4.2.4", "page size, alignment and place of a legacy queue that make no sense")
def test_legacy_queue_registers(registers, value):
    disk = registers()
    names = there(
        disk.driver, ["GuestPageSize", "QueueAlign", "QueueNum", "QueuePFN", "queue_address"]
    )
    if not names:
        pytest.skip("the device has no legacy interface")

    with disk.must_survive():
        select(disk.driver, 0)
        for name in names:
            disk.driver.register_write(name, value)
            disk.kick()


# --- rings at bad addresses


def put_rings(disk, queue=0, **areas):
    """Set the device up again, with a queue's areas at the given addresses."""
    driver = disk.driver

    def change():
        select(driver, queue)
        places = {name: getattr(disk.ring.layout, name) for name in ("desc", "driver", "device")}
        for area, address in (places | areas).items():
            if there(driver, [f"queue_{area}"]):
                driver.register_write(f"queue_{area}", address)
            else:
                driver.register_write(f"Queue{area.capitalize()}Low", address & ALL_ONES)
                driver.register_write(f"Queue{area.capitalize()}High", address >> 32)
        driver.register_write(one_of(driver, ENABLE), 1)

    disk.repeat_after(change)


@pytest.mark.parametrize("kind", ["split", "packed"], indirect=True)
@pytest.mark.parametrize("where", ["nowhere", "wrapping", "own-registers", "firmware", "odd"])
@pytest.mark.parametrize("area", ["desc", "driver", "device"])
@hardening("2.6", "a part of a virtqueue where there is no memory, or not the driver's")
def test_a_ring_in_an_impossible_place(registers, area, where):
    disk = registers()
    one_of(disk.driver, ENABLE)
    unaligned = getattr(disk.ring.layout, area) + 1
    address = unaligned if where == "odd" else place(disk.driver, where)

    with disk.must_survive():
        put_rings(disk, **{area: address})
        disk.send(*disk.read())


@pytest.mark.parametrize("kind", ["split", "packed"], indirect=True)
@pytest.mark.parametrize("area", ["desc", "driver", "device"])
@hardening("2.6", "a part of a virtqueue that begins in memory and ends behind it")
def test_a_ring_over_the_end_of_memory(registers, area):
    disk = registers()
    one_of(disk.driver, ENABLE)
    address = end_of_memory(disk.driver) - 16

    with disk.must_survive():
        put_rings(disk, **{area: address})
        disk.send(*disk.read())


@pytest.mark.parametrize("kind", ["split", "packed"], indirect=True)
@hardening("2.6", "all parts of a virtqueue at the same address")
def test_the_parts_of_a_ring_over_each_other(registers):
    disk = registers()
    one_of(disk.driver, ENABLE)
    same = disk.ring.layout.desc

    with disk.must_survive():
        put_rings(disk, driver=same, device=same)
        disk.canaries.give(same, 16 * disk.ring.size)
        disk.send(*disk.read())


@pytest.mark.parametrize("back", [0, 2, 6], ids=["on-it", "2-before", "6-before"])
@hardening("2.6", "a used ring on the device's own status register")
def test_a_used_ring_on_the_status_register(registers, back):
    disk = registers()
    one_of(disk.driver, ENABLE)

    with disk.must_survive():
        put_rings(disk, device=status_register(disk.driver) - back)
        disk.send(*disk.read())


@pytest.mark.parametrize("kind", ["split", "packed"], indirect=True)
@hardening("2.6", "two virtqueues with the same rings")
def test_two_queues_with_the_same_rings(registers):
    disk = registers()
    disk.needs_second_queue()
    one_of(disk.driver, ENABLE)

    with disk.must_survive():
        put_rings(disk, queue=1)
        disk.canaries.give(disk.ring.layout.desc, 16 * disk.ring.size)
        disk.send(*disk.read())
        disk.driver.queue_kick(1)
        disk.kick()
