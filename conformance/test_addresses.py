"""Addresses of rings, tables and buffers, and other freedom of a driver (virtio 2.7, 2.8)."""

import pytest

from conformance.contents import Contents
from conformance.data import sectors
from conformance.rings import areas, plug_ring, with_statements
from conformance.waiting import SOON
from harness.driver.errors import BadArgumentError, DeviceTimeoutError
from harness.driver.interface import Request
from harness.report import described, on
from harness.targets.disk import named
from harness.virtio.blk import RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature

SMALL = {"capacity": 64}

SHORT = 0.3
"""Seconds after which a request that has not completed is looked at."""

SHIFTS = (*range(16), 2048, *range(4081, 4096))
"""Bytes after a page's start at which a buffer or a table begins: every alignment, and such places
that a header, a table or a sector ends at a page's end, or lies on both sides of it."""

LONG_AT_THE_END = (4096 - 512, 4096 - 513, 4096 - 511, 4096 - 48, 4096 - 47)
"""More such places: a sector and a table that end at a page's end, or a byte from it."""


def send(disk, type, sector, data=b"", receive=0, **framing):
    """Send a request and wait no longer than SOON, in which every device is done with it."""
    return named(disk.driver.request(Request(type, sector, data, receive, **framing), timeout=SOON))


def send_unusual(disk, type, sector, data=b"", receive=0, **framing):
    """Send a request as `send` does, and fail at once if a chain is used that no request has."""
    driver, request = disk.driver, Request(type, sector, data, receive, unusual=True, **framing)
    before = driver.queue_state(0).used_idx
    (token,) = driver.submit([request])
    try:
        return named(driver.complete([token], timeout=SHORT)[0])
    except DeviceTimeoutError:
        used = driver.queue_state(0).used_idx
        wrong = used != before and token not in driver.completed()
    assert not wrong, f"the used index went from {before} to {used}, but for no request's chain"
    return named(driver.complete([token], timeout=SOON)[0])


def check_read_and_write(disk, contents, what, cut=(), send=send, **framing):
    """Read and write three sectors with this framing, and compare what was read.

    `cut` are the lengths of the buffers of the write.
    """
    data = sectors(3, salt=160)
    written = send(disk, RequestType.OUT, 9, data, readable=cut, **framing)
    assert written.status is Status.OK, f"a write {what} ended with {written.status!r}"
    assert written.damage == (), f"a write {what} changed other memory: {written.damage}"
    contents.write(9, data)
    found = send(disk, RequestType.IN, 8, receive=5 * 512, **framing)
    assert found.status is Status.OK, f"a read {what} ended with {found.status!r}"
    assert found.damage == (), f"a read {what} changed other memory: {found.damage}"
    assert found.data == contents.read(8, 5), f"a read {what} returned other data"


@on("modern")  # the areas of a legacy virtqueue are contiguous, from a page's start on
@with_statements(split=described("2.7-P-02"), packed=described("2.8-P-01"))
@pytest.mark.parametrize("size", [1, 4, None], ids=["1", "4", "largest"])
def test_rings_may_have_the_least_alignment(plug, packed, size):
    disk = plug_ring(plug, packed, start=False, needs=[], prefer=SMALL)
    extra = Feature.RING_PACKED.mask if packed else 0
    if size == 1 and not packed:
        # A request has two descriptors or more, with a table too (virtio 2.7.5.3.1).
        pytest.skip("a split virtqueue of 1 descriptor has no room for a request")
    if size == 1:
        extra |= Feature.INDIRECT_DESC.mask
        if not disk.driver.offered() & Feature.INDIRECT_DESC.mask:
            pytest.skip("a queue of 1 descriptor needs INDIRECT_DESC, which is not offered")
    agreed = disk.driver.negotiate(disk.driver.negotiate().accepted | extra)
    queue = disk.driver.queue_setup(0, size, least_aligned=True)
    disk.driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)
    contents = Contents(disk)
    areas = (queue.desc, queue.driver, queue.device)
    where = f"with areas at {', '.join(map(hex, areas))}"

    for _ in range(6):
        check_read_and_write(disk, contents, where, indirect=size == 1)
    contents.check(f"requests {where}")


BORDER = 1 << 32
"""The first address that does not fit into 32 bits."""

BELOW = BORDER - (1 << 20)
"""Address from which there is room for rings below the border."""


def use_memory(driver, address, where):
    """Let the driver allocate from this address on. Skip the test if it has no memory there."""
    try:
        driver.allocate_from(address)
    except BadArgumentError:
        pytest.skip(f"the driver and the device share no memory {where} 4 GiB")


