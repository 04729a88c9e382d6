"""The driver's side of a split virtqueue; the tests act as the device."""

import struct
from itertools import pairwise

import pytest

from harness.driver.errors import BadArgumentError
from harness.driver.interface import Buffer, Used
from harness.driver.memory import DmaMemory, Region
from harness.driver.virtqueue.split import SplitQueue
from harness.virtio.ring import DESC, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE

BUFFERS = [Buffer(0xA000, 16), Buffer(0xB000, 512, True), Buffer(0xC000, 1, True)]


@pytest.fixture
def memory() -> DmaMemory:
    return DmaMemory([Region(0x10000, memoryview(bytearray(1 << 20)))])


@pytest.fixture
def queue(memory: DmaMemory) -> SplitQueue:
    return SplitQueue(memory, 0, 8)


def use(queue: SplitQueue, head: int, length: int) -> None:
    """Use a chain, as a device does after its request."""
    used = queue.memory.view(queue.layout.device, 6 + 8 * queue.size)
    (index,) = struct.unpack_from("<H", used, 2)
    struct.pack_into("<II", used, 4 + 8 * (index % queue.size), head, length)
    struct.pack_into("<H", used, 2, (index + 1) & 0xFFFF)


def descriptors(chain: bytes) -> list[tuple[int, int, int, int]]:
    return list(DESC.iter_unpack(chain))


def test_a_chain_is_linked_in_order_and_marked_by_direction(queue: SplitQueue) -> None:
    head = queue.add(BUFFERS)

    first, second, third = descriptors(queue.chain(head))
    assert first[:3] == (0xA000, 16, DESC_F_NEXT)
    assert second[:3] == (0xB000, 512, DESC_F_WRITE | DESC_F_NEXT)
    assert third == (0xC000, 1, DESC_F_WRITE, 0)
    assert len({head, first[3], second[3]}) == 3


def test_an_indirect_chain_takes_one_descriptor(queue: SplitQueue) -> None:
    head = queue.add(BUFFERS, indirect=True)

    reference, *table = descriptors(queue.chain(head))
    assert reference[1:] == (48, DESC_F_INDIRECT, 0)
    assert [entry[3] for entry in table] == [1, 2, 0]
    assert queue.state().free_descriptors == 7


def test_adding_does_not_publish(queue: SplitQueue) -> None:
    heads = [queue.add(BUFFERS[:1]), queue.add(BUFFERS[:1])]
    assert queue.state().avail_idx == 0

    queue.publish(heads)

    assert queue.state().avail_idx == 2
    ring = queue.memory.view(queue.layout.driver + 4, 4)
    assert list(struct.unpack("<HH", ring)) == heads


def test_a_full_queue_says_so_and_loses_nothing(queue: SplitQueue) -> None:
    heads = [queue.add(BUFFERS), queue.add(BUFFERS)]
    with pytest.raises(BadArgumentError, match="2 free descriptors, not 3"):
        queue.add(BUFFERS)

    for head in heads:
        queue.release(head)
    assert queue.state().free_descriptors == 8


def test_used_elements_come_once_and_in_order_around_the_end_of_the_indices(
    queue: SplitQueue,
) -> None:
    for turn in range(0x10000 + 20):
        head = queue.add(BUFFERS[:1])
        queue.publish([head])
        assert queue.state().avail_idx == (turn + 1) & 0xFFFF
        assert not queue.used_pending()
        use(queue, head, turn)
        assert queue.take_used() == [Used(head, turn)]
        queue.release(head)

    assert queue.state().avail_idx == 20
    assert queue.state().used_idx == 20
    assert queue.take_used() == []


def test_a_used_id_that_was_never_available_frees_nothing(queue: SplitQueue) -> None:
    queue.add(BUFFERS)

    queue.release(7)

    assert queue.state().free_descriptors == 5
    assert queue.state().in_flight == 1


