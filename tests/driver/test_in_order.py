"""Virtqueues of a device that uses buffers in order (IN_ORDER, virtio 2.7.9)."""

from __future__ import annotations

import pytest
from batching import PackedDevice, SplitDevice

from harness.driver.errors import BadArgumentError
from harness.driver.interface import Buffer, Used
from harness.driver.memory import DmaMemory, Region
from harness.driver.virtqueue.packed import PackedQueue
from harness.driver.virtqueue.split import SplitQueue

BUFFERS = [Buffer(0xA000, 16), Buffer(0xB000, 512, True), Buffer(0xC000, 1, True)]
WRITABLE = 513

Pair = tuple[SplitQueue, SplitDevice] | tuple[PackedQueue, PackedDevice]


@pytest.fixture
def memory() -> DmaMemory:
    return DmaMemory([Region(0x10000, memoryview(bytearray(1 << 20)))])


@pytest.fixture
def split(memory: DmaMemory) -> tuple[SplitQueue, SplitDevice]:
    queue = SplitQueue(memory, 0, 16, in_order=True)
    return queue, SplitDevice(queue)


@pytest.fixture(params=["split", "packed"])
def pair(request: pytest.FixtureRequest, memory: DmaMemory) -> Pair:
    if request.param == "packed":
        queue = PackedQueue(memory, 0, 16, in_order=True)
        return queue, PackedDevice(queue)
    pair: Pair = request.getfixturevalue("split")
    return pair


def add(queue: SplitQueue | PackedQueue, *lengths: int) -> list[int]:
    """Make chains with these numbers of buffers available, and return their heads."""
    heads = [queue.add(BUFFERS[-length:]) for length in lengths]
    queue.publish(heads)
    return heads


def test_one_used_element_stands_for_all_that_became_available_before_it(pair: Pair) -> None:
    queue, device = pair
    first, second, third, fourth = add(queue, 3, 2, 3, 3)

    device.use(3, 1)

    assert queue.take_used() == [Used(first, WRITABLE), Used(second, WRITABLE), Used(third, 1)]
    device.use(1, 7)
    assert queue.take_used() == [Used(fourth, 7)]


def test_batches_of_any_size_go_round_the_ring(pair: Pair) -> None:
    queue, device = pair
    for turn in range(300):
        batch = 1 + turn % 4
        heads = add(queue, *(1 + (turn + n) % 3 for n in range(batch + 1)))
        assert not queue.used_pending()
        device.use(batch, turn)
        assert [used.id for used in queue.take_used()] == heads[:batch]
        assert not queue.used_pending()
        device.use(1, turn)
        assert queue.take_used() == [Used(heads[-1], turn)]
        for head in heads:
            queue.release(head)
    assert queue.state().free_descriptors == 16
    assert queue.state().in_flight == 0


def test_single_elements_are_taken_one_by_one(pair: Pair) -> None:
    queue, device = pair
    heads = add(queue, 3, 3, 3)

    for length in (1, 2, 3):
        device.use(1, length)

    expected = [Used(head, length) for head, length in zip(heads, (1, 2, 3), strict=True)]
    assert queue.take_used() == expected


def test_descriptors_are_taken_in_the_order_of_the_table(
    split: tuple[SplitQueue, SplitDevice],
) -> None:
    queue, device = split
    expected = 0
    for turn in range(100):
        queue.release(queue.add(BUFFERS))
        heads = add(queue, 1 + turn % 3, 3, 1)
        for head in heads:
            slots = device.slots(head)
            assert slots == [(expected + n) % 16 for n in range(len(slots))]
            expected = (expected + len(slots)) % 16
        device.use(3, 0)
        for used in queue.take_used():
            queue.release(used.id)


def test_a_chain_used_out_of_turn_stands_for_itself(
    split: tuple[SplitQueue, SplitDevice],
) -> None:
    queue, device = split
    first, second, third = add(queue, 3, 3, 3)

    device.tell(third, 9)

    assert queue.take_used() == [Used(third, 9)]
    queue.release(third)
    device.tell(second, 2, count=2)
    assert queue.take_used() == [Used(first, WRITABLE), Used(second, 2)]


def test_a_chain_used_out_of_turn_in_a_later_round_stands_for_itself(
    split: tuple[SplitQueue, SplitDevice],
) -> None:
    queue, device = split
    for _ in range(20):
        add(queue, 3)
        device.use(1, 0)
        for used in queue.take_used():
            queue.release(used.id)
    _, _, third = add(queue, 3, 3, 3)

    device.tell(third, 9)

    assert queue.take_used() == [Used(third, 9)]


def test_a_descriptor_that_is_not_free_in_its_turn_is_not_passed_over(
    split: tuple[SplitQueue, SplitDevice],
) -> None:
    queue, device = split
    first, second, *_ = add(queue, 3, 3, 3, 3, 3)
    device.tell(second, 0)
    queue.take_used()
    queue.release(second)
    assert queue.state().free_descriptors == 4

    with pytest.raises(BadArgumentError, match=f"in order, and {first} is not free"):
        queue.add(BUFFERS)


def test_what_was_added_and_taken_back_leaves_no_gap(pair: Pair) -> None:
    queue, device = pair
    for turn in range(40):
        kept = queue.add(BUFFERS[: 1 + turn % 3])
        others = [queue.add(BUFFERS), queue.add(BUFFERS[:2])]
        for head in reversed(others):
            queue.release(head)
        assert device.idle()
        queue.publish([kept])
        device.use(1, turn)
        assert queue.take_used() == [Used(kept, turn)]
        queue.release(kept)
    assert queue.state().free_descriptors == 16


def test_without_the_feature_an_element_is_one_chain(memory: DmaMemory) -> None:
    queue = SplitQueue(memory, 0, 16)
    device = SplitDevice(queue)
    _, second = add(queue, 3, 3)

    device.tell(second, 1)

    assert queue.take_used() == [Used(second, 1)]