def begins(disk, across):
    """Return addresses to allocate from: 4 GiB, or `across` bytes below it. Skip if there is none.

    Each of `across` is the number of bytes before 4 GiB.
    """
    use_memory(disk.driver, BORDER - max(across), "below" if any(across) else "above")
    return [BORDER - before for before in across]


@pytest.mark.parametrize("across", [False, True], ids=["above", "across"])
@on("modern")
@with_statements(split=described("2.7-P-02"), packed=described("2.8-P-01"))
def test_rings_may_lie_above_4_gib_and_across_it(plug, packed, across):
    disk = plug_ring(plug, packed, prefer=SMALL)
    features, queue = disk.driver.accepted(), disk.queues[0]
    contents = Contents(disk)
    sizes = zip(
        (queue.desc, queue.driver, queue.device), map(len, areas(disk, packed, queue)), strict=True
    )
    middles = [address - queue.desc + length // 2 & ~15 for address, length in sizes]

    for begin in begins(disk, middles if across else [0]):
        use_memory(disk.driver, begin, "around")
        disk.start(features)
        layout = disk.queues[0]
        where = f"with areas at {layout.desc:#x}, {layout.driver:#x}, {layout.device:#x}"
        for _ in range(4):
            check_read_and_write(disk, contents, where)
    contents.check("requests on rings around 4 GiB")


@pytest.mark.parametrize("across", [False, True], ids=["above", "across"])
@with_statements(split=described("2.7.4-P-02"), packed=described("2.8.5-P-01"))
def test_buffers_may_lie_above_4_gib_and_across_it(plug, packed, across):
    disk = plug_ring(plug, packed, prefer=SMALL)
    features = disk.driver.accepted()
    indirect = bool(features & Feature.INDIRECT_DESC.mask)
    contents = Contents(disk)
    if across:
        use_memory(disk.driver, BELOW, "below")
        disk.start(features)  # with its rings below the border

    # A write has its header, its data and its status within some 2000 bytes.
    for begin in begins(disk, range(8, 2200, 40) if across else [0]):
        use_memory(disk.driver, begin, "around")
        check_read_and_write(disk, contents, f"of buffers from {begin:#x} on")
        if indirect:
            what = f"of buffers and a table from {begin:#x} on"
            check_read_and_write(disk, contents, what, indirect=True)
    contents.check("requests with buffers around 4 GiB")


@with_statements(split=described("2.7.4-P-02"), packed=described("2.8.5-P-01"))
def test_buffers_may_lie_at_any_address(plug, packed):
    disk = plug_ring(plug, packed, prefer=SMALL)
    contents = Contents(disk)

    for shift in (*SHIFTS, *LONG_AT_THE_END):
        check_read_and_write(disk, contents, f"of buffers at page + {shift}", shift=shift)
    contents.check("writes from every alignment")


@with_statements(split=described("2.7.5.3-P-02"), packed=described("2.8.7-P-02"))
def test_indirect_tables_may_lie_at_any_address(plug, packed):
    disk = plug_ring(plug, packed, prefer=SMALL, needs=[Feature.INDIRECT_DESC])
    contents = Contents(disk)

    for shift in (*SHIFTS, *LONG_AT_THE_END):
        what = f"with an indirect table at page + {shift}"
        check_read_and_write(disk, contents, what, shift=shift, indirect=True)
    contents.check("writes with tables of every alignment")


@pytest.mark.parametrize(
    ("packed", "indirect"),
    [
        pytest.param(False, False, id="split-direct", marks=described("2.7.5-P-01")),
        pytest.param(False, True, id="split-indirect", marks=described("2.7.5.3-P-01")),
        pytest.param(True, False, id="packed-direct", marks=described("2.8.6-P-01")),
        pytest.param(True, True, id="packed-indirect", marks=described("2.8.7-P-01")),
    ],
)
def test_what_a_driver_is_free_in_makes_no_difference(plug, packed, indirect):
    """Links out of order, other ids in all descriptors but the last, other ignored fields."""
    needs = [Feature.INDIRECT_DESC] if indirect else []
    # With IN_ORDER a driver is not free in the order of descriptors.
    disk = plug_ring(plug, packed, prefer=SMALL, needs=needs, without=[Feature.IN_ORDER])
    contents = Contents(disk)

    for cut in ((16, 1536), (1, 15, 512, 1024), (16, 511, 1, 1024)):
        if not indirect and len(cut) + 1 > disk.queues[0].size:
            continue
        for _ in range(4):
            what = f"cut into {cut}"
            check_read_and_write(disk, contents, what, cut, send_unusual, indirect=indirect)
    contents.check("writes of unusual chains")
