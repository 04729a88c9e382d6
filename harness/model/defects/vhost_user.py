"""Defects of the vhost-user protocol: what its document demands of a back-end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.model.defects.registry import Original, defect
from harness.model.inflight import SplitInFlight
from harness.model.memory import Memory, Region
from harness.model.queue import Queue
from harness.model.ring import Addresses, Chain
from harness.model.split import SplitRing
from harness.model.vhost import Connection, RefusedError
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.vhost_user import (
    CONFIG,
    FEATURE_PROTOCOL,
    HEADER,
    INFLIGHT,
    NEED_REPLY,
    REPLY,
    U64,
    VERSION,
    VRING_STATE,
    BackEndRequest,
    FrontEndRequest,
    ProtocolFeature,
)

FEW_REGIONS = 4

# --- messages and replies


@defect(Connection._answer, "VU-header-01", text="short answers to GET_CONFIG lack the reply flag")
def reply_without_its_flag(original: Original, connection: Connection, message: bytes) -> None:
    request, flags, size = HEADER.unpack_from(message)
    if request == FrontEndRequest.GET_CONFIG and size <= CONFIG.size + 8:
        flags &= ~REPLY
    original(connection, HEADER.pack(request, flags, size) + message[HEADER.size :])


@defect(
    Connection._set_protocol_features,
    "VU-features-01",
    text="SET_PROTOCOL_FEATURES is refused the second time on a connection",
)
def protocol_features_only_once(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    if connection._protocol:
        raise RefusedError("the protocol features are chosen already")
    original(connection, payload, fds)


@defect(Connection.serves, "VU-features-02", text="no ring runs without REPLY_ACK")
def useless_without_reply_ack(original: Original, connection: Connection, queue: Queue) -> bool:
    acknowledges = connection._protocol & ProtocolFeature.REPLY_ACK.mask
    return bool(original(connection, queue) and acknowledges)


@defect(Connection._handle, "VU-queue-num-01", text="GET_QUEUE_NUM returns one queue too many")
def one_queue_too_many(
    original: Original, connection: Connection, request: int, payload: bytes, fds: list[int]
) -> bytes | None:
    if request == FrontEndRequest.GET_QUEUE_NUM:
        return U64.pack(len(connection.device.queues) + 1)
    answer: bytes | None = original(connection, request, payload, fds)
    return answer


@defect(
    Connection._set_vring_enable,
    "VU-reply-ack-01",
    text="without STATUS, SET_VRING_ENABLE succeeds and is acknowledged as a failure",
)
def success_acknowledged_as_failure(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    original(connection, payload, fds)
    if not connection._protocol & ProtocolFeature.STATUS.mask:
        raise RefusedError("there is no device status")


@defect(Connection._acknowledgement, "VU-reply-ack-02", text="failures are acknowledged with 0")
def failure_acknowledged_as_success(
    original: Original, connection: Connection, refused: Exception | None
) -> bytes:
    return bytes(original(connection, None))


@defect(
    Connection._answer,
    "VU-reply-ack-03",
    text="a message with a reply of its own is acknowledged, too, if it asks for that",
)
def reply_and_acknowledgement(original: Original, connection: Connection, message: bytes) -> None:
    original(connection, message)
    request, _, _ = HEADER.unpack_from(message)
    own = (FrontEndRequest.GET_FEATURES, FrontEndRequest.GET_VRING_BASE)
    if connection._flags & NEED_REPLY and request in own:
        original(connection, HEADER.pack(request, VERSION | REPLY, U64.size) + U64.pack(0))


# --- ring states


@defect(
    Connection._set_vring_enable,
    "VU-ring-01",
    text="a ring without a kick descriptor is processed when it is enabled",
)
def ring_runs_without_kick(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    original(connection, payload, fds)
    queue = connection._queue(VRING_STATE.unpack(payload)[0])
    if queue.enabled and queue.kick < 0 and queue.ring is None:
        queue.start(connection.device.memory, lambda error: None)
        queue.run()


@defect(Connection._set_vring_kick, "VU-ring-02", text="a ring is enabled by its kick descriptor")
def ring_enabled_by_kick_descriptor(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    original(connection, payload, fds)
    connection._addressed(payload).enabled = True


@defect(Connection._kicked, "VU-ring-03", text="a kick of a disabled ring is forgotten")
def kick_before_enable_forgotten(original: Original, connection: Connection, queue: Queue) -> None:
    if queue.enabled:
        original(connection, queue)
    else:
        os.eventfd_read(queue.kick)


@defect(Connection._set_vring_enable, "VU-ring-04", text="a ring cannot be disabled")
def ring_cannot_be_disabled(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    if VRING_STATE.unpack(payload)[1]:
        original(connection, payload, fds)


@defect(
    Connection._set_vring_enable,
    "VU-ring-04",
    text="a ring that is disabled begins at index 0 when it is enabled again",
)
def disabled_ring_forgets_its_place(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    index, enabled = VRING_STATE.unpack(payload)
    queue = connection._queue(index)
    if not enabled:
        connection.device.stop(queue)
        queue.base = 0
    original(connection, payload, fds)


@defect(
    Connection._set_features,
    "VU-ring-05",
    text="rings stay disabled without PROTOCOL_FEATURES",
)
def rings_stay_disabled(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    original(connection, U64.pack(U64.unpack(payload)[0] | FEATURE_PROTOCOL), fds)


def _ignored_while_it_runs(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    if connection._addressed(payload).ring is None:
        original(connection, payload, fds)


@defect(Connection._set_vring_call, "VU-ring-06", text="a running ring keeps its call descriptor")
def call_descriptor_kept(original: Original, *arguments: Any) -> None:
    _ignored_while_it_runs(original, *arguments)


@defect(Connection._set_vring_kick, "VU-ring-06", text="a running ring keeps its kick descriptor")
def kick_descriptor_kept(original: Original, *arguments: Any) -> None:
    _ignored_while_it_runs(original, *arguments)


# --- the base of a ring


def _base_changed(
    name: str, statement: str, text: str, change: Callable[[Connection, int, int], tuple[int, int]]
) -> None:
    """Add a defect of the answer to GET_VRING_BASE, from (index, base) to another such pair."""

    def changed(
        original: Original, connection: Connection, payload: bytes, fds: list[int]
    ) -> bytes:
        answer = VRING_STATE.unpack(original(connection, payload, fds))
        return VRING_STATE.pack(*change(connection, *answer))

    changed.__name__ = name
    defect(Connection._get_vring_base, statement, text=text)(changed)


_base_changed(
    "base_within_the_ring",
    "VU-vring-base-01",
    "the base is counted modulo the size of the ring",
    lambda connection, index, base: (index, base % (connection._queue(index).size or 1)),
)
_base_changed(
    "base_of_another_ring",
    "VU-vring-base-01",
    "the answer to GET_VRING_BASE names queue 0",
    lambda connection, index, base: (0, base),
)
_base_changed(
    "packed_base_without_a_wrap_counter",
    "VU-vring-base-05",
    "the base of a packed virtqueue lacks the wrap counter of the used position",
    lambda connection, index, base: (
        index,
        base & 0x7FFF_FFFF if connection.device.block.has(Feature.RING_PACKED) else base,
    ),
)


@defect(
    Connection._get_vring_base, "VU-vring-base-02", text="GET_VRING_BASE does not stop the ring"
)
def ring_not_stopped(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> bytes:
    index, _ = VRING_STATE.unpack(payload)
    queue = connection._queue(index)
    return VRING_STATE.pack(index, queue.ring.base if queue.ring else queue.base)


@defect(
    Connection._get_vring_base,
    "VU-vring-base-03",
    "VU-vring-base-04",
    text="requests in flight are dropped, and the base is after them",
)
def base_after_what_is_in_flight(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> bytes:
    index, _ = VRING_STATE.unpack(payload)
    ring = connection._queue(index).ring
    base = ring.base if ring else None
    answer = bytes(original(connection, payload, fds))
    return answer if base is None else VRING_STATE.pack(index, base)


@defect(
    Connection._get_vring_base,
    "VU-vring-base-01",
    text="the base of a ring that was never started is one too large",
)
def base_of_a_ring_without_a_start(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> bytes:
    index, _ = VRING_STATE.unpack(payload)
    runs = connection._queue(index).ring is not None
    _, base = VRING_STATE.unpack(original(connection, payload, fds))
    return VRING_STATE.pack(index, base if runs else base + 1)


@defect(
    Connection._get_vring_base,
    "VU-vring-base-03",
    text="GET_VRING_BASE is answered while requests are in flight, and the ring stops later",
)
def base_before_the_ring_stops(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> bytes:
    index, _ = VRING_STATE.unpack(payload)
    ring = connection._queue(index).ring
    if ring is None:
        return bytes(original(connection, payload, fds))
    connection._loop.at(time.monotonic() + 0.1, lambda: original(connection, payload, []))
    return VRING_STATE.pack(index, ring.base)


@defect(
    Connection._set_vring_base,
    "VU-vring-base-04",
    "VU-vring-base-06",
    text="a split ring begins at index 0, whatever SET_VRING_BASE says",
)
def base_ignored(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    index, base = VRING_STATE.unpack(payload)
    packed = connection.device.block.has(Feature.RING_PACKED)
    original(connection, VRING_STATE.pack(index, base if packed else 0), fds)


@defect(
    SplitRing.map,
    "VU-vring-base-04",
    text="the used index begins at 0 when a ring is started",
)
def used_index_begins_at_0(
    original: Original, ring: SplitRing, memory: Memory, addresses: Addresses
) -> None:
    if ring._announced is None:
        memory.user(addresses.device, 4)[2:] = bytes(2)
    original(ring, memory, addresses)


# --- memory


@defect(Memory.user, "VU-memory-01", text="rings are looked for in the first region only")
def rings_in_the_first_region(
    original: Original, memory: Memory, address: int, length: int
) -> memoryview:
    view: memoryview = original(Memory(memory._regions[:1]), address, length)
    return view


@defect(Region.mapped, "VU-memory-01", text="the offset of a region in its file is ignored")
def region_at_the_start_of_its_file(
    original: Original, fd: int, bus: int, size: int, user: int, offset: int
) -> Region:
    region: Region = original(fd, bus, size, user, 0)
    return region


@contextmanager
def _rings_unaware(connection: Connection) -> Iterator[None]:
    """Keep the rings that run from a change of the memory."""
    rings = [(queue, queue._ring) for queue in connection.device.queues]
    for queue, _ in rings:
        queue._ring = None
    yield
    for queue, ring in rings:
        queue._ring = ring


@defect(
    Connection._set_mem_table,
    "VU-memory-02",
    text="a running ring goes on in the memory of the last table",
)
def second_table_ignored_by_rings(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    with _rings_unaware(connection):
        original(connection, payload, fds)


@defect(
    Connection._set_mem_table,
    "VU-memory-07",
    text="requests in flight are forgotten when the memory table is replaced",
)
def memory_table_loses_requests(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    original(connection, payload, fds)
    for queue in connection.device.queues:
        queue._jobs.clear()


@defect(
    Connection._add_mem_reg,
    "VU-memory-03",
    text=f"ADD_MEM_REG is refused for more than {FEW_REGIONS} regions",
)
def fewer_slots_than_promised(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    if len(connection.device.memory.regions()) >= FEW_REGIONS:
        raise RefusedError("too many regions")
    original(connection, payload, fds)


@defect(
    Connection._add_mem_reg,
    "VU-memory-04",
    text="a region that is added while a ring runs is known to the next ring only",
)
def added_region_unknown_to_rings(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    with _rings_unaware(connection):
        original(connection, payload, fds)


@defect(Connection._rem_mem_reg, "VU-memory-05", text="REM_MEM_REG removes nothing")
def region_not_removed(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    pass


@defect(Connection._rem_mem_reg, "VU-memory-06", text="a descriptor with REM_MEM_REG stays open")
def descriptor_of_a_removal_stays_open(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    original(connection, payload, fds)
    fds.clear()


# --- the log


@defect(Connection._set_log_base, "VU-log-01", text="SET_LOG_BASE is not answered")
def log_not_answered(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    original(connection, payload, fds)


@defect(Queue.mark_buffers, "VU-log-02", text="only the first page of each element is logged")
def first_page_logged(original: Original, queue: Queue, chain: Chain) -> None:
    if queue.dirty:
        for address, _ in chain.places:
            queue.dirty(address, 1)


@defect(Queue.mark_used_ring, "VU-log-03", text="writes to the used ring are not logged")
def used_ring_not_logged(original: Original, queue: Queue) -> None:
    pass


@defect(Connection._update_logging, "VU-log-04", text="logging does not begin while a ring runs")
def logging_only_from_the_start(original: Original, connection: Connection) -> None:
    if not any(queue.ring for queue in connection.device.queues):
        original(connection)


# --- requests in flight, and connections


@defect(
    Connection._get_inflight_fd,
    "VU-inflight-01",
    text="the answer to GET_INFLIGHT_FD describes no queue",
)
def region_of_no_queue(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> bytes:
    length, offset, _, _ = INFLIGHT.unpack(original(connection, payload, fds))
    return INFLIGHT.pack(length, offset, 0, 0)


@defect(
    SplitInFlight.recover,
    "VU-inflight-02",
    text="a new process does not look at the region for requests in flight",
)
def region_not_looked_at(
    original: Original, in_flight: SplitInFlight, ring: SplitRing
) -> list[Chain]:
    in_flight.region[8:10] = bytes(2)
    return list(original(in_flight, ring))


@defect(
    SplitInFlight.used,
    "VU-inflight-02",
    "VU-inflight-03",
    text="requests that are used stay noted as in flight",
)
def used_requests_stay_noted(original: Original, in_flight: SplitInFlight, chain: Chain) -> None:
    original(in_flight, chain)
    in_flight._set(chain.id, 1)


@defect(
    Connection.close,
    "VU-reconnect-01",
    text="the rings go on after the end of their connection",
)
def rings_outlive_their_connection(original: Original, connection: Connection) -> None:
    connection._loop.forget(connection._link.fileno())
    connection._link.close()
    connection._closed()


# --- the configuration space


@defect(
    Connection._get_config,
    "VU-config-01",
    text="the answer to GET_CONFIG of an odd length is a byte shorter",
)
def answer_of_an_odd_length_cut(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> bytes:
    answer = bytes(original(connection, payload, fds))
    return answer[:-1] if len(answer) % 2 else answer


@defect(Connection._get_config, "VU-config-02", text="GET_CONFIG reads at offset 0")
def config_read_at_the_start(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> bytes:
    offset, size, flags = CONFIG.unpack_from(payload)
    answer = bytes(original(connection, CONFIG.pack(0, size, flags), fds))
    return CONFIG.pack(offset, size, flags) + answer[CONFIG.size :] if answer else b""


@defect(Connection._set_config, "VU-config-03", text="SET_CONFIG changes the capacity")
def capacity_is_written(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    offset, size, _ = CONFIG.unpack_from(payload)
    if (offset, size) != (0, 8):
        original(connection, payload, fds)
    else:
        connection.device.block.capacity = U64.unpack_from(payload, CONFIG.size)[0]


@defect(
    Connection.announce_config_change,
    "VU-config-04",
    text="the message about a change of the configuration has the reply flag",
)
def change_told_as_a_reply(original: Original, connection: Connection) -> None:
    if connection._channel >= 0:
        message = HEADER.pack(BackEndRequest.CONFIG_CHANGE, VERSION | REPLY, 0)
        os.write(connection._channel, message)


@defect(
    Connection.announce_config_change,
    "VU-backend-01",
    text="a change of the configuration is told though no ring runs",
)
def change_told_while_stopped(original: Original, connection: Connection) -> None:
    if connection._channel >= 0:
        message = HEADER.pack(BackEndRequest.CONFIG_CHANGE, VERSION, 0)
        os.write(connection._channel, message)


# --- the device


@defect(Connection._handle, "VU-status-01", text="GET_STATUS returns 0 for ACKNOWLEDGE alone")
def acknowledge_not_shown(
    original: Original, connection: Connection, request: int, payload: bytes, fds: list[int]
) -> bytes | None:
    alone = connection.device.status == DeviceStatus.ACKNOWLEDGE
    if request == FrontEndRequest.GET_STATUS and alone:
        return U64.pack(0)
    answer: bytes | None = original(connection, request, payload, fds)
    return answer


@defect(Connection._reset_device, "VU-reset-device-01", text="RESET_DEVICE does nothing")
def reset_device_ignored(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    pass
