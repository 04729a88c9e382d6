"""A running virtqueue: it takes chains, executes requests in time, and marks them used."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.model.block import Block
from harness.model.dirty import Mark
from harness.model.inflight import InFlight, PackedInFlight, SplitInFlight
from harness.model.loop import Loop
from harness.model.memory import BrokenError, Memory, pieces
from harness.model.observer import SHOWN, Observer
from harness.model.packed import PackedRing
from harness.model.request import Request
from harness.model.ring import Addresses, Chain, Ring
from harness.model.split import SplitRing
from harness.virtio.features import Feature
from harness.virtio.ring import DESC_SIZE, EVENT_SUPPRESSION, used_size

GLANCE = 0.5
"""Seconds between two looks of an observed virtqueue for chains without a notification."""

GLANCES = 3
"""Looks that find the same chain before the observer is told."""


class Throttle:
    """Limits operations to a number per second; None is no limit."""

    def __init__(self, per_second: int | None) -> None:
        self._step = 1 / per_second if per_second else 0.0
        self._next = 0.0

    def turn(self) -> float:
        """Return when the next operation may begin, in seconds of the monotonic clock."""
        now = max(self._next, time.monotonic())
        self._next = now + self._step
        return now

    def give_back(self, turns: int) -> None:
        """Return the turns of the last `turns` operations, which will not be done."""
        self._next -= turns * self._step


@dataclass
class Job:
    """A request that was taken and not used yet. `number` counts the requests of its queue.

    `replayed` says that an earlier process took it, so that it cannot be given back. `timer` is the
    number of the call that will execute it, -1 if there is none. `seen` has its descriptors as an
    observer was shown them.
    """

    number: int
    chain: Chain
    request: Request
    replayed: bool = False
    length: int = 0
    done: bool = False
    timer: int = -1
    seen: list[list[int]] = field(default_factory=list)


class Queue:
    """One virtqueue.

    Every method may raise BrokenError.

    It accesses its rings only between `start` and `stop`, and only after the first notification.
    """

    def __init__(self, block: Block, throttle: Throttle, loop: Loop) -> None:
        self._block = block
        self._throttle = throttle
        self._loop = loop
        self.size = 0
        self.base = 0
        self.addresses: Addresses | None = None
        self.enabled = False
        self.kicked = False
        self.kick = self.call = self.error = -1
        self.signal: Callable[[], None] = self._signal_call
        self._broken: Callable[[BrokenError], None] | None = None
        self._ring: Ring | None = None
        self._jobs: list[Job] = []
        self._taken = 0
        self._last = -1
        self._observer: Observer | None = None
        self._index = 0
        self.dirty: Mark | None = None
        """Marks what the device writes for a migration, None while nobody asks for it."""
        self.used_ring_log: int | None = None
        """Bus address at which writes to the used ring are marked, None if they are not."""
        self.region: memoryview | None = None
        """Memory of the front-end for requests in flight, None without it."""
        self._in_flight: InFlight | None = None
        self._descriptors_at = 0
        self._seen: list[list[int]] = []
        self._shown: dict[int, Job] = {}
        """Jobs that the observer knows of and that are not used yet, by their number."""

    def observe(self, observer: Observer | None, index: int) -> None:
        """Tell `observer`, if there is one, what happens on this virtqueue, number `index`."""
        self._observer = observer
        self._index = index

    # --- start and stop

    @property
    def ring(self) -> Ring | None:
        """Return the rings, or None while the queue is stopped."""
        return self._ring

    def start(self, memory: Memory, broken: Callable[[BrokenError], None]) -> None:
        """Start with the rings as they were set up. `broken` is called with a later failure."""
        self._broken = broken
        ring = self.make_ring(self._block.has(Feature.EVENT_IDX))
        assert self.addresses
        if self._observer:
            self._observer(
                "started",
                queue=self._index,
                size=self.size,
                base=self.base,
                desc=memory.bus_of(self.addresses.desc),
                driver=memory.bus_of(self.addresses.driver),
                device=memory.bus_of(self.addresses.device),
            )
        ring.map(memory, self.addresses)
        self._ring = ring
        self._descriptors_at = memory.bus_of(self.addresses.desc)
        if self._observer:
            flags, _ = ring.asked()
            self._observer("prepared", queue=self._index, flags=flags)
            self._glance(ring, ring.base, 0)
        if self.region is not None:
            kind = PackedInFlight if isinstance(ring, PackedRing) else SplitInFlight
            self._in_flight = kind(self.region, self.size)
            for chain in self._in_flight.recover(ring):
                self._begin(ring, chain, replayed=True)

    def _glance(self, ring: Ring, base: int, times: int) -> None:
        """Tell the observer of a chain that lies there and that no notification has announced.

        `base` is the position of the ring at the last look, and `times` the number of looks that
        have found the same chain.
        """
        if self._ring is not ring or self._observer is None:
            return
        waiting = ring.waiting()
        again = times + 1 if waiting and ring.base == base else 0
        if again == GLANCES:
            self._observer("unnoticed", queue=self._index, waiting=waiting, **self.asked)
        now = ring.base
        self._loop.at(time.monotonic() + GLANCE, lambda: self._glance(ring, now, again))

    def show_waiting(self) -> None:
        """Tell the observer, if there is one, how much is available and not taken."""
        if self._observer and self._ring:
            self._observer("waiting", queue=self._index, count=self._ring.waiting())

    @property
    def asked(self) -> dict[str, int]:
        """Return what the driver is asked for, for an observer; nothing while it is stopped."""
        if self._ring is None:
            return {}
        flags, place = self._ring.asked()
        return {"flags": flags, "place": place}

    def make_ring(self, event_idx: bool) -> Ring:
        """Return a ring of the negotiated kind, at the base that was set."""
        kind = PackedRing if self._block.has(Feature.RING_PACKED) else SplitRing
        return kind(self.size, event_idx, self.base)

    def remap(self, memory: Memory) -> None:
        """Locate the rings in another memory table."""
        if self._ring and self.addresses:
            self._ring.map(memory, self.addresses)
            self._descriptors_at = memory.bus_of(self.addresses.desc)

    def stop(self) -> None:
        """Stop the queue.

        Finish requests that completed out of order; leave the others unprocessed.
        """
        ring, self._ring = self._ring, None
        self.kicked = False
        if ring is None:
            return
        if self._observer:
            self._observer("stopped", queue=self._index)
        self._loop.cancel({job.timer for job in self._jobs})
        while self._jobs and (self._jobs[0].number < self._last or self._jobs[0].replayed):
            self._finish(ring, self._jobs[0])
        if self._jobs:
            ring.give_back(self._jobs[0].chain)
            if self._in_flight:
                for job in reversed(self._jobs):
                    self._in_flight.gave_back(job.chain)
            self._throttle.give_back(sum(not job.done for job in self._jobs))
            self._jobs.clear()
        self._announce(ring)
        self._shown.clear()
        self._in_flight = None
        self.base = ring.base

    def settle(self) -> None:
        """Finish all requests that were taken, and take no more."""
        if self._ring:
            while self._jobs:
                self._finish(self._ring, self._jobs[0])
            self._announce(self._ring)

    # --- work

    def run(self) -> None:
        """Take everything available, and execute what does not have to wait."""
        ring = self._ring
        if ring is None:
            return
        while chain := self._take(ring):
            self._begin(ring, chain)
        ring.want_kicks()
        while chain := self._take(
            ring
        ):  # made available before the driver saw that it has to notify
            self._begin(ring, chain)
            ring.want_kicks()
        self.mark_used_ring()
        self._announce(ring)

    def _take(self, ring: Ring) -> Chain | None:
        if self._observer and not self._show_next(ring, self._observer):
            # A chain that has become available since then is left for the next look.
            return None
        chain = ring.take()
        if chain and self._in_flight:
            self._in_flight.taken(chain)
        return chain

    def _show_next(self, ring: Ring, observer: Observer) -> bool:
        """Tell the observer of the next chain as it lies there, also if `take` cannot read it.

        Return whether there was anything to tell.
        """
        if found := ring.look():
            observer("chain", queue=self._index, **found)
            self._seen = found["descriptors"]
        elif (index := ring.impossible()) is not None:
            observer("bad_index", queue=self._index, index=index, position=ring.base)
        else:
            return False
        return True

    def _show(self, request: Request, observer: Observer) -> None:
        observer(
            "request",
            queue=self._index,
            type=request.type,
            sector=request.sector,
            sent=request.sent,
            room=request.room,
            data=b"".join(pieces(request.data(), 0, SHOWN)).hex() if request.segmented else "",
        )

    def _begin(self, ring: Ring, chain: Chain, replayed: bool = False) -> None:
        job = Job(self._taken, chain, Request(chain), replayed)
        if self._observer:
            job.seen = [] if replayed else self._seen
            self._shown[job.number] = job
            self._show(job.request, self._observer)
        self._taken += 1
        self._jobs.append(job)
        due = self.due(job.request)
        if due <= time.monotonic():
            self._finish(ring, job)
        else:
            job.timer = self._loop.at(due, lambda: self._late(ring, job))

    def due(self, request: Request) -> float:
        """Return when a request may be done, by the monotonic clock (seconds)."""
        return self._throttle.turn() if self._block.takes_time(request) else 0.0

    def _late(self, ring: Ring, job: Job) -> None:
        """Execute a throttled request at its time, if it is still to be done."""
        if job.done or not any(waiting_job is job for waiting_job in self._jobs):
            return
        try:
            self._finish(ring, job)
            self._announce(ring)
        except BrokenError as error:
            assert self._broken
            self._broken(error)

    def _finish(self, ring: Ring, job: Job) -> None:
        if not job.done:
            job.length = self._block.serve(job.request)
            job.done = True
            self.mark_buffers(job.chain)
        for ready in self.ready(job):
            self._jobs.remove(ready)
            self.use(ring, ready)
        self._last = max(self._last, job.number)

    def _show_use(self, ring: Ring, job: Job, observer: Observer) -> None:
        """Tell the observer of a use, and of descriptors that have changed since they were taken.

        The use of a packed virtqueue overwrites a descriptor, perhaps one of another job, and gives
        the driver slots back that it may fill again.
        """
        now = ring.look_again(job.seen)
        if now != job.seen:
            observer("changed", queue=self._index, before=job.seen, after=now)
        observer("used", queue=self._index, id=job.chain.id, length=job.length)
        self._shown.pop(job.number, None)
        if slots := ring.given_up(job.chain):
            for other in self._shown.values():
                other.seen = [entry for entry in other.seen if entry[0] not in slots]

    def use(self, ring: Ring, job: Job) -> None:
        """Put a request that is done into the used ring, or mark its descriptors used."""
        if self._observer:
            self._show_use(ring, job, self._observer)
        if self._in_flight:
            self._in_flight.using(job.chain)
        ring.use(job.chain, job.length)
        if self._in_flight:
            self._in_flight.used(job.chain)
        self.mark_used_ring()

    def mark_buffers(self, chain: Chain) -> None:
        """Mark the elements of a chain that the device may have written to."""
        if self.dirty:
            for address, length in chain.places:
                self.dirty(address, length)

    def mark_used_ring(self) -> None:
        """Mark the part of the rings that the device writes to."""
        if not self.dirty or self.used_ring_log is None:
            return
        if self._block.has(Feature.RING_PACKED):
            self.dirty(self.used_ring_log, EVENT_SUPPRESSION.size)
            self.dirty(self._descriptors_at, DESC_SIZE * self.size)
        else:
            self.dirty(self.used_ring_log, used_size(self.size))

    def ready(self, job: Job) -> list[Job]:
        """Return the jobs that may be used now that `job` is done (virtio 6.2)."""
        if not self._block.has(Feature.IN_ORDER):
            return [job]
        done = next((n for n, other in enumerate(self._jobs) if not other.done), len(self._jobs))
        return self._jobs[:done]

    def _announce(self, ring: Ring) -> None:
        if ring.notification_due():
            self.notify()

    def notify(self) -> None:
        """Send a used buffer notification."""
        if self._observer:
            self._observer("interrupt", queue=self._index)
        self.signal()

    def _signal_call(self) -> None:
        """Signal the call descriptor of vhost-user, if there is one."""
        if self.call >= 0:
            os.eventfd_write(self.call, 1)
