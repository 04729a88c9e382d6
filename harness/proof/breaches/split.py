"""Breaches of split virtqueues (virtio 2.7)."""

from __future__ import annotations

from harness.driver.interface import Buffer, QueueLayout
from harness.proof.breaches.breach import (
    INDIRECT,
    NEXT,
    WRITE,
    breach,
    place_of_queue,
    request_buffers,
    ring,
)
from harness.targets.disk import Disk
from harness.virtio.features import Feature
from harness.virtio.ring import (
    DESC,
    DESC_SIZE,
)


def put(
    disk: Disk, at: QueueLayout, slot: int, buffer: Buffer, flags: int = 0, following: int = 0
) -> None:
    """Write a descriptor of a split virtqueue."""
    flags |= WRITE if buffer.writable else 0
    data = DESC.pack(buffer.address, buffer.length, flags, following)
    disk.driver.memory_write(at.desc + DESC_SIZE * slot, data)


def offer(disk: Disk, at: QueueLayout, head: int = 0, index: int = 1, flags: int = 0) -> None:
    """Write head, flags and index of the available ring, notify, and wait until it is taken."""
    slot = at.driver + 4 + 2 * ((index - 1) % at.size)
    disk.driver.memory_write(slot, head.to_bytes(2, "little"))
    disk.driver.memory_write(at.driver, flags.to_bytes(2, "little") + index.to_bytes(2, "little"))
    disk.driver.queue_kick(0)
    disk.driver.status()


def tabled(disk: Disk, *entries: tuple[Buffer, int, int]) -> Buffer:
    """Return an indirect table of entries: buffer, flags, next."""
    place = disk.driver.alloc(DESC_SIZE * len(entries))
    table = b"".join(
        DESC.pack(buffer.address, buffer.length, flags | (WRITE if buffer.writable else 0), after)
        for buffer, flags, after in entries
    )
    disk.driver.memory_write(place, table)
    return Buffer(place, len(table))


@breach("2.7.1-R-01")
def misaligns_a_split_queue(disk: Disk) -> None:
    """Put the descriptor table at an address that is no multiple of 16."""
    place_of_queue(disk, desc=8)


@breach("2.7.4.2-R-01")
def puts_writable_first(disk: Disk) -> None:
    """Put a device-writable element before a device-readable one."""
    at = ring(disk)
    header, data, _ = request_buffers(disk)
    put(disk, at, 0, data, NEXT, 1)
    put(disk, at, 1, header)
    offer(disk, at)


@breach("2.7.5.2-R-01")
def links_a_chain_to_a_loop(disk: Disk) -> None:
    """Link a descriptor to itself."""
    at = ring(disk)
    put(disk, at, 0, request_buffers(disk)[0], NEXT, 0)
    offer(disk, at)


def put_all(
    disk: Disk, at: QueueLayout, slots: tuple[int, ...], buffers: list[Buffer], last: int = 0
) -> None:
    """Write a chain into these descriptors."""
    for number, (slot, buffer) in enumerate(zip(slots, buffers, strict=True)):
        end = number == len(slots) - 1
        put(disk, at, slot, buffer, 0 if end else NEXT, last if end else slots[number + 1])


@breach("2.7.5.2-R-02")
def skips_descriptors_in_order(disk: Disk) -> None:
    """Leave a descriptor out between those of a chain with IN_ORDER."""
    at = ring(disk, Feature.IN_ORDER)
    put_all(disk, at, (0, 2, 3), request_buffers(disk))
    offer(disk, at)


@breach("2.7.5.3.1-R-01")
def uses_a_table_without_the_feature(disk: Disk) -> None:
    """Use an indirect table without INDIRECT_DESC."""
    at = ring(disk)
    put(disk, at, 0, table_of_a_read(disk), INDIRECT)
    offer(disk, at)


def table_of_a_read(disk: Disk) -> Buffer:
    """Return the indirect table of a read."""
    header, data, status = request_buffers(disk)
    return tabled(disk, (header, NEXT, 1), (data, NEXT, 2), (status, 0, 0))


@breach("2.7.5.3.1-R-02")
def puts_a_table_into_a_table(disk: Disk) -> None:
    """Set INDIRECT in an entry of an indirect table."""
    at = ring(disk, Feature.INDIRECT_DESC)
    header, data, _ = request_buffers(disk)
    inner = table_of_a_read(disk)
    put(disk, at, 0, tabled(disk, (header, NEXT, 1), (inner, INDIRECT, 0), (data, 0, 0)), INDIRECT)
    offer(disk, at)


@breach("2.7.5.3.1-R-03")
def makes_a_table_longer_than_the_queue(disk: Disk) -> None:
    """Use an indirect table with more entries than the virtqueue has."""
    at = ring(disk, Feature.INDIRECT_DESC)
    header, data, status = request_buffers(disk)
    parts = [Buffer(data.address + 64 * n, 64, True) for n in range(8)]
    entries = [(header, NEXT, 1), *[(part, NEXT, n + 2) for n, part in enumerate(parts)]]
    put(disk, at, 0, tabled(disk, *entries, (status, 0, 0)), INDIRECT)
    offer(disk, at)


@breach("2.7.5.3.1-R-04")
def links_a_table(disk: Disk) -> None:
    """Set INDIRECT and NEXT in one descriptor."""
    at = ring(disk, Feature.INDIRECT_DESC)
    put(disk, at, 0, table_of_a_read(disk), INDIRECT | NEXT, 1)
    put(disk, at, 1, Buffer(0, 0))
    offer(disk, at)


@breach("2.7.5.3.1-R-05")
def links_a_table_out_of_order(disk: Disk) -> None:
    """Link the entries of an indirect table out of their order with IN_ORDER."""
    at = ring(disk, Feature.INDIRECT_DESC, Feature.IN_ORDER)
    header, data, status = request_buffers(disk)
    table = tabled(disk, (header, NEXT, 2), (status, 0, 0), (data, NEXT, 1))
    put(disk, at, 0, table, INDIRECT)
    offer(disk, at)


@breach("2.7.6.1-R-01")
def takes_an_index_back(disk: Disk) -> None:
    """Set the available index to 2, and then to 1."""
    at = ring(disk)
    put_all(disk, at, (0, 1, 2), request_buffers(disk))
    offer(disk, at)
    offer(disk, at, index=2)
    offer(disk, at, index=1)


@breach("2.7.7.1-R-01")
def sets_another_flag(disk: Disk) -> None:
    """Set the available ring's flags to 2 without EVENT_IDX."""
    at = ring(disk)
    put_all(disk, at, (0, 1, 2), request_buffers(disk))
    offer(disk, at, flags=2)


@breach("2.7.7.1-R-03")
def sets_flags_with_event_idx(disk: Disk) -> None:
    """Set the available ring's flags to 1 with EVENT_IDX."""
    at = ring(disk, Feature.EVENT_IDX)
    put_all(disk, at, (0, 1, 2), request_buffers(disk))
    offer(disk, at, flags=1)
