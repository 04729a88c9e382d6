"""Notification suppression by the driver: flags, used_event, avail_event, packed areas."""

from __future__ import annotations

import pytest
from batching import PackedDevice, SplitDevice

from harness.driver.interface import Buffer
from harness.driver.memory import DmaMemory, Region
from harness.driver.virtqueue.packed import PackedQueue
from harness.driver.virtqueue.split import SplitQueue
from harness.virtio.ring import (
    AVAIL_F_NO_INTERRUPT,
    EVENT_SUPPRESSION,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
    USED_F_NO_NOTIFY,
)

SIZE = 8
BUFFER = [Buffer(0xA000, 16)]


@pytest.fixture
def memory() -> DmaMemory:
    return DmaMemory([Region(0x10000, memoryview(bytearray(1 << 16)))])


def add(queue: SplitQueue | PackedQueue, *lengths: int) -> None:
    """Make chains with these numbers of descriptors available together."""
    queue.publish([queue.add(BUFFER * length) for length in lengths])


def turn(queue: SplitQueue, device: SplitDevice, count: int) -> None:
    """Make `count` chains available and used, one after the other."""
    for _ in range(count):
        add(queue, 1)
        device.use(1, 0)
        for used in queue.take_used():
            queue.release(used.id)


class Split:
    """A split virtqueue with event suppression on both sides."""

    def __init__(self, memory: DmaMemory, event_idx: bool, before: int = 0) -> None:
        self.queue = SplitQueue(memory, 0, SIZE, event_idx=event_idx)
        self.device = SplitDevice(self.queue)
        turn(self.queue, self.device, before)
        self.queue.needs_notification()
        layout = self.queue.layout
        self._driver = memory.view(layout.driver, 6 + 2 * SIZE).cast("H")
        self._device = memory.view(layout.device, 6 + 8 * SIZE).cast("H")

    @property
    def used_event(self) -> int:
        return self._driver[2 + SIZE]

    @property
    def avail_flags(self) -> int:
        return self._driver[0]

    def ask(self, flags: int = 0, avail_event: int = 0) -> None:
        """Write the device's suppression fields for notifications."""
        self._device[0] = flags
        self._device[2 + 4 * SIZE] = avail_event & 0xFFFF


class Packed:
    """A packed virtqueue with event suppression on both sides."""

    def __init__(self, memory: DmaMemory, event_idx: bool) -> None:
        self.queue = PackedQueue(memory, 0, SIZE, event_idx=event_idx)
        self.device = PackedDevice(self.queue)
        layout = self.queue.layout
        self._driver = memory.view(layout.driver, EVENT_SUPPRESSION.size)
        self._device = memory.view(layout.device, EVENT_SUPPRESSION.size)

    @property
    def asked(self) -> tuple[int, int]:
        """Offset and flags in the driver's event suppression area."""
        place, flags = EVENT_SUPPRESSION.unpack(self._driver)
        return place, flags

    def ask(self, flags: int, offset: int = 0, wrap: int = 1) -> None:
        """Write the device's suppression fields for notifications."""
        EVENT_SUPPRESSION.pack_into(self._device, 0, offset | wrap << 15, flags)


def test_flags_suppress_without_event_idx(memory: DmaMemory) -> None:
    split = Split(memory, event_idx=False)
    split.ask(0, avail_event=100)
    add(split.queue, 1)
    assert split.queue.needs_notification()

    split.ask(USED_F_NO_NOTIFY)
    add(split.queue, 1)
    assert not split.queue.needs_notification()

    split.queue.set_interrupts_enabled(False)
    assert (split.avail_flags, split.used_event) == (AVAIL_F_NO_INTERRUPT, 0)
    split.queue.set_interrupts_enabled(True)
    assert split.avail_flags == 0


@pytest.mark.parametrize("before", [0, 0xFFFA], ids=["at-first", "around-the-index's-end"])
def test_a_kick_is_wanted_if_avail_event_was_passed(memory: DmaMemory, before: int) -> None:
    split = Split(memory, event_idx=True, before=before)
    wanted = []
    for ahead in (-1, 0, 2, 3, 4):
        split.ask(USED_F_NO_NOTIFY, before + ahead)  # with EVENT_IDX this flag is ignored
        add(split.queue, 1, 1, 1)
        wanted.append(split.queue.needs_notification())
        assert not split.queue.needs_notification(), "nothing became available since"
        split.device.use(1, 0)
        split.device.use(1, 0)
        split.device.use(1, 0)
        for used in split.queue.take_used():
            split.queue.release(used.id)
        before += 3

    assert wanted == [False, True, True, False, False]


@pytest.mark.parametrize("before", [0, 0xFFFF], ids=["at-first", "around-the-index's-end"])
def test_used_event_is_the_next_element_or_the_last_one(memory: DmaMemory, before: int) -> None:
    split = Split(memory, event_idx=True, before=before)

    split.queue.set_interrupts_enabled(True)
    assert split.used_event == before
    turn(split.queue, split.device, 3)
    assert split.used_event == before
    split.queue.set_interrupts_enabled(True)
    assert split.used_event == (before + 3) & 0xFFFF
    split.queue.set_interrupts_enabled(False)
    assert split.used_event == (before + 2) & 0xFFFF
    assert split.avail_flags == 0  # required with EVENT_IDX


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_packed_ring_heeds_the_devices_flags(memory: DmaMemory, event_idx: bool) -> None:
    packed = Packed(memory, event_idx)

    for flags, wanted in ((RING_EVENT_FLAGS_ENABLE, True), (RING_EVENT_FLAGS_DISABLE, False)):
        packed.ask(flags)
        add(packed.queue, 1)
        assert packed.queue.needs_notification() is wanted


