"""Messages of the front-end, and its reactions to messages of a back-end."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted import USUAL, ScriptedBackEnd

from harness.driver.block import BlockDriver
from harness.driver.errors import (
    BadArgumentError,
    DeviceTimeoutError,
    DriverError,
    FeaturesRefusedError,
)
from harness.driver.interface import ConfigChange, Interrupts
from harness.driver.transport.vhost_channel import GoneError, RefusedError
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask
from harness.virtio.vhost_user import (
    FEATURE_LOG_ALL,
    FEATURE_PROTOCOL,
    HEADER,
    MEMORY,
    NEED_REPLY,
    REPLY,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_STATE,
    ProtocolFeature,
)
from harness.virtio.vhost_user import FrontEndRequest as Ask

Attach = Callable[..., BlockDriver]
NewBackEnd = Callable[..., ScriptedBackEnd]

INITIALISED = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK
RUNNING = INITIALISED | DeviceStatus.DRIVER_OK


def of_rings(back_end: ScriptedBackEnd) -> list[Ask]:
    return [item for item in back_end.seen() if "VRING" in item.name or "MEM" in item.name]


def test_start_hands_over_memory_and_rings_in_the_order_a_back_end_needs(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    attach().start()

    assert of_rings(back_end) == [
        Ask.SET_MEM_TABLE,
        Ask.SET_VRING_NUM,
        Ask.SET_VRING_BASE,
        Ask.SET_VRING_ADDR,
        Ask.SET_VRING_ERR,
        Ask.SET_VRING_CALL,
        Ask.SET_VRING_KICK,
        Ask.SET_VRING_ENABLE,
    ]
    assert back_end.seen().index(Ask.SET_FEATURES) < back_end.seen().index(Ask.SET_MEM_TABLE)
    assert VRING_STATE.unpack(back_end.last(Ask.SET_VRING_ENABLE).payload) == (0, 1)


def test_a_ring_and_a_buffer_are_found_through_the_memory_table(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach(queue_size=64)
    driver.negotiate()
    layout = driver.queue_setup(1)
    driver.set_status(RUNNING)
    buffer = driver.alloc(16)
    driver.memory_write(buffer, b"seen through fds")
    driver.memory_write(layout.device, b"used")

    memory = back_end.map()
    count, bus, size, user, offset = MEMORY.unpack(back_end.last(Ask.SET_MEM_TABLE).payload)
    index, flags, desc, used, avail, _ = VRING_ADDR.unpack(
        back_end.last(Ask.SET_VRING_ADDR).payload
    )
    assert (count, index, flags, offset) == (1, 1, 0, 0)
    assert VRING_STATE.unpack(back_end.last(Ask.SET_VRING_NUM).payload) == (1, 64)
    assert memory[buffer - bus :][:16] == b"seen through fds"
    assert memory[used - user :][:4] == b"used"
    assert (desc - user, avail - user) == (layout.desc - bus, layout.driver - bus)
    assert user <= desc < user + size and not user <= buffer < user + size


def test_no_ring_goes_over_before_driver_ok_and_an_early_kick_is_not_lost(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.negotiate()
    driver.queue_setup(0)
    driver.queue_kick(0)
    assert of_rings(back_end) == []

    driver.set_status(RUNNING)
    assert os.eventfd_read(back_end.fds[Ask.SET_VRING_KICK, 0]) == 1


def test_a_ring_set_up_after_driver_ok_goes_over_at_once(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.start()
    driver.queue_setup(1)
    assert VRING_STATE.unpack(back_end.last(Ask.SET_VRING_ENABLE).payload) == (1, 1)


@pytest.mark.parametrize(("extra", "base"), [((), 0), ((Feature.RING_PACKED,), 0x8000_8000)])
def test_the_base_of_a_ring_has_wrap_counters_only_when_packed(
    back_end: ScriptedBackEnd, attach: Attach, extra: tuple[Feature, ...], base: int
) -> None:
    attach().start(mask(Feature.VERSION_1, *extra))
    assert VRING_STATE.unpack(back_end.last(Ask.SET_VRING_BASE).payload) == (0, base)


def test_the_driver_never_sees_the_bits_that_vhost_took(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    assert driver.offered() == mask(Feature.VERSION_1, Feature.BLK_FLUSH, Feature.RING_PACKED)
    driver.negotiate(Feature.VERSION_1.mask)
    assert driver.accepted() == Feature.VERSION_1.mask
    (sent,) = U64.unpack(back_end.last(Ask.SET_FEATURES).payload)
    assert sent == Feature.VERSION_1.mask | FEATURE_PROTOCOL


def test_only_known_protocol_features_are_taken(new_back_end: NewBackEnd, attach: Attach) -> None:
    back_end = new_back_end()
    back_end.protocol |= 1 << 11 | 1 << 17
    attach()
    (taken,) = U64.unpack(back_end.last(Ask.SET_PROTOCOL_FEATURES).payload)
    assert taken == sum(item.mask for item in USUAL)


def test_without_mq_there_is_one_queue_and_with_it_as_many_as_it_says(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(queues=3)
    transport = attach().transport
    assert [transport.queue_max_size(index) for index in range(4)] == [128, 128, 128, 0]
    back_end.protocol &= ~ProtocolFeature.MQ.mask
    back_end.hang_up()
    attach_again = attach().transport
    assert [attach_again.queue_max_size(index) for index in range(2)] == [128, 0]


def test_a_refusal_of_features_leaves_features_ok_clear(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    back_end.refused.add(Ask.SET_FEATURES)
    with pytest.raises(FeaturesRefusedError):
        driver.negotiate()
    assert driver.status() == DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER
    back_end.refused.clear()
    assert driver.negotiate().status == INITIALISED


def test_hanging_up_on_features_is_a_refusal_and_the_next_reset_connects_again(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    back_end.at[Ask.SET_FEATURES] = lambda connection: back_end.hang_up()
    with pytest.raises(FeaturesRefusedError):
        driver.negotiate()
    back_end.at.clear()
    assert driver.start().status == RUNNING
    assert back_end.connections == 2


def test_a_feature_that_was_not_offered_is_not_sent(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    with pytest.raises(FeaturesRefusedError):
        attach().negotiate(mask(Feature.VERSION_1, Feature.BLK_DISCARD))
    assert Ask.SET_FEATURES not in back_end.seen()


def test_device_status_is_the_back_ends_where_it_keeps_one(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=(*USUAL, ProtocolFeature.STATUS))
    driver = attach()
    driver.start()
    assert back_end.status == RUNNING
    back_end.status |= DeviceStatus.NEEDS_RESET
    assert driver.status() == RUNNING | DeviceStatus.NEEDS_RESET
    driver.reset()
    assert back_end.status == 0


def test_reset_stops_the_rings_that_were_started_and_no_others(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.negotiate()
    driver.queue_setup(0)
    driver.reset()
    assert Ask.GET_VRING_BASE not in back_end.seen()

    driver.start(queues=2)
    driver.reset()
    stopped = [m.payload[0] for m in back_end.log if m.request == Ask.GET_VRING_BASE]
    assert stopped == [0, 1]
    assert (driver.status(), driver.accepted(), back_end.connections) == (0, 0, 1)
    with pytest.raises(BadArgumentError, match="not set up"):
        driver.queue_kick(0)


def test_reset_asks_for_a_device_reset_where_there_is_one(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=(*USUAL, ProtocolFeature.RESET_DEVICE))
    attach().reset()
    assert back_end.seen().count(Ask.RESET_DEVICE) == 1


def test_calls_are_counted_and_set_isr_bit_0(back_end: ScriptedBackEnd, attach: Attach) -> None:
    driver = attach()
    driver.start(queues=2)
    call = back_end.fds[Ask.SET_VRING_CALL, 1]
    os.eventfd_write(call, 1)
    assert driver.interrupts() == Interrupts(queue=1, raised=1, queues=(0, 1))
    os.eventfd_write(call, 1)
    assert (driver.isr(), driver.isr()) == (1, 0)


def test_an_isr_read_does_not_take_what_comes_after_the_interrupt(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    transport = attach().transport
    driver = BlockDriver(transport)
    driver.start()
    call = back_end.fds[Ask.SET_VRING_CALL, 0]
    os.eventfd_write(call, 1)
    assert transport.take_interrupts(1) == 1
    os.eventfd_write(call, 1)
    assert transport.isr() == 1
    assert (transport.take_interrupts(1), transport.isr()) == (1, 1)


def test_a_call_that_comes_with_the_descriptor_announces_nothing(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    back_end.signal_new_call = True
    driver = attach()
    driver.start()
    assert driver.interrupts() == Interrupts(queues=(0, 0))


def test_a_config_message_runs_the_callback_with_a_new_generation(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.start()
    generation = driver.config_generation()
    back_end.change_capacity(4096, VERSION | NEED_REPLY)
    assert driver.wait_config_change(0) == [ConfigChange(4096, generation + 1)]
    assert driver.interrupts() == Interrupts(config=1, raised=1, queues=(0, 0))
    assert back_end.heard() == (2, 0)


def test_an_unknown_message_of_the_back_end_is_refused_and_changes_nothing(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.start()
    back_end.say(3, VERSION | NEED_REPLY)
    assert driver.interrupts() == Interrupts(queues=(0, 0))
    assert back_end.heard() == (3, 1)


def test_an_error_eventfd_is_needs_reset_with_a_config_interrupt(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.start()
    os.eventfd_write(back_end.fds[Ask.SET_VRING_ERR, 0], 1)
    assert driver.interrupts() == Interrupts(config=1, raised=1, queues=(0, 0))
    assert driver.status() == RUNNING | DeviceStatus.NEEDS_RESET
    driver.reset()
    assert driver.status() == 0


@pytest.mark.parametrize("size", [96, 60, 36])
def test_config_space_is_as_large_as_the_back_end_shows(
    new_back_end: NewBackEnd, attach: Attach, size: int
) -> None:
    new_back_end(config_limit=size)
    driver = attach()
    assert driver.config_size() == size
    assert driver.config_read(0, 8) == (2048).to_bytes(8, "little")
    with pytest.raises(BadArgumentError):
        driver.config_read(size - 1, 2)


def test_a_config_write_goes_over_and_a_refused_one_is_ignored_as_on_a_bus(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.config_write(32, b"\x01")
    assert back_end.last(Ask.SET_CONFIG).payload == b"\x20\0\0\0\x01\0\0\0\0\0\0\0\x01"
    back_end.refused.add(Ask.SET_CONFIG)
    driver.config_write(0, b"\x01")
    assert driver.config_read(0, 1) == b"\x00"
    with pytest.raises(BadArgumentError):
        driver.config_write(1, b"12")


def test_there_are_no_registers_and_no_pci_space(back_end: ScriptedBackEnd, attach: Attach) -> None:
    driver = attach()
    for act in (
        lambda: driver.register_read("queue_size"),
        lambda: driver.register_write("queue_size", 1),
    ):
        with pytest.raises(BadArgumentError, match="vhost-user"):
            act()
    with pytest.raises(DriverError, match="not a PCI device"):
        driver.pci_read(0, 4)


def test_a_ring_of_before_a_reset_is_not_listened_to(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.start()
    driver.reset()
    os.eventfd_write(back_end.fds[Ask.SET_VRING_CALL, 0], 1)
    # A descriptor that stays readable would make each wait spin.
    assert select.select([driver.fileno()], [], [], 0)[0] == []
    assert driver.interrupts() == Interrupts(queues=(0, 0))


def test_a_back_end_that_hangs_up_ends_a_wait_and_reset_connects_again(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.start()
    back_end.hang_up()
    with pytest.raises(GoneError, match="closed the connection"):
        driver.wait_interrupt("queue", 0)
    assert driver.start(queues=2).status == RUNNING
    assert back_end.connections == 2
    assert set(back_end.fds) >= {(Ask.SET_VRING_KICK, 0), (Ask.SET_VRING_KICK, 1)}


def test_after_silence_the_connection_is_given_up(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.start()
    driver.transport._session.channel._timeout = 0.2  # only from here on an answer is missing
    back_end.at[Ask.GET_CONFIG] = lambda connection: None
    with pytest.raises(DeviceTimeoutError, match="GET_CONFIG within"):
        driver.config_read(0, 8)
    # A late answer must not be taken for the answer to another request.
    with pytest.raises(GoneError):
        driver.config_read(0, 8)
    back_end.at.clear()
    assert driver.start().status == RUNNING


def test_an_answer_has_one_deadline_for_all_its_pieces(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.start()

    def in_pieces(connection: socket.socket) -> None:
        time.sleep(0.15)
        connection.sendall(HEADER.pack(Ask.GET_CONFIG, VERSION | REPLY, 1))
        time.sleep(0.15)
        connection.sendall(b"x")

    back_end.at[Ask.GET_CONFIG] = in_pieces
    driver.transport._session.channel._timeout = 0.2
    with pytest.raises(DeviceTimeoutError, match="GET_CONFIG within"):
        driver.config_read(0, 8)


RESETS = [*USUAL, ProtocolFeature.RESET_DEVICE, ProtocolFeature.STATUS]


def test_after_a_refused_reset_each_message_has_its_own_answer(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=RESETS)
    driver = attach()
    driver.start()
    back_end.refused.add(Ask.RESET_DEVICE)
    with pytest.raises(RefusedError, match="RESET_DEVICE"):
        driver.set_status(0)

    assert driver.offered() == back_end.features & ~(FEATURE_PROTOCOL | FEATURE_LOG_ALL)
    assert driver.config_read(0, 8) == bytes(back_end.config[:8])


def test_a_hang_up_in_a_reset_is_reported_and_the_driver_connects_again(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=RESETS)
    driver = attach()
    driver.start()
    back_end.at[Ask.RESET_DEVICE] = lambda connection: back_end.hang_up()
    with pytest.warns(UserWarning, match="at RESET_DEVICE, in a reset"):
        driver.set_status(0)

    assert back_end.connections == 2
    back_end.at.clear()
    assert driver.start().status == RUNNING


def test_closing_leaves_no_descriptor_behind(back_end: ScriptedBackEnd, short_dir: Path) -> None:
    from harness.driver.transport.vhost_user import VhostUser

    def ours() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def round_trip() -> None:
        driver = BlockDriver(VhostUser(str(short_dir / "s")))
        driver.start(queues=2)
        driver.close()

    round_trip()
    before = ours()
    for _ in range(3):
        round_trip()
    # The back-end is in this process too; each new descriptor replaces an old one.
    assert ours() <= before + 1


def test_each_message_waits_for_its_answer_where_that_was_agreed(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=USUAL)
    driver = attach()
    driver.start()
    unanswered = {Ask.SET_OWNER, Ask.SET_PROTOCOL_FEATURES}  # before the feature was negotiated
    asked = {m.request for m in back_end.log if m.flags & NEED_REPLY}
    assert asked >= {Ask.SET_FEATURES, Ask.SET_MEM_TABLE, Ask.SET_VRING_KICK, Ask.SET_VRING_ADDR}
    assert not asked & unanswered

    back_end.refused.add(Ask.SET_VRING_ADDR)
    with pytest.raises(RefusedError, match="SET_VRING_ADDR"):
        driver.start()


def test_no_answer_is_waited_for_where_none_was_agreed(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=[item for item in USUAL if item != ProtocolFeature.REPLY_ACK])
    assert attach().start().status == RUNNING
    assert not [m.request for m in back_end.log if m.flags & NEED_REPLY]


def test_a_hang_up_between_messages_that_go_together_names_the_first_without_an_answer(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=USUAL)
    driver = attach()
    back_end.at[Ask.SET_VRING_ADDR] = lambda connection: back_end.hang_up()

    with pytest.raises(GoneError, match="SET_VRING_ADDR"):
        driver.start()

    assert Ask.SET_VRING_BASE in back_end.seen()
    assert Ask.SET_VRING_CALL not in back_end.seen()


def test_a_refusal_is_not_lost_when_the_back_end_hangs_up_after_it(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=USUAL)
    driver = attach()
    back_end.refused.add(Ask.SET_VRING_BASE)
    back_end.at[Ask.SET_VRING_ADDR] = lambda connection: back_end.hang_up()

    with pytest.raises(RefusedError, match="SET_VRING_BASE"):
        driver.start()


def test_closing_stops_every_ring_before_it_hangs_up(
    back_end: ScriptedBackEnd, attach: Attach
) -> None:
    driver = attach()
    driver.start(queues=2)
    before = len(back_end.log)

    driver.close()

    stopped = [m.payload[0] for m in back_end.log[before:] if m.request == Ask.GET_VRING_BASE]
    assert stopped == [0, 1]
    assert attach().start(queues=2).status == RUNNING
    assert back_end.connections == 2


@pytest.mark.parametrize("at", [Ask.GET_VRING_BASE])
def test_a_back_end_that_hangs_up_at_a_reset_is_named(
    back_end: ScriptedBackEnd, attach: Attach, at: Ask
) -> None:
    driver = attach()
    driver.start()
    back_end.at[at] = lambda connection: back_end.hang_up()

    with pytest.warns(UserWarning, match=f"at {at.name}, in a reset: a VMM would have lost"):
        driver.set_status(0)
    del back_end.at[at]

    assert driver.description()["lost_at_reset"] == 1
    driver.start()


def test_one_that_had_hung_up_before_a_reset_is_not_blamed_for_the_reset(
    back_end: ScriptedBackEnd, attach: Attach, recwarn: pytest.WarningsRecorder
) -> None:
    driver = attach()
    driver.start()
    back_end.hang_up()

    driver.set_status(0)

    assert driver.description()["lost_at_reset"] == 0
    assert [item for item in recwarn.list if item.category is UserWarning] == []
