"""Breaches of packed virtqueues, and of descriptors in flight (virtio 2.8, 3.3)."""

from __future__ import annotations

from harness.driver.interface import Buffer, QueueLayout
from harness.driver.interface import Request as DriverRequest
from harness.proof.breaches.breach import (
    INDIRECT,
    NEXT,
    WRITE,
    breach,
    place_of_queue,
    request_buffers,
    ring,
)
from harness.proof.breaches.split import offer, put_all
from harness.targets.disk import Disk
from harness.virtio.blk import RequestType
from harness.virtio.features import Feature
from harness.virtio.ring import (
    DESC_SIZE,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
)


def put_packed(
    disk: Disk, at: QueueLayout, slot: int, buffer: Buffer, flags: int = 0, ident: int = 0
) -> None:
    """Write a descriptor of a packed virtqueue in the first round."""
    flags |= WRITE if buffer.writable else 0
    data = PACKED_DESC.pack(buffer.address, buffer.length, ident, flags | PACKED_DESC_F_AVAIL)
    disk.driver.memory_write(at.desc + DESC_SIZE * slot, data)


def kick(disk: Disk) -> None:
    """Notify virtqueue 0, and wait until the device has looked at it."""
    disk.driver.queue_kick(0)
    disk.driver.status()


@breach("2.8.11-R-01")
def misaligns_a_packed_queue(disk: Disk) -> None:
    """Put the driver area of a packed virtqueue at an address that is no multiple of 4."""
    place_of_queue(disk, Feature.RING_PACKED.mask, driver=2)


def changes_a_descriptor(disk: Disk, *features: Feature) -> None:
    """Change the length of a descriptor while the request waits for its turn."""
    at = ring(disk, *features)
    disk.read(0)
    token = disk.driver.submit([DriverRequest(RequestType.IN, 0, receive=512)])[0]
    disk.driver.status()
    slots = range(at.size)
    for slot in slots:
        place = at.desc + DESC_SIZE * slot + 8
        length = int.from_bytes(disk.driver.memory_read(place, 4), "little")
        if length == 512:
            disk.driver.memory_write(place, (511).to_bytes(4, "little"))
    disk.driver.complete([token])


@breach("3.3.1-R-01", iops=1)
def changes_a_split_descriptor(disk: Disk) -> None:
    """Change a descriptor of a split virtqueue that the device has not used yet."""
    changes_a_descriptor(disk)


@breach("3.3.1-R-01", "2.8.16-R-01", "2.8.16-R-02", iops=1)
def changes_a_packed_descriptor(disk: Disk) -> None:
    """Change a descriptor of a packed virtqueue that the device has not used yet."""
    changes_a_descriptor(disk, Feature.RING_PACKED)


def many_buffers(disk: Disk, count: int) -> list[Buffer]:
    """Return the buffers of a read of `count` sectors, each with an element of its own."""
    header, _, status = request_buffers(disk)
    place = disk.driver.alloc(512 * count)
    return [header, *[Buffer(place + 512 * n, 512, True) for n in range(count)], status]


def more_than_seg_max(disk: Disk, indirect: bool) -> None:
    """Send a read with one element of data more than seg_max."""
    ring(disk, Feature.RING_PACKED, Feature.BLK_SEG_MAX, Feature.INDIRECT_DESC, size=256)
    count = (disk.driver.config().seg_max or 0) + 1
    head = disk.driver.queue_add(0, many_buffers(disk, count), indirect)
    disk.driver.queue_publish(0, [head])
    kick(disk)


@breach("2.8.17-R-01")
def makes_a_list_too_long(disk: Disk) -> None:
    """Use more elements of data than seg_max in a packed virtqueue."""
    more_than_seg_max(disk, indirect=False)


@breach("2.8.19-R-03")
def makes_a_packed_table_too_long(disk: Disk) -> None:
    """Use more elements of data than seg_max in an indirect table of a packed virtqueue."""
    more_than_seg_max(disk, indirect=True)