def test_an_indirect_table_is_given_back(memory: DmaMemory, queue: SplitQueue) -> None:
    for _ in range(30000):
        queue.release(queue.add(BUFFERS, indirect=True))

    assert queue.state().free_descriptors == 8
    assert memory.alloc(1 << 19)


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_a_split_queue_has_a_power_of_two(memory: DmaMemory, size: int) -> None:
    with pytest.raises(BadArgumentError, match="not a power of 2"):
        SplitQueue(memory, 0, size)


def test_an_indirect_table_without_room_costs_no_descriptor(queue: SplitQueue) -> None:
    with pytest.raises(BadArgumentError, match="left"):
        queue.add(BUFFERS * (1 << 15), indirect=True)

    assert queue.state().free_descriptors == 8


@pytest.mark.parametrize("size", [1, 2, 32768])
def test_the_smallest_and_the_largest_queue(memory: DmaMemory, size: int) -> None:
    queue = SplitQueue(memory, 0, size)
    for _ in range(3):
        head = queue.add(BUFFERS[:1])
        queue.publish([head])
        use(queue, head, 0)
        assert queue.take_used() == [Used(head, 0)]
        queue.release(head)


def test_by_default_neither_feature_is_there(queue: SplitQueue) -> None:
    assert (queue.in_order, queue.event_idx) == (False, False)


def parts(queue: SplitQueue) -> list[tuple[int, int]]:
    """Return begin and end of the three parts of a virtqueue."""
    layout = queue.layout
    return [
        (layout.desc, layout.desc + 16 * queue.size),
        (layout.driver, layout.driver + 6 + 2 * queue.size),
        (layout.device, layout.device + 6 + 8 * queue.size),
    ]


def test_the_rings_of_two_queues_lie_apart(memory: DmaMemory, queue: SplitQueue) -> None:
    other = SplitQueue(memory, 1, 8)

    borders = sorted(parts(queue) + parts(other))

    assert all(end <= start for (_, end), (start, _) in pairwise(borders))


@pytest.mark.parametrize(("size", "device"), [(8, 4096), (256, 8192), (1024, 20480)])
def test_the_legacy_layout_is_in_one_piece(memory: DmaMemory, size: int, device: int) -> None:
    memory.alloc(100)
    queue = SplitQueue(memory, 0, size, align=4096)
    behind = memory.alloc(1 << 16)
    layout = queue.layout

    assert layout.desc % 4096 == 0
    assert layout.driver == layout.desc + 16 * size
    assert layout.device == layout.desc + device
    assert behind >= parts(queue)[-1][1]


def test_a_chain_needs_a_buffer(queue: SplitQueue) -> None:
    with pytest.raises(BadArgumentError) as error:
        queue.add([])
    assert error.value.message == "a chain needs at least one buffer"


def test_a_chain_may_take_all_that_is_free(queue: SplitQueue) -> None:
    queue.add(BUFFERS[:1] * 8)
    assert queue.state().free_descriptors == 0


def test_a_chain_that_ends_with_a_readable_buffer_ends_there(queue: SplitQueue) -> None:
    assert [flags for _, _, flags, _ in descriptors(queue.chain(queue.add(BUFFERS[:1])))] == [0]


def test_an_impossible_length_is_reported_unchanged(queue: SplitQueue) -> None:
    head = queue.add(BUFFERS)
    queue.publish([head])
    use(queue, head, 0xFFFF_FFFF)
    assert queue.take_used() == [Used(head, 0xFFFF_FFFF)]


def test_a_used_chain_can_go_out_again(queue: SplitQueue) -> None:
    head = queue.add(BUFFERS)
    queue.publish([head])
    use(queue, head, 1)
    queue.take_used()
    before = queue.chain(head)

    queue.republish(head)

    assert queue.state().avail_idx == 2
    assert list(queue.memory.view(queue.layout.driver + 6, 2).cast("H")) == [head]
    assert queue.chain(head) == before
