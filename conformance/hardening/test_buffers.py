"""Invalid buffers: bad addresses, bad lengths, and the wrong direction."""

import pytest

from harness.driver.interface import Buffer
from harness.report import hardening
from harness.robustness.bad_addresses import PLACES, notify_register, place, status_register
from harness.robustness.rings import PackedRing
from harness.virtio.blk import REQUEST_HEADER, SECTOR, RequestType
from harness.virtio.ring import DESC_F_INDIRECT, DESC_SIZE

HUGE = 0xFFFF_FFFF


def replaced(buffer, address=None, length=None):
    """Return the same buffer with another address or length."""
    address = buffer.address if address is None else address
    return Buffer(address, buffer.length if length is None else length, buffer.writable)


ROLES = ["header", "data-in", "data-out", "status"]


def request_with(disk, role, **changed):
    """Return the buffers of a read with one of them changed."""
    buffers = disk.write() if role == "data-out" else disk.read()
    index = {"header": 0, "data-in": 1, "data-out": 1, "status": 2}[role]
    buffers[index] = replaced(buffers[index], **changed)
    if role == "status" and "address" in changed:
        buffers[index] = disk.unseen_status(changed["address"])
    return buffers


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("where", PLACES)
@hardening("2.6", "a buffer where there is no memory, or not the driver's")
def test_a_buffer_in_an_impossible_place(victim, where, role):
    disk = victim()
    if (where, role) == ("own-registers", "data-in"):
        pytest.skip("other tests cover writes of a device to its own registers")
    buffers = request_with(disk, role, address=place(disk.driver, where))

    with disk.must_survive():
        disk.send(*buffers)


@pytest.mark.parametrize("where", PLACES)
@hardening("2.7.5.3", "an indirect table where there is no memory, or not the driver's")
def test_an_indirect_table_in_an_impossible_place(victim, where):
    disk = victim()
    address = place(disk.driver, where)

    with disk.must_survive():
        disk.refer(Buffer(address, 3 * DESC_SIZE))
        disk.go()


@pytest.mark.parametrize("where", ["nowhere", "wrapping"])
@hardening("2.7.5.3", "an indirect table that refers to an impossible place")
def test_an_indirect_buffer_in_an_impossible_place(victim, where):
    disk = victim()
    buffers = request_with(disk, "data-in", address=place(disk.driver, where))

    with disk.must_survive():
        disk.send(*buffers, indirect=True)


@pytest.mark.parametrize("kind", ["split"], indirect=True)
@pytest.mark.parametrize("register", [status_register, notify_register], ids=["status", "notify"])
@hardening("2.6", "a buffer on one of the device's own registers, which what it reads changes")
def test_data_that_the_device_writes_to_its_own_registers(victim, register):
    disk = victim()
    header, area, status = disk.read(sector=5)
    target = Buffer(
        register(disk.driver), 4, writable=True
    )  # the smallest access that virtio-mmio allows

    with disk.must_survive():
        disk.send(header, target, replaced(area, length=SECTOR - 4), status)


@pytest.mark.parametrize("kind", ["split"], indirect=True)
@pytest.mark.parametrize("register", [status_register, notify_register], ids=["status", "notify"])
@hardening("2.6", "a status byte on one of the device's own registers")
def test_a_status_byte_on_the_devices_own_registers(victim, register):
    disk = victim()
    header, area, _ = disk.read(sector=5)

    with disk.must_survive():
        disk.send(header, area, disk.unseen_status(register(disk.driver)))


@pytest.mark.parametrize("length", [0, HUGE], ids=["empty", "all-ones"])
@pytest.mark.parametrize("role", ["header", "data-in", "status"])
@hardening("2.7.5", "a buffer of an impossible length")
def test_a_buffer_of_an_impossible_length(victim, role, length):
    disk = victim()
    buffers = request_with(disk, role, length=length)

    with disk.must_survive():
        disk.send(*buffers)


@pytest.mark.parametrize("length", [0, HUGE], ids=["empty", "all-ones"])
@hardening("2.7.5.3", "a buffer of an impossible length in an indirect table")
def test_an_indirect_buffer_of_an_impossible_length(victim, length):
    disk = victim()
    buffers = request_with(disk, "data-in", length=length)

    with disk.must_survive():
        disk.send(*buffers, indirect=True)


@pytest.mark.parametrize("length", [HUGE, 1 << 31], ids=["all-ones", "2-GiB"])
@hardening("2.7.5", "buffers whose lengths sum up beyond 32 bits")
def test_lengths_whose_sum_wraps(victim, length):
    disk = victim()
    header, area, status = disk.read()
    huge = replaced(area, length=length)

    with disk.must_survive():
        disk.send(header, huge, huge, huge, status)


