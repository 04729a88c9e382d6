"""Defects of notifications under load, and of several virtqueues (virtio 2.3, 2.7, 2.8)."""

from __future__ import annotations

import time
from typing import cast

from harness.model.defects.registry import Original, defect
from harness.model.device import Device
from harness.model.packed import PackedRing
from harness.model.queue import Job, Queue
from harness.model.ring import Ring
from harness.model.split import SplitRing
from harness.virtio.ring import RING_EVENT_FLAGS_DISABLE, USED_F_NO_NOTIFY

# --- notifications of the driver


def _ask(ring: Ring, wanted: bool) -> None:
    """Ask the driver for notifications by the flags of the ring, or for none."""
    if isinstance(ring, PackedRing):
        if wanted:
            ring.want_kicks()
        else:
            ring._device[1] = RING_EVENT_FLAGS_DISABLE
    elif wanted:
        ring.want_kicks()
    elif not ring.event_idx:
        cast(SplitRing, ring)._used[0] = USED_F_NO_NOTIFY


@defect(
    Queue.run,
    "2.7.10-P-01",
    "2.8.10-P-01",
    text="a device that asks for notifications again does not look at the ring after that",
)
def ring_not_looked_at_again(original: Original, queue: Queue) -> None:
    ring = queue.ring
    if ring is None:
        return
    _ask(ring, False)
    while chain := queue._take(ring):
        queue._begin(ring, chain)
    queue._announce(ring)
    _ask(ring, True)


@defect(
    SplitRing.want_kicks,
    "2.7.10-P-01",
    text="split: avail_event has 15 bits",
)
def avail_event_of_15_bits(original: Original, ring: SplitRing) -> None:
    original(ring)
    if ring.event_idx:
        ring._used[2 + 4 * ring.size] = ring._next & 0x7FFF


# --- notifications of the device


@defect(
    Queue.use,
    "2.7.7.2-D-03",
    "2.8.10-P-03",
    text="the interrupt comes a millisecond before the buffer is used",
)
def interrupt_before_the_use(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
    early = not ring.event_idx and ring.wanted(0, 1)
    if early:
        queue.notify()
        time.sleep(0.001)
    original(queue, ring, job)
    if early:
        ring.notification_due()


@defect(
    Queue.notify,
    "2.7.7.2-D-03",
    "2.7.7.2-D-05",
    "2.8.10-P-02",
    "2.8.10-P-03",
    text="every 50th interrupt of a queue is left out",
)
def every_50th_interrupt_left_out(original: Original, queue: Queue) -> None:
    times = vars(queue)["times"] = vars(queue).get("times", 0) + 1
    if times % 50:
        original(queue)


@defect(
    Device.__init__,
    "2.3-P-01",
    text="what is used on a queue is signalled on the queue before it",
)
def signalled_on_another_queue(
    original: Original, device: Device, *arguments: object, **named: object
) -> None:
    original(device, *arguments, **named)
    for queue, other in zip(device.queues[1:], device.queues, strict=False):
        queue.signal = lambda other=other: Queue._signal_call(other)  # type: ignore[misc]
