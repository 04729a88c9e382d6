"""Defects of status, reset, suspension and configuration changes (virtio 2.1, 2.4, 2.6.1, 3.4)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from harness.model.block import Block
from harness.model.defects.registry import Original, defect, during
from harness.model.device import Device
from harness.model.loop import Loop
from harness.model.memory import BrokenError
from harness.model.queue import Job, Queue
from harness.model.request import Request
from harness.model.ring import Ring
from harness.virtio.blk import RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature

# --- needs reset


@defect(Device.broken, "2.1.2-D-02", text="a broken ring does not set DEVICE_NEEDS_RESET")
def needs_reset_not_shown(
    original: Original, device: Device, queue: Queue, error: BrokenError
) -> None:
    queue.enabled = False  # in the error state, and no status says so


@defect(Device.broken, "2.1.2-D-03", text="DEVICE_NEEDS_RESET is set but not announced")
def needs_reset_not_announced(
    original: Original, device: Device, queue: Queue, error: BrokenError
) -> None:
    device.status |= DeviceStatus.NEEDS_RESET


# --- reset


LEFT = DeviceStatus.ACKNOWLEDGE


@defect(Device.reset, "2.4.1-D-01", text="the status is not 0 after the reset of a running device")
def status_left_after_reset(original: Original, device: Device) -> None:
    stays = device.status & DeviceStatus.DRIVER_OK or device.status == LEFT
    original(device)
    if stays:
        device.status = LEFT


def _left_running(original: Original, queue: Queue) -> None:
    ring, jobs = queue._ring, list(queue._jobs)
    for job in jobs:
        job.timer = -1  # so that the calls that execute them are not cancelled
    original(queue)
    if ring:
        queue._jobs += [job for job in jobs if not job.done]


@defect(Queue.stop, "2.4.1-D-02", text="requests in flight continue after a device reset")
def reset_leaves_requests_running(original: Original, queue: Queue) -> None:
    if queue._block.has(Feature.RING_RESET):
        original(queue)
    else:
        _left_running(original, queue)


def _execute(queue: Queue, job: Job) -> None:
    queue._block.execute(job.request)


@defect(
    Queue.stop,
    "2.6.1.1.1-D-01",
    text="writes in flight reach the disk after their queue's reset, and show nowhere else",
)
def queue_reset_leaves_writes_running(original: Original, queue: Queue) -> None:
    jobs = [job for job in queue._jobs if not job.done and job.request.type == RequestType.OUT]
    original(queue)
    if queue._block.has(Feature.RING_RESET):
        for job in jobs:
            queue._loop.at(time.monotonic() + 0.1, partial(_execute, queue, job))


@defect(Queue.stop, "2.6.1.1.1-D-01", text="requests in flight continue after their queue's reset")
def queue_reset_leaves_requests_running(original: Original, queue: Queue) -> None:
    if queue._block.has(Feature.RING_RESET):
        _left_running(original, queue)
    else:
        original(queue)


@defect(
    Device.set_queue_base,
    "2.6.1.1.1-D-02",
    text="a queue that was reset keeps its position in the rings",
)
def queue_reset_keeps_indices(original: Original, device: Device, queue: Queue, base: int) -> None:
    if not (device.block.has(Feature.RING_RESET) and queue.base):
        original(device, queue, base)


@defect(
    Device.set_queue_size,
    "2.6.1.2.1-D-01",
    text="a queue that was reset keeps its previous size",
)
def queue_reset_keeps_size(original: Original, device: Device, queue: Queue, size: int) -> None:
    if not (device.block.has(Feature.RING_RESET) and queue.base):
        original(device, queue, size)


@defect(
    Device.reset,
    "2.4-P-01",
    text="every request fails on a device that was reset while it ran",
)
def useless_after_reset(original: Original, device: Device) -> None:
    if device.status & DeviceStatus.DRIVER_OK:
        vars(device.block)["within"] = lambda sector, count: False
    original(device)


# --- a pause of the process


LATE = 0.02


@defect(Loop.at, "2.4-P-03", text="work that is 20 ms late is never done")
def late_work_is_dropped(
    original: Original, loop: Loop, when: float, handler: Callable[[], None]
) -> None:
    def in_time() -> None:
        if time.monotonic() - when < LATE:
            handler()

    original(loop, when, in_time)


# --- several queues


@defect(
    Device.__init__,
    "5.2.2-P-01",
    text="all queues but the first access the sector after the requested one",
)
def queues_differ(original: Original, device: Device, *arguments: object, **named: object) -> None:
    def ahead(queue: Queue, ring: Ring, job: Job) -> None:
        job.request.sector += 1
        Queue._finish(queue, ring, job)

    original(device, *arguments, **named)
    for queue in device.queues[1:]:
        vars(queue)["_finish"] = partial(ahead, queue)


@defect(
    Device.set_queue_size, "5.2.2-P-01", text="all queues have the size that the first was given"
)
def one_size_for_all_queues(original: Original, device: Device, queue: Queue, size: int) -> None:
    original(device, queue, size if queue is device.queues[0] else device.queues[0].size or size)


@defect(Device.may_run, "5.2.2-P-01", text="no queue is served while the first is not set up")
def first_queue_needed(original: Original, device: Device, queue: Queue) -> bool:
    return bool(original(device, queue)) and device.queues[0].enabled


# --- initialisation


@defect(
    Device.set_status,
    "2.1-P-01",
    text="a driver that takes more than 30 ms from one status to the next is not served",
)
def slow_driver_is_left(original: Original, device: Device, value: int) -> None:
    now = time.monotonic()
    before = vars(device).get("before", now)
    vars(device)["before"] = now
    original(device, value)
    if value & DeviceStatus.DRIVER_OK and now - before > 0.03:
        vars(device)["may_run"] = lambda queue: False


@defect(Device.set_status, "2.1-P-02", text="DRIVER_OK that is written again disables the queues")
def second_driver_ok_disables(original: Original, device: Device, value: int) -> None:
    again = device.status & value & DeviceStatus.DRIVER_OK
    original(device, value)
    if again:
        for queue in device.queues:
            queue.enabled = False


# --- suspension


def _suspend_bit(status: int) -> bool:
    return bool(status & DeviceStatus.SUSPEND)


@defect(
    Device.asks_to_suspend,
    "3.4.2-D-01",
    text="a device that is not initialised can be suspended",
)
def suspended_before_driver_ok(original: Original, device: Device, value: int) -> bool:
    return bool(original(device, value)) or _suspend_bit(value)


@defect(
    Device.write_config,
    "3.4.2-D-02",
    text="a suspended device takes writes to its configuration space",
)
def suspended_device_is_configured(
    original: Original, device: Device, offset: int, data: bytes, legacy: bool = False
) -> bool:
    with during(device, status=device.status & ~DeviceStatus.SUSPEND):
        return bool(original(device, offset, data, legacy))


@defect(
    Device.may_run,
    "3.4-P-01",
    text="a suspended device serves buffers that become available",
)
def suspended_device_works(original: Original, device: Device, queue: Queue) -> bool:
    suspended = _suspend_bit(device.status)
    return bool(original(device, queue)) or bool(suspended and queue.enabled)


@defect(
    Queue.settle,
    "3.4.2-D-03",
    "3.4.2-D-08",
    text="requests in flight continue after the device is suspended",
)
def suspension_leaves_requests_running(original: Original, queue: Queue) -> None:
    pass


@defect(
    Device.announce_change,
    "3.4.2-D-04",
    text="a suspended device announces a resize at once",
)
def resize_announced_while_suspended(original: Original, device: Device) -> None:
    status = device.status
    if _suspend_bit(status):
        device.status = status & ~DeviceStatus.SUSPEND | DeviceStatus.DRIVER_OK
    original(device)
    device.status = status


@defect(
    Device.resume,
    "3.4.2-D-05",
    text="a resize while the device was suspended is never announced",
)
def resize_while_suspended_forgotten(original: Original, device: Device, value: int) -> None:
    device._change_pending = False
    original(device, value)


@defect(
    Queue.settle,
    "3.4.2-D-08",
    text="requests in flight are executed, but not marked used, before suspension",
)
def suspension_forgets_what_was_begun(original: Original, queue: Queue) -> None:
    for job in queue._jobs:
        job.length, job.done = queue._block.serve(job.request), True


@defect(Device.read_config, "3.4.2-D-03", text="a suspended device shows a configuration of zeroes")
def suspended_device_shows_zeroes(original: Original, device: Device) -> bytes:
    space = bytes(original(device))
    return bytes(len(space)) if device.suspended else space


@defect(Device.suspend, "3.4.2-D-06", text="a request to suspend is ignored")
def suspend_ignored(original: Original, device: Device, value: int) -> None:
    pass


@defect(
    Device.set_status,
    "3.4-P-02",
    text="without SUSPEND the bit stops the virtqueues, and the device claims to run",
)
def suspend_bit_stops_device(original: Original, device: Device, value: int) -> None:
    original(device, value)
    if _suspend_bit(value) and not device.block.has(Feature.SUSPEND):
        for queue in device.queues:
            queue.enabled = False


@defect(
    Device.resume,
    "3.4.2-D-06",
    text="a device that is asked to suspend a second time runs again",
)
def second_suspension_resumes(original: Original, device: Device, value: int) -> None:
    original(device, value | DeviceStatus.DRIVER_OK if _suspend_bit(value) else value)


@defect(Device.reset, "2.4.1-D-01", text="a reset leaves SUSPEND set in a suspended device")
def suspend_left_after_reset(original: Original, device: Device) -> None:
    suspended = device.suspended
    original(device)
    if suspended:
        device.status = DeviceStatus.SUSPEND


@defect(Device.reset, "2.4-P-01", text="a device that was reset while suspended serves no more")
def useless_after_reset_while_suspended(original: Original, device: Device) -> None:
    if device.suspended:
        vars(device)["may_run"] = lambda queue: False
    original(device)


@defect(Device.resume, "3.4.2-D-07", text="a resumed device sets its status but serves nothing")
def resumed_device_is_dead(original: Original, device: Device, value: int) -> None:
    for queue in device.queues:
        queue.enabled = False
    original(device, value)


@defect(Device.resume, "3.4.2-D-07", text="a request to resume is ignored")
def resume_ignored(original: Original, device: Device, value: int) -> None:
    pass


@defect(
    Queue.settle,
    "3.4.2-D-08",
    "3.4.2-D-07",
    text="requests in flight at a suspension are dropped, and not served after it",
)
def suspension_drops_requests(original: Original, queue: Queue) -> None:
    queue._jobs.clear()
    original(queue)


# --- configuration changes


@defect(Block.write, "5.2.4-P-06", text="a disk that was resized loses what is written to it")
def resized_disk_loses_writes(original: Original, block: Block, request: Request) -> Status:
    if block.capacity != block.spec.capacity and block.within(request.sector, 1):
        return Status.OK
    return Status(original(block, request))


@defect(Block.within, "5.2.4-P-06", text="the disk ends where it ended at its first request")
def capacity_of_the_first_request(
    original: Original, block: Block, sector: int, count: int
) -> bool:
    end = vars(block).setdefault("end", block.capacity)
    return bool(sector + count <= end)


@defect(Device.announce_change, "5.2.6.2-D-02", text="a resize is not announced")
def resize_not_announced(original: Original, device: Device) -> None:
    pass


@defect(Device.announce_change, "5.2.6.2-D-02", text="every second resize is not announced")
def every_second_resize_not_announced(original: Original, device: Device) -> None:
    times = vars(device)["times"] = vars(device).get("times", 0) + 1
    if times % 2:
        original(device)


@defect(
    Block.within,
    "5.2.4-P-06",
    text="a disk that has shrunk still serves sectors beyond its new end",
)
def shrunk_disk_ends_where_it_did(
    original: Original, block: Block, sector: int, count: int
) -> bool:
    return bool(original(block, sector, count)) or sector + count <= block.spec.capacity


@defect(
    Block.within,
    "5.2.4-P-06",
    text="a disk that has grown does not serve sectors beyond its old end",
)
def grown_disk_ends_where_it_did(original: Original, block: Block, sector: int, count: int) -> bool:
    return bool(original(block, sector, count)) and sector + count <= block.spec.capacity


@defect(
    Device.config_changed,
    "5.2.5-P-05",
    text="a resize before DRIVER_OK is not shown",
)
def early_resize_not_shown(original: Original, device: Device) -> None:
    if not device.status & DeviceStatus.DRIVER_OK:
        device.block.capacity = device.block.spec.capacity
    original(device)
