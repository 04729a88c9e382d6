"""Whims of notifications (virtio 2.3, 2.7.7, 2.7.10, 2.8.10).

Where a superfluous interrupt breaks a SHOULD NOT, these send it only if the driver has not asked
for silence, or name the statement.
"""

from __future__ import annotations

import os
import time

from harness.model.device import Device
from harness.model.packed import PackedRing
from harness.model.queue import Queue
from harness.model.ring import Ring
from harness.model.split import SplitRing
from harness.model.vhost import Connection
from harness.model.whims.registry import Original, also, whim
from harness.virtio.device import DeviceStatus
from harness.virtio.ring import (
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    USED_F_NO_NOTIFY,
)
from harness.virtio.shared import fence, store_fence

SUPERFLUOUS = ("2.7.7.2-D-02", "2.7.7.2-D-06")
"""SHOULD NOT send a notification that the driver did not ask for."""


# --- interrupts


@whim(
    Device.set_status,
    text="a queue is signalled when DRIVER_OK is set and when it is enabled after that",
    breaks=SUPERFLUOUS,
)
def signals_at_enable(original: Original, device: Device, value: int) -> None:
    before = device.status
    original(device, value)
    if device.status & ~before & DeviceStatus.DRIVER_OK:
        for queue in device.queues:
            if device.may_run(queue):
                queue.notify()


@also("signals-at-enable", Connection._set_vring_enable)
def _signals_at_late_enable(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    original(connection, payload, fds)
    index = int.from_bytes(payload[:4], "little")
    queue = connection.device.queues[index]
    if connection.device.status & DeviceStatus.DRIVER_OK and connection.device.may_run(queue):
        queue.notify()


@whim(Connection._set_vring_call, text="a call descriptor is signalled when it is given")
def signals_a_call_descriptor(
    original: Original, connection: Connection, payload: bytes, fds: list[int]
) -> None:
    original(connection, payload, fds)
    if (call := connection._addressed(payload).call) >= 0:
        os.eventfd_write(call, 1)


@whim(
    Queue.notify,
    text="every used buffer notification is sent twice",
    breaks=SUPERFLUOUS,
)
def signals_twice(original: Original, queue: Queue) -> None:
    original(queue)
    original(queue)


@whim(
    Queue.run,
    text="a notification that announces nothing is answered with one that announces nothing",
    breaks=SUPERFLUOUS,
)
def signals_after_empty_notification(original: Original, queue: Queue) -> None:
    taken = queue._taken
    original(queue)
    if queue._taken == taken and queue.ring is not None:
        queue.notify()


@whim(Queue.use, text="each used buffer is announced before the next one is used")
def announces_each(original: Original, queue: Queue, ring: Ring, job: object) -> None:
    original(queue, ring, job)
    queue._announce(ring)


@whim(Queue._announce, text="used buffers are announced 2 ms late")
def announces_late(original: Original, queue: Queue, ring: Ring) -> None:
    # A queue that stops, or is about to be suspended, may not say anything afterwards.
    if queue.ring is not ring or vars(queue).get("settling"):
        original(queue, ring)
        return

    def later() -> None:
        if queue.ring is ring:
            original(queue, ring)

    queue._loop.at(time.monotonic() + 0.002, later)


@also("announces-late", Queue.settle)
def _announces_before_suspension(original: Original, queue: Queue) -> None:
    vars(queue)["settling"] = True
    original(queue)
    del vars(queue)["settling"]


# --- available buffer notifications


@whim(
    Queue.run,
    text="the driver is asked for no notification while the queue is processed",
    family="kicks",
)
def wants_no_kicks_meanwhile(original: Original, queue: Queue) -> None:
    ring = queue.ring
    if ring is not None:
        _ask_for_silence(ring)
    original(queue)


def _ask_for_silence(ring: Ring) -> None:
    if isinstance(ring, PackedRing):
        ring._device[1] = RING_EVENT_FLAGS_DISABLE
    elif isinstance(ring, SplitRing) and not ring.event_idx:
        ring._used[0] = USED_F_NO_NOTIFY


@whim(
    PackedRing.want_kicks,
    text="packed: with EVENT_IDX notifications are asked for by the next descriptor",
    family="kicks",
)
def kicks_by_place(original: Original, ring: PackedRing) -> None:
    if not ring.event_idx:
        original(ring)
        return
    ring._device[0] = ring._place(ring._next)
    store_fence()
    ring._device[1] = RING_EVENT_FLAGS_DESC
    fence()


POLL_PAUSE = 0.001


def _poll(device: Device, queue: Queue, pause: float) -> None:
    """Look at a queue again and again while it may run."""
    ring = queue.ring

    def look() -> None:
        if queue.ring is ring and ring is not None and device.may_run(queue):
            device.run(queue)
            if not pause:
                os.sched_yield()  # the driver may need this processor
            queue._loop.at(time.monotonic() + pause, look)

    look()


@whim(Device.run, text="queues are polled, every millisecond", family="kicks")
def polls(original: Original, device: Device, queue: Queue) -> None:
    started = queue.ring is None
    queue.kicked = queue.kicked or device.may_run(queue)
    original(device, queue)
    if started and queue.ring is not None:
        _poll(device, queue, POLL_PAUSE)


@whim(Device.run, text="queues are polled without a pause", family="kicks")
def polls_without_pause(original: Original, device: Device, queue: Queue) -> None:
    started = queue.ring is None
    queue.kicked = queue.kicked or device.may_run(queue)
    original(device, queue)
    if started and queue.ring is not None:
        _poll(device, queue, 0.0)


@whim(
    Device.run,
    text="queues are polled, every millisecond, and the driver is asked for no notification",
    family="kicks",
)
def polls_and_wants_no_kicks(original: Original, device: Device, queue: Queue) -> None:
    polls(original, device, queue)


@also("polls-and-wants-no-kicks", PackedRing.want_kicks)
@also("polls-and-wants-no-kicks", SplitRing.want_kicks)
def _wants_none(original: Original, ring: Ring) -> None:
    original(ring)
    _ask_for_silence(ring)


# --- configuration changes


@whim(Device.announce_change, text="a configuration change is announced twice")
def announces_a_change_twice(original: Original, device: Device) -> None:
    original(device)
    original(device)


@whim(Device.set_status, text="a configuration change is announced when DRIVER_OK is set")
def announces_a_change_at_driver_ok(original: Original, device: Device, value: int) -> None:
    before = device.status
    original(device, value)
    if device.status & ~before & DeviceStatus.DRIVER_OK:
        device.announce_change()