def test_a_kick_is_wanted_if_the_descriptor_asked_for_became_available(memory: DmaMemory) -> None:
    wanted = {}
    for place in range(2 * SIZE):
        packed = Packed(memory, event_idx=True)
        add(packed.queue, 2, 3)
        packed.device.use(2, 0)
        for used in packed.queue.take_used():
            packed.queue.release(used.id)
        packed.queue.needs_notification()
        packed.ask(RING_EVENT_FLAGS_DESC, place % SIZE, wrap=int(place < SIZE))
        add(packed.queue, 2, 3)
        wanted[place] = packed.queue.needs_notification()
        assert not packed.queue.needs_notification(), "nothing became available since"

    # Descriptors 5, 6, 7 of the first round, 0 and 1 of the second.
    assert [place for place, needed in wanted.items() if needed] == [5, 6, 7, 8, 9]


def test_an_added_chain_that_is_not_available_is_not_announced(memory: DmaMemory) -> None:
    packed = Packed(memory, event_idx=True)
    heads = [packed.queue.add(BUFFER * 3), packed.queue.add(BUFFER * 2)]
    packed.ask(RING_EVENT_FLAGS_DESC, 4)

    packed.queue.publish(heads[:1])
    assert packed.queue.next_available() == 3 | 1 << 15
    assert not packed.queue.needs_notification()
    packed.queue.publish(heads[1:])
    assert packed.queue.next_available() == 5 | 1 << 15
    assert packed.queue.needs_notification()


def test_the_driver_asks_for_the_next_descriptor_in_its_round(memory: DmaMemory) -> None:
    packed = Packed(memory, event_idx=True)
    expected = 0
    for length in (3, 3, 3, 2, 1, 3, 3):
        packed.queue.set_interrupts_enabled(True)
        wrap = (expected // SIZE + 1) % 2
        assert packed.asked == (expected % SIZE | wrap << 15, RING_EVENT_FLAGS_DESC)
        add(packed.queue, length)
        packed.device.use(1, 0)
        for used in packed.queue.take_used():
            packed.queue.release(used.id)
        expected += length

    packed.queue.set_interrupts_enabled(False)
    assert packed.asked[1] == RING_EVENT_FLAGS_DISABLE


def test_without_event_idx_the_driver_enables_all(memory: DmaMemory) -> None:
    packed = Packed(memory, event_idx=False)
    for wanted, flags in ((False, RING_EVENT_FLAGS_DISABLE), (True, RING_EVENT_FLAGS_ENABLE)):
        packed.queue.set_interrupts_enabled(wanted)
        assert packed.asked == (0, flags)


def test_the_next_available_descriptor_has_the_wrap_counter_of_its_round(memory: DmaMemory) -> None:
    packed = Packed(memory, event_idx=True)
    expected = 0
    for length in (3, 3, 3, 2, 1, 3, 3, 3):
        add(packed.queue, length)
        packed.device.use(1, 0)
        for used in packed.queue.take_used():
            packed.queue.release(used.id)
        expected += length
        wrap = (expected // SIZE + 1) % 2
        assert packed.queue.next_available() == expected % SIZE | wrap << 15


@pytest.mark.parametrize("before", range(2 * SIZE))
def test_a_kick_is_wanted_in_any_round(memory: DmaMemory, before: int) -> None:
    wanted = []
    for place in range(2 * SIZE):
        packed = Packed(memory, event_idx=True)
        for _ in range(before):
            add(packed.queue, 1)
            packed.device.use(1, 0)
            for used in packed.queue.take_used():
                packed.queue.release(used.id)
        packed.queue.needs_notification()
        packed.ask(RING_EVENT_FLAGS_DESC, place % SIZE, wrap=int(place < SIZE))
        add(packed.queue, 2, 1)
        if packed.queue.needs_notification():
            wanted.append(place)
        memory.free_all()

    assert wanted == sorted((before + n) % (2 * SIZE) for n in range(3))


def test_a_kick_is_wanted_for_the_very_first_chain(memory: DmaMemory) -> None:
    queue = SplitQueue(memory, 0, SIZE, event_idx=True)
    add(queue, 1)
    assert queue.needs_notification()


def test_a_kick_is_wanted_after_any_number_of_packed_chains_without_a_question() -> None:
    """Ask only after some rounds, as a driver does that has suppressed nothing until then."""
    wanted = {}
    for before in range(6 * SIZE):
        for place in range(2 * SIZE):
            memory = DmaMemory([Region(0x10000, memoryview(bytearray(1 << 12)))])
            packed = Packed(memory, event_idx=True)
            head = packed.queue.add(BUFFER)
            packed.queue.publish([head])
            for _ in range(before):
                packed.device.use(1, 0)
                packed.queue.take_used()
                packed.queue.republish(head)
            packed.ask(RING_EVENT_FLAGS_DESC, place % SIZE, wrap=int(place < SIZE))
            wanted[before, place] = packed.queue.needs_notification()

    passed = {
        (before, place): place in {number % (2 * SIZE) for number in range(before + 1)}
        for before, place in wanted
    }
    assert wanted == passed


@pytest.mark.parametrize("before", [0, 1, 0xFFFF, 0x10000, 0x10001])
def test_a_kick_is_wanted_after_any_number_of_split_chains_without_a_question(
    memory: DmaMemory, before: int
) -> None:
    split = Split(memory, event_idx=True)
    head = split.queue.add(BUFFER)
    split.queue.publish([head])
    for _ in range(before):
        split.queue.republish(head)

    split.ask(avail_event=before)
    assert split.queue.needs_notification()
    assert not split.queue.needs_notification(), "nothing became available since"
