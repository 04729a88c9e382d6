"""Protocol features of vhost-user that a back-end may need: each used, and each left out."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted import USUAL, ScriptedBackEnd

from harness.driver.block import BlockDriver
from harness.driver.errors import BadArgumentError, DriverError, NoDeviceError
from harness.driver.transport.vhost_channel import RefusedError
from harness.driver.transport.vhost_user import BUS_ADDRESS, MEMORY_SIZE, USER_ADDRESS, VhostUser
from harness.virtio.features import Feature, mask
from harness.virtio.vhost_user import (
    INFLIGHT,
    REGION,
    U64,
    VRING_ADDR,
    VRING_STATE,
    ProtocolFeature,
)
from harness.virtio.vhost_user import FrontEndRequest as Ask

Attach = Callable[..., BlockDriver]
NewBackEnd = Callable[..., ScriptedBackEnd]

INFLIGHT_SHMFD = ProtocolFeature.INFLIGHT_SHMFD
MEM_SLOTS = ProtocolFeature.CONFIGURE_MEM_SLOTS
RESET_DEVICE = ProtocolFeature.RESET_DEVICE
ALL = (*USUAL, INFLIGHT_SHMFD, MEM_SLOTS, RESET_DEVICE)


def transport_of(driver: BlockDriver) -> VhostUser:
    transport = driver.transport
    assert isinstance(transport, VhostUser)
    return transport


def position(back_end: ScriptedBackEnd, request: Ask) -> int:
    return back_end.seen().index(request)


# --- INFLIGHT_SHMFD


def test_the_buffer_for_requests_in_flight_goes_back_before_memory(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=(*USUAL, INFLIGHT_SHMFD), queues=3)
    driver = attach(queue_size=64)
    assert Ask.GET_INFLIGHT_FD not in back_end.seen()

    driver.start()

    assert INFLIGHT.unpack(back_end.last(Ask.GET_INFLIGHT_FD).payload) == (0, 0, 3, 64)
    sent = back_end.last(Ask.SET_INFLIGHT_FD)
    assert INFLIGHT.unpack(sent.payload) == (4096, 512, 3, 64)
    received = back_end.fds[Ask.SET_INFLIGHT_FD, 0]
    assert os.fstat(received).st_ino == os.fstat(back_end.inflight[0]).st_ino
    order = [Ask.SET_FEATURES, Ask.GET_INFLIGHT_FD, Ask.SET_INFLIGHT_FD, Ask.SET_MEM_TABLE]
    places = [position(back_end, request) for request in order]
    assert places == sorted(places)


def test_after_a_reset_the_back_end_makes_another_buffer(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=(*USUAL, INFLIGHT_SHMFD))
    driver = attach()
    driver.start()
    driver.reset()
    assert transport_of(driver).inflight is None
    driver.start()
    assert len(back_end.inflight) == 2


def test_a_back_end_may_have_no_buffer(new_back_end: NewBackEnd, attach: Attach) -> None:
    back_end = new_back_end(protocol=(*USUAL, INFLIGHT_SHMFD))
    back_end.inflight_size = 0
    attach().start()
    assert Ask.SET_INFLIGHT_FD not in back_end.seen()


@pytest.mark.parametrize(
    "answer",
    [INFLIGHT.pack(4096, 0, 2, 128), INFLIGHT.pack(0, 0, 2, 128)[:8], b""],
    ids=["no file", "too short", "empty"],
)
def test_a_wrong_answer_to_get_inflight_fd_is_shown(
    new_back_end: NewBackEnd, attach: Attach, answer: bytes
) -> None:
    back_end = new_back_end(protocol=(*USUAL, INFLIGHT_SHMFD))
    header = struct.pack("<III", Ask.GET_INFLIGHT_FD, 1 | 4, len(answer))
    back_end.at[Ask.GET_INFLIGHT_FD] = lambda connection: connection.sendall(header + answer)
    with pytest.raises(DriverError, match=f"answered GET_INFLIGHT_FD with {len(answer)} bytes"):
        attach().start()


# --- a second connection with the same virtqueues


def test_reconnect_hands_over_the_same_buffer_and_rings_at_their_used_index(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=ALL)
    driver = attach()
    driver.start()
    before = back_end.last(Ask.SET_VRING_ADDR).payload
    transport = transport_of(driver)
    _, _, _, used, _, _ = VRING_ADDR.unpack(before)
    index = transport.memory.view(used - USER_ADDRESS + BUS_ADDRESS + 2, 2)
    index[:] = (7).to_bytes(2, "little")
    back_end.hang_up()
    back_end.log.clear()

    transport.reconnect()

    assert back_end.connections == 2
    assert Ask.GET_INFLIGHT_FD not in back_end.seen()
    received = back_end.fds[Ask.SET_INFLIGHT_FD, 0]
    assert os.fstat(received).st_ino == os.fstat(back_end.inflight[0]).st_ino
    assert back_end.last(Ask.SET_VRING_ADDR).payload == before
    assert VRING_STATE.unpack(back_end.last(Ask.SET_VRING_BASE).payload) == (0, 7)
    assert os.eventfd_read(back_end.fds[Ask.SET_VRING_KICK, 0]) == 1
    order = [Ask.SET_FEATURES, Ask.SET_INFLIGHT_FD, Ask.ADD_MEM_REG, Ask.SET_VRING_NUM]
    places = [position(back_end, request) for request in order]
    assert places == sorted(places)
    os.eventfd_write(back_end.fds[Ask.SET_VRING_CALL, 0], 1)
    assert driver.interrupts().queue == 1


def test_reconnect_needs_the_position_of_a_packed_virtqueue(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=ALL)
    driver = attach()
    driver.start(mask(Feature.VERSION_1, Feature.RING_PACKED))
    with pytest.raises(BadArgumentError, match=r"no position for the packed virtqueues \[0\]"):
        transport_of(driver).reconnect()
    transport_of(driver).reconnect({0: 0x8003_8003})
    assert VRING_STATE.unpack(back_end.last(Ask.SET_VRING_BASE).payload) == (0, 0x8003_8003)


def test_reconnect_says_that_the_features_are_not_taken_again(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=ALL)
    driver = attach()
    driver.start()
    back_end.refused.add(Ask.SET_FEATURES)
    with pytest.raises(DriverError, match=r"does not take the features 0x[0-9a-f]+ again"):
        transport_of(driver).reconnect()


def test_reconnect_before_a_start_sends_no_ring(new_back_end: NewBackEnd, attach: Attach) -> None:
    back_end = new_back_end(protocol=ALL)
    transport_of(attach()).reconnect()
    assert back_end.connections == 2
    assert not {Ask.SET_FEATURES, Ask.ADD_MEM_REG, Ask.SET_VRING_NUM} & {*back_end.seen()}


# --- CONFIGURE_MEM_SLOTS


def test_memory_goes_over_as_a_region_and_not_in_a_table(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=(*USUAL, MEM_SLOTS), slots=4)
    driver = attach()
    driver.start()
    assert REGION.unpack(back_end.last(Ask.ADD_MEM_REG).payload) == (
        *(BUS_ADDRESS, MEMORY_SIZE, USER_ADDRESS),
        0,
    )
    assert len(back_end.last(Ask.ADD_MEM_REG).fds) == 1
    assert Ask.SET_MEM_TABLE not in back_end.seen()
    assert driver.description()["memory_slots"] == 4


def test_memory_is_sent_once_until_it_is_removed(new_back_end: NewBackEnd, attach: Attach) -> None:
    back_end = new_back_end(protocol=(*USUAL, MEM_SLOTS))
    driver = attach()
    driver.start()
    driver.reset()
    driver.start()
    assert back_end.seen().count(Ask.ADD_MEM_REG) == 1

    driver.reset()
    transport_of(driver).remove_memory()
    assert back_end.last(Ask.REM_MEM_REG).payload == back_end.last(Ask.ADD_MEM_REG).payload
    assert back_end.last(Ask.REM_MEM_REG).fds == []
    with pytest.raises(BadArgumentError, match="no memory that could be removed"):
        transport_of(driver).remove_memory()
    driver.start()
    assert back_end.seen().count(Ask.ADD_MEM_REG) == 2


def test_a_region_that_is_not_removed_is_a_refusal(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=(*USUAL, MEM_SLOTS))
    driver = attach()
    driver.start()
    driver.reset()
    back_end.refused.add(Ask.REM_MEM_REG)
    with pytest.raises(RefusedError, match="refused REM_MEM_REG"):
        transport_of(driver).remove_memory()


def test_without_slots_no_memory_can_be_removed(back_end: ScriptedBackEnd, attach: Attach) -> None:
    driver = attach()
    driver.start()
    with pytest.raises(BadArgumentError, match="without CONFIGURE_MEM_SLOTS"):
        transport_of(driver).remove_memory()


def test_a_back_end_without_a_slot_for_memory_is_no_device(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    new_back_end(protocol=(*USUAL, MEM_SLOTS), slots=0)
    with pytest.raises(NoDeviceError, match="no slot for memory"):
        attach()


# --- the switches


@pytest.mark.parametrize(
    ("left_out", "unused"),
    [
        (INFLIGHT_SHMFD, {Ask.GET_INFLIGHT_FD, Ask.SET_INFLIGHT_FD}),
        (MEM_SLOTS, {Ask.GET_MAX_MEM_SLOTS, Ask.ADD_MEM_REG}),
        (RESET_DEVICE, {Ask.RESET_DEVICE}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_feature_that_is_left_out_is_not_accepted_and_its_messages_are_not_sent(
    new_back_end: NewBackEnd, attach: Attach, left_out: ProtocolFeature, unused: set[Ask]
) -> None:
    back_end = new_back_end(protocol=ALL)
    driver = attach(without={left_out})
    driver.start()
    driver.reset()
    (accepted,) = U64.unpack(back_end.last(Ask.SET_PROTOCOL_FEATURES).payload)
    assert accepted == sum(feature.mask for feature in ALL if feature is not left_out)
    assert not unused & {*back_end.seen()}
    assert (Ask.SET_MEM_TABLE in back_end.seen()) == (left_out is MEM_SLOTS)


def test_all_three_are_used_where_they_are_offered(
    new_back_end: NewBackEnd, attach: Attach
) -> None:
    back_end = new_back_end(protocol=ALL)
    driver = attach()
    driver.start()
    driver.reset()
    assert {Ask.SET_INFLIGHT_FD, Ask.ADD_MEM_REG, Ask.RESET_DEVICE} <= {*back_end.seen()}


def test_the_buffer_is_closed_with_the_connection(
    new_back_end: NewBackEnd, short_dir: Path
) -> None:
    new_back_end(protocol=ALL)
    driver = BlockDriver(VhostUser(str(short_dir / "s")))
    driver.start()
    inflight = transport_of(driver).inflight
    assert inflight and os.fstat(inflight.fd)
    driver.close()
    assert not Path(f"/proc/self/fd/{inflight.fd}").exists()