@breach("2.8.17-R-02")
def makes_a_list_longer_than_the_queue(disk: Disk) -> None:
    """Set NEXT in every descriptor of a packed virtqueue."""
    at = ring(disk, Feature.RING_PACKED, size=4)
    header, *_ = request_buffers(disk)
    for slot in range(4):
        put_packed(disk, at, slot, header, NEXT)
    kick(disk)


@breach("2.8.17-R-03")
def puts_writable_first_in_a_list(disk: Disk) -> None:
    """Put a device-writable element before a readable one in a packed virtqueue."""
    at = ring(disk, Feature.RING_PACKED)
    header, data, _ = request_buffers(disk)
    put_packed(disk, at, 1, header)
    put_packed(disk, at, 0, data, NEXT)
    kick(disk)


@breach("2.8.17-R-05", iops=1)
def overwrites_a_list(disk: Disk) -> None:
    """Make a list available that has no room behind those in flight."""
    at = ring(disk, Feature.RING_PACKED, size=4)
    disk.driver.status()
    for place in (0, 3, 6):
        buffers = request_buffers(disk)
        for number in (2, 1, 0):
            slot, wrap = (place + number) % 4, (place + number) // 4 % 2 == 0
            flags = (NEXT if number < 2 else 0) | (WRITE if number else 0)
            flags |= PACKED_DESC_F_AVAIL if wrap else 1 << 15
            buffer = buffers[number]
            data = PACKED_DESC.pack(buffer.address, buffer.length, place, flags)
            disk.driver.memory_write(at.desc + DESC_SIZE * slot, data)
        kick(disk)
    disk.driver.reset()


@breach("2.8.17-R-06")
def makes_the_first_available_first(disk: Disk) -> None:
    """Make the first descriptor of a list available while another one is not."""
    at = ring(disk, Feature.RING_PACKED)
    header, data, status = request_buffers(disk)
    put_packed(disk, at, 2, status)
    put_packed(disk, at, 1, data, NEXT)
    place = at.desc + DESC_SIZE + 14
    disk.driver.memory_write(place, (NEXT | WRITE).to_bytes(2, "little"))
    put_packed(disk, at, 0, header, NEXT)
    kick(disk)


@breach("2.8.19-R-01")
def uses_a_packed_table_without_the_feature(disk: Disk) -> None:
    """Use an indirect table in a packed virtqueue without INDIRECT_DESC."""
    at = ring(disk, Feature.RING_PACKED)
    put_packed(disk, at, 0, packed_table(disk), INDIRECT)
    kick(disk)


def packed_table(disk: Disk, flags: int = 0) -> Buffer:
    """Return the indirect table of a read, with more flags in each entry."""
    place = disk.driver.alloc(3 * DESC_SIZE)
    table = b"".join(
        PACKED_DESC.pack(b.address, b.length, 0, flags | (WRITE if b.writable else 0))
        for b in request_buffers(disk)
    )
    disk.driver.memory_write(place, table)
    return Buffer(place, len(table))


@breach("2.8.19-R-02")
def sets_flags_in_a_packed_table(disk: Disk) -> None:
    """Set NEXT in the entries of an indirect table of a packed virtqueue."""
    at = ring(disk, Feature.RING_PACKED, Feature.INDIRECT_DESC)
    put_packed(disk, at, 0, packed_table(disk, NEXT), INDIRECT)
    kick(disk)


@breach("2.8.19-R-04")
def lists_a_table(disk: Disk) -> None:
    """Put a descriptor with INDIRECT into a list."""
    at = ring(disk, Feature.RING_PACKED, Feature.INDIRECT_DESC)
    header, *_ = request_buffers(disk)
    put_packed(disk, at, 1, packed_table(disk), INDIRECT)
    put_packed(disk, at, 0, header, NEXT)
    kick(disk)


@breach("6.1-R-04")
def hands_over_an_address_outside_memory(disk: Disk) -> None:
    """Use a buffer at an address where no memory is."""
    at = ring(disk)
    header, _, status = request_buffers(disk)
    put_all(disk, at, (0, 1, 2), [header, Buffer(1 << 44, 512, True), status])
    offer(disk, at)
