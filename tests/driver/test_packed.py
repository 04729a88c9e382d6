"""The driver's side of a packed virtqueue; the tests act as the device."""

from itertools import pairwise

import pytest

from harness.driver.errors import BadArgumentError
from harness.driver.interface import Buffer, Used
from harness.driver.memory import DmaMemory, Region
from harness.driver.virtqueue.packed import PackedQueue
from harness.virtio.ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
)

BUFFERS = [Buffer(0xA000, 16), Buffer(0xB000, 512, True), Buffer(0xC000, 1, True)]


class Device:
    """A device that uses one chain at a time, in ring order."""

    def __init__(self, queue: PackedQueue) -> None:
        self.queue = queue
        self.next, self.wrap = 0, True

    def descriptor(self, at: int) -> tuple[int, int, int, int]:
        memory, layout = self.queue.memory, self.queue.layout
        address, length, ident, flags = PACKED_DESC.unpack(memory.view(layout.desc + 16 * at, 16))
        return address, length, ident, flags

    def available(self) -> bool:
        flags = self.descriptor(self.next)[3]
        avail = bool(flags & PACKED_DESC_F_AVAIL)
        return avail == self.wrap and avail != bool(flags & PACKED_DESC_F_USED)

    def use(self, length: int) -> list[tuple[int, int, int]]:
        """Use the next chain, and return its descriptors (address, length, own flags)."""
        assert self.available()
        first, wrap = self.next, self.wrap
        taken = []
        while True:
            address, size, ident, flags = self.descriptor(self.next)
            assert bool(flags & PACKED_DESC_F_AVAIL) == self.wrap
            assert bool(flags & PACKED_DESC_F_USED) != self.wrap
            taken.append((address, size, flags & 7))
            self.next += 1
            if self.next == self.queue.size:
                self.next, self.wrap = 0, not self.wrap
            if not flags & DESC_F_NEXT:
                break
        flags = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED if wrap else 0
        memory, layout = self.queue.memory, self.queue.layout
        PACKED_DESC.pack_into(memory.view(layout.desc + 16 * first, 16), 0, 0, length, ident, flags)
        return taken


@pytest.fixture
def memory() -> DmaMemory:
    return DmaMemory([Region(0x10000, memoryview(bytearray(1 << 20)))])


@pytest.fixture
def queue(memory: DmaMemory) -> PackedQueue:
    return PackedQueue(memory, 0, 8)


def test_a_chain_is_available_only_once_it_is_published(queue: PackedQueue) -> None:
    device = Device(queue)
    head = queue.add(BUFFERS)
    assert not device.available()

    queue.publish([head])

    assert device.use(0) == [
        (0xA000, 16, DESC_F_NEXT),
        (0xB000, 512, DESC_F_WRITE | DESC_F_NEXT),
        (0xC000, 1, DESC_F_WRITE),
    ]
    assert not device.available()


def test_chains_of_any_length_go_round_the_ring(queue: PackedQueue) -> None:
    device = Device(queue)
    for turn in range(200):
        length = 1 + turn % 3
        head = queue.add(BUFFERS[:length])
        queue.publish([head])
        assert not queue.used_pending()
        assert len(device.use(turn)) == length
        assert queue.used_pending()
        assert queue.take_used() == [Used(head, turn)]
        queue.release(head)
    assert queue.state().free_descriptors == 8
    assert queue.state().in_flight == 0


def test_several_chains_are_used_in_turn(queue: PackedQueue) -> None:
    device = Device(queue)
    for _ in range(20):
        heads = [queue.add(BUFFERS), queue.add(BUFFERS[:1]), queue.add(BUFFERS)]
        queue.publish(heads)
        for length in (1, 2, 3):
            device.use(length)
        taken = queue.take_used()
        assert taken == [Used(head, length) for head, length in zip(heads, (1, 2, 3), strict=True)]
        for head in heads:
            queue.release(head)


def test_a_used_chain_can_go_out_again(queue: PackedQueue) -> None:
    device = Device(queue)
    head = queue.add(BUFFERS)
    queue.publish([head])
    for _ in range(20):
        device.use(7)
        assert queue.take_used() == [Used(head, 7)]
        queue.republish(head)
    assert len(device.use(7)) == 3


def test_an_indirect_chain_takes_one_descriptor(queue: PackedQueue) -> None:
    head = queue.add(BUFFERS, indirect=True)
    queue.publish([head])

    table = queue.chain(head)
    assert [entry[3] for entry in PACKED_DESC.iter_unpack(table)] == [0, DESC_F_WRITE, DESC_F_WRITE]
    ((_, length, flags),) = Device(queue).use(0)
    assert (length, flags) == (48, DESC_F_INDIRECT)


