"""State of a virtqueue: its indices and flags as they are in memory."""

from __future__ import annotations

import pytest
from batching import PackedDevice, SplitDevice

from harness.driver.interface import Buffer
from harness.driver.memory import DmaMemory, Region
from harness.driver.virtqueue.packed import PackedQueue
from harness.driver.virtqueue.split import SplitQueue
from harness.virtio.ring import RING_EVENT_FLAGS_DISABLE

CHAIN = [Buffer(0xA000, 16), Buffer(0xB000, 1, True)]


@pytest.fixture
def memory() -> DmaMemory:
    return DmaMemory([Region(0x10000, memoryview(bytearray(1 << 16)))])


def test_of_a_split_queue(memory: DmaMemory) -> None:
    queue = SplitQueue(memory, 3, 8)
    device = SplitDevice(queue)
    queue.publish([queue.add(CHAIN), queue.add(CHAIN), queue.add(CHAIN)])
    device.use(1, 0)
    queue.take_used()
    device.use(1, 0)
    memory.view(queue.layout.driver, 2)[0] = 1
    memory.view(queue.layout.device, 2)[0] = 7

    state = queue.state()

    assert (state.index, state.size) == (queue.layout.index, queue.layout.size) == (3, 8)
    assert (state.avail_flags, state.avail_idx) == (1, 3)
    assert (state.used_flags, state.used_idx, state.last_used) == (7, 2, 1)
    assert (state.free_descriptors, state.in_flight) == (2, 3)


def test_of_a_packed_queue(memory: DmaMemory) -> None:
    queue = PackedQueue(memory, 3, 8)
    device = PackedDevice(queue)
    positions = []
    for _ in range(5):
        head = queue.add(CHAIN)
        queue.publish([head])
        positions.append((queue.state().avail_idx, queue.state().used_idx))
        device.use(1, 0)
        queue.take_used()
        queue.release(head)
    queue.add(CHAIN)
    queue.set_interrupts_enabled(False)
    memory.view(queue.layout.device + 2, 2)[:] = b"\xfe\xff"

    state = queue.state()

    wrap = 1 << 15
    assert positions == [
        (2 | wrap, 0 | wrap),
        (4 | wrap, 2 | wrap),
        (6 | wrap, 4 | wrap),
        (0, 6 | wrap),
        (2, 0),
    ]
    assert (state.index, state.size) == (queue.layout.index, queue.layout.size) == (3, 8)
    assert (state.avail_flags, state.used_flags) == (RING_EVENT_FLAGS_DISABLE, 0xFFFE)
    assert (state.avail_idx, state.used_idx, state.last_used) == (4, 2, 2)
    assert (state.free_descriptors, state.in_flight) == (6, 1)