@hardening("2.6", "a buffer over the last bytes of the address space and the first")
def test_a_buffer_around_the_end_of_the_address_space(victim):
    disk = victim()
    header, _, status = disk.read()

    with disk.must_survive():
        disk.send(header, Buffer(2**64 - SECTOR // 2, SECTOR, writable=True), status)


@pytest.mark.parametrize(
    "size",
    [0, 8, 47, 1 << 20, 0xFFFF_FFF0],
    ids=["empty", "half-an-entry", "odd", "1-MiB", "largest"],
)
@hardening("2.7.5.3.1", "an indirect table of an impossible size")
def test_an_indirect_table_of_an_impossible_size(victim, size):
    disk = victim()
    table = disk.table(*disk.read())

    with disk.must_survive():
        disk.refer(replaced(table, length=size))
        disk.go()


@hardening("2.7.5.3.1", "an indirect table with more entries than the queue has")
def test_an_indirect_table_larger_than_the_queue(victim):
    disk = victim(size=16)
    header, _, status = disk.read()

    with disk.must_survive():
        disk.send(header, *[disk.area(64)] * 200, status, indirect=True)


@hardening("2.7.5.3.1", "an indirect table with more entries than any queue may have")
def test_an_indirect_table_of_more_than_1024_buffers(victim):
    disk = victim()
    header, area, status = disk.read()

    with disk.must_survive():
        disk.send(header, *[area] * 1100, status, indirect=True)


@hardening("2.7.5.3.1", "an indirect table inside an indirect table")
def test_indirect_inside_indirect(victim):
    disk = victim()
    inner = disk.table(*disk.read())
    outer = disk.table(inner)
    disk.canaries.write(outer.address, disk.ring.table_entry(inner, DESC_F_INDIRECT))

    with disk.must_survive():
        disk.refer(outer)
        disk.go()


@hardening("2.7.5.3.1", "an indirect table that refers to itself")
def test_an_indirect_table_that_contains_itself(victim):
    disk = victim()
    table = disk.table(*disk.read())
    for entry in range(3):
        disk.canaries.write(
            table.address + DESC_SIZE * entry, disk.ring.table_entry(table, DESC_F_INDIRECT)
        )

    with disk.must_survive():
        disk.refer(table)
        disk.go()


@hardening("2.7.5.3.1", "an indirect table although INDIRECT_DESC was not accepted")
def test_indirect_that_was_not_negotiated(victim):
    disk = victim(indirect_desc=False)
    if disk.agreed_indirect():
        pytest.skip("the device offers INDIRECT_DESC although the test asked it not to")

    with disk.must_survive():
        table = disk.table(*disk.read())
        disk.ring.lay(table, flags=DESC_F_INDIRECT)
        disk.go()


# --- overlaps


@hardening("2.6", "one buffer for header, data and status")
def test_one_buffer_for_everything(victim):
    disk = victim()
    address = disk.area().address
    disk.canaries.write(address, REQUEST_HEADER.pack(RequestType.IN, 0, 5))

    with disk.must_survive():
        disk.send(
            Buffer(address, REQUEST_HEADER.size),
            Buffer(address, SECTOR, writable=True),
            disk.status(at=address),
        )


@hardening("2.6", "data and status that overlap each other")
def test_a_status_byte_in_the_data(victim):
    disk = victim()
    header, area, _ = disk.read(sector=5)

    with disk.must_survive():
        disk.send(header, area, disk.status(at=area.address + 7))


@hardening("2.6", "several buffers of a chain at the same address")
def test_data_buffers_that_overlap(victim):
    disk = victim()
    header, area, status = disk.read()

    with disk.must_survive():
        disk.send(header, *[area] * 20, status)


@pytest.mark.parametrize("part", ["desc", "driver", "device"])
@hardening("2.6", "a device-writable buffer on a part of its own virtqueue")
def test_data_over_the_ring(victim, part):
    disk = victim()
    header, _, status = disk.read(sector=5)
    target = Buffer(getattr(disk.ring.layout, part), SECTOR, writable=True)
    if isinstance(disk.ring, PackedRing) and part != "desc":
        target = replaced(target, length=4)

    with disk.must_survive():
        disk.send(header, target, status)


@pytest.mark.parametrize("part", ["desc", "driver", "device"])
@hardening("2.6", "a status byte on a part of its own virtqueue")
def test_a_status_byte_over_the_ring(victim, part):
    disk = victim()
    header, area, _ = disk.read(sector=5)
    place = getattr(disk.ring.layout, part) + (2 if part == "device" else 0)

    with disk.must_survive():
        disk.send(header, area, disk.unseen_status(place))


@hardening("2.7.5.3", "a device-writable buffer on the indirect table that it is in")
def test_data_over_its_own_indirect_table(victim):
    disk = victim()
    header, _, status = disk.read(sector=5)
    table = disk.table(header, header, header)
    target = replaced(table)

    with disk.must_survive():
        disk.ring.table(table.address, header, Buffer(target.address, 48, True), status)
        disk.refer(table)
        disk.go()


# --- directions


def turned(buffer):
    """Return the same buffer with the other direction."""
    return Buffer(buffer.address, buffer.length, not buffer.writable)


@pytest.mark.parametrize(
    "wrong", [(0,), (1,), (2,), (0, 1, 2)], ids=["header", "data", "status", "all"]
)
@pytest.mark.parametrize("type", [RequestType.IN, RequestType.OUT], ids=["read", "write"])
@hardening("5.2.6", "buffers of a request in the wrong direction")
def test_buffers_in_the_wrong_direction(victim, type, wrong):
    disk = victim()
    buffers = disk.read() if type == RequestType.IN else disk.write()
    for index in wrong:
        buffers[index] = turned(buffers[index])

    with disk.must_survive():
        disk.send(*buffers)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)], ids=["data-first", "status-first"])
@hardening("2.7.4.2", "device-writable buffers before device-readable ones")
def test_buffers_in_the_wrong_order(victim, order):
    disk = victim()
    buffers = disk.read()

    with disk.must_survive():
        disk.send(*[buffers[index] for index in order])