def test_chains_are_published_as_they_were_added(queue: PackedQueue) -> None:
    first, second = queue.add(BUFFERS), queue.add(BUFFERS)

    with pytest.raises(BadArgumentError, match="as they were added"):
        queue.publish([second])
    queue.publish([first])
    queue.publish([second])

    device = Device(queue)
    assert len(device.use(0)) == len(device.use(0)) == 3


def test_a_full_queue_says_so_and_loses_nothing(queue: PackedQueue) -> None:
    device = Device(queue)
    heads = [queue.add(BUFFERS), queue.add(BUFFERS)]
    with pytest.raises(BadArgumentError, match="2 free descriptors, not 3"):
        queue.add(BUFFERS)
    queue.publish(heads)
    for head in heads:
        device.use(0)
        assert queue.take_used() == [Used(head, 0)]
        queue.release(head)
    assert queue.state().free_descriptors == 8


def test_an_indirect_table_is_given_back(memory: DmaMemory, queue: PackedQueue) -> None:
    device = Device(queue)
    for _ in range(30000):
        head = queue.add(BUFFERS, indirect=True)
        queue.publish([head])
        device.use(0)
        queue.take_used()
        queue.release(head)

    assert memory.alloc(1 << 19)


def test_a_used_id_that_was_never_available_frees_nothing(queue: PackedQueue) -> None:
    queue.add(BUFFERS)
    queue.release(5)
    assert queue.state().free_descriptors == 5
    assert queue.state().in_flight == 1


@pytest.mark.parametrize("size", [0, 32769])
def test_a_queue_has_1_to_32768_descriptors(memory: DmaMemory, size: int) -> None:
    with pytest.raises(BadArgumentError, match="1 to 32768 descriptors, not"):
        PackedQueue(memory, 0, size)


@pytest.mark.parametrize("size", [1, 32768])
def test_the_smallest_and_the_largest_queue(memory: DmaMemory, size: int) -> None:
    queue = PackedQueue(memory, 0, size)
    device = Device(queue)
    for _ in range(3):
        head = queue.add(BUFFERS[:1])
        queue.publish([head])
        device.use(0)
        assert queue.take_used() == [Used(head, 0)]
        queue.release(head)


def test_by_default_neither_feature_is_there(queue: PackedQueue) -> None:
    assert (queue.in_order, queue.event_idx) == (False, False)


def test_a_full_ring_has_every_buffer_id_below_its_size(queue: PackedQueue) -> None:
    heads = [queue.add(BUFFERS[:1]) for _ in range(8)]
    assert sorted(heads) == list(range(8))


def test_nothing_is_available_at_first(queue: PackedQueue) -> None:
    assert queue.next_available() == 1 << 15


def test_a_chain_needs_a_buffer(queue: PackedQueue) -> None:
    with pytest.raises(BadArgumentError) as error:
        queue.add([])
    assert error.value.message == "a chain needs at least one buffer"


def test_an_indirect_chain_fits_into_the_last_descriptor(queue: PackedQueue) -> None:
    queue.add(BUFFERS * 2)
    queue.add(BUFFERS[:1])
    queue.add(BUFFERS, indirect=True)
    assert queue.state().free_descriptors == 0


def test_indirect_tables_lie_apart_and_name_no_buffer_id(queue: PackedQueue) -> None:
    heads = [queue.add(BUFFERS, indirect=True) for _ in range(3)]

    tables = [list(PACKED_DESC.iter_unpack(queue.chain(head))) for head in heads]

    expected = [(0xA000, 16, 0, 0), (0xB000, 512, 0, DESC_F_WRITE), (0xC000, 1, 0, DESC_F_WRITE)]
    assert tables == [expected] * 3
    places = sorted(Device(queue).descriptor(at)[0] for at in range(3))
    assert all(low + 48 <= high for low, high in pairwise(places))


def test_of_a_direct_chain_the_device_may_change_all(queue: PackedQueue) -> None:
    assert queue.chain(queue.add(BUFFERS)) == b""


def test_an_unknown_id_counts_as_one_descriptor(queue: PackedQueue) -> None:
    device = Device(queue)
    heads = [queue.add(BUFFERS[:1]) for _ in range(3)]
    queue.publish(heads)
    device.use(0)
    view = queue.memory.view(queue.layout.desc, 16)
    address, length, _, flags = PACKED_DESC.unpack(view)
    PACKED_DESC.pack_into(view, 0, address, length, 99, flags)
    device.use(7)

    assert queue.take_used() == [Used(99, 0), Used(heads[1], 7)]
    assert queue.state().free_descriptors == 6
