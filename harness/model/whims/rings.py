"""Whims of the used ring: lengths, order and time (virtio 2.7.8, 2.8.12, 6.2)."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.diskspec import SECTOR
from harness.model.memory import BrokenError
from harness.model.queue import Job, Queue, Throttle
from harness.model.request import Request
from harness.model.ring import Chain, Ring
from harness.model.split import SplitRing
from harness.model.whims.registry import Original, Whim, file, whim
from harness.virtio.blk import Status
from harness.virtio.features import Feature

# --- used lengths


def _length(name: str, text: str, shown: Callable[[int], int]) -> None:
    """File a device whose used lengths are lower than what it wrote."""

    def change(original: Original, request: Request, status: Status) -> int:
        return shown(int(original(request, status)))

    file(Whim(name, text, family="length", parts=[(Request.end, change)]))


_length("used-length-0", "the used length is always 0", lambda length: 0)
_length("used-length-0-or-1", "the used length is 0 or 1", lambda length: min(length, 1))
_length("used-length-half", "the used length is half of it", lambda length: length // 2)
_length(
    "used-length-without-status",
    "the used length leaves the status byte out",
    lambda length: max(length - 1, 0),
)
_length(
    "used-length-in-sectors",
    "the used length is rounded down to sectors",
    lambda length: length // SECTOR * SECTOR,
)


# --- order


def _batch(queue: Queue) -> list[tuple[Ring, Job]]:
    batch: list[tuple[Ring, Job]] = vars(queue).setdefault("batch", [])
    return batch


def _batching(name: str, text: str, order: Callable[[list[Job]], list[Job]]) -> None:
    """File a device that uses what it has done when it has nothing more to do, in an order."""
    use = Queue.use

    def keep(original: Original, queue: Queue, ring: Ring, job: Job) -> None:
        del original
        _batch(queue).append((ring, job))

    def flush(original: Original, queue: Queue, ring: Ring) -> None:
        batch = [job for kept, job in _batch(queue) if kept is ring]
        _batch(queue).clear()
        if not queue._block.has(Feature.IN_ORDER):
            batch = order(batch)
        for job in batch:
            use(queue, ring, job)
        original(queue, ring)

    def run(original: Original, queue: Queue) -> None:
        ring = queue.ring
        try:
            original(queue)
        except BrokenError:
            if ring is not None:
                queue._announce(ring)
            raise

    parts: list[tuple[Callable[..., object], Callable[..., object]]] = [
        (Queue.use, keep),
        (Queue._announce, flush),
        (Queue.run, run),
    ]
    file(Whim(name, text, family="batch", parts=parts))


_batching("used-in-batches", "buffers are used in batches", lambda jobs: jobs)
_batching("used-in-reverse", "a batch is used in reverse", lambda jobs: jobs[::-1])
_batching(
    "used-out-of-order",
    "of a batch every other buffer is used first",
    lambda jobs: jobs[1::2] + jobs[::2],
)


# --- time


@whim(Throttle.turn, text="no request waits for its turn: the storage is as quick as can be")
def quick(original: Original, throttle: Throttle) -> float:
    del original, throttle
    return 0.0


@whim(Queue.due, text="every request takes 3 ms", family="time")
def takes_3_ms(original: Original, queue: Queue, request: Request) -> float:
    return max(float(original(queue, request)), time.monotonic() + 0.003)


@whim(Queue.due, text="no request is done at once", family="time")
def never_at_once(original: Original, queue: Queue, request: Request) -> float:
    return max(float(original(queue, request)), time.monotonic() + 1e-6)


@whim(Queue.due, text="every third request takes 20 ms", family="time")
def every_third_is_slow(original: Original, queue: Queue, request: Request) -> float:
    turn = vars(queue)["turn"] = vars(queue).get("turn", 0) + 1
    due = float(original(queue, request))
    return max(due, time.monotonic() + 0.02) if turn % 3 == 0 else due


# --- errors of the driver


@whim(
    SplitRing.take,
    text="split: an available index that cannot be is ignored until it can be",
    family="broken",
)
def impossible_index_ignored(original: Original, ring: SplitRing) -> Chain | None:
    if (ring._avail[1] - ring._next) & 0xFFFF > ring.size:
        return None
    chain: Chain | None = original(ring)
    return chain
