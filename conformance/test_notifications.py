"""Notifications in both directions under load, and of each virtqueue (virtio 2.3, 2.7, 2.8)."""

from __future__ import annotations

import random
import time

import pytest

from conformance.contents import Contents
from conformance.data import needed
from conformance.kinds import KINDS, UNIT, act
from conformance.rings import RingWrapper, both_rings, plug_ring
from conformance.waiting import PATIENCE, SOON, let_pass, settled
from harness.driver.errors import DeviceTimeoutError
from harness.driver.interface import Request
from harness.report import clause, described, on, reads_only
from harness.virtio.blk import ID_LENGTH, RequestType, Status
from harness.virtio.features import Feature, mask

SMALL = {"capacity": 64, "queues": 4}
"""A disk that can be compared as a whole, with several queues, where it is made for the test."""

MOST_QUEUES = 4
SIZE = 16
"""Descriptors of a queue: it wraps around often, and has room for several requests."""

ROUNDS = 200
SECONDS = 1.5
"""Rounds of a test, and the seconds after which a slow device skips the other rounds."""

LONGEST_PAUSE = 0.0005
"""Seconds of the longest pause: about the time of a request, so that one ends as the next begins.
"""

MIXED = (
    RequestType.IN,
    RequestType.OUT,
    RequestType.FLUSH,
    RequestType.WRITE_ZEROES,
)

GET_ID = Request(RequestType.GET_ID, receive=ID_LENGTH)


def ways(flags, event, packed_flags, packed_event):
    """Return a decorator for both rings, with flags and with positions (EVENT_IDX).

    The arguments are the marks with the statement of each way.
    """
    event_idx = [Feature.EVENT_IDX]
    return pytest.mark.parametrize(
        ("packed", "extra"),
        [
            pytest.param(False, [], id="split-flags", marks=flags),
            pytest.param(False, event_idx, id="split-event", marks=event),
            pytest.param(True, [], id="packed-flags", marks=packed_flags),
            pytest.param(True, event_idx, id="packed-event", marks=packed_event),
        ],
    )


class Load:
    """Random requests of several types on several queues, with the expected contents."""

    def __init__(self, plug, packed, extra):
        self.disk = plug_ring(plug, packed, extra=extra, prefer=SMALL)
        self.driver = self.disk.driver
        self.queues = min(self.driver.config().num_queues or 1, MOST_QUEUES)
        legacy = self.driver.transport_kind().endswith("legacy")
        size = None if legacy else min(SIZE, self.disk.queues[0].size)
        self.disk.start(self.driver.accepted(), self.queues, size)
        self.driver.suppress_notifications(True)
        self.contents, self.config = Contents(self.disk), self.driver.config()
        features = self.driver.accepted()
        self._turn = 0
        self.kinds = [
            kind
            for kind in KINDS
            if kind.type in MIXED and not mask(*kind.features) & ~features and self._serves(kind)
        ]
        if not self.kinds:
            pytest.skip("the device fails ordinary requests of all types")
        # Requests that are in flight together lie on different sectors.
        room = self.disk.queues[0].size // 3
        self.most = max(min(room, 3, self.contents.count // UNIT - 1), 1)
        self.chosen = random.Random(21)
        self._end = time.monotonic() + SECONDS

    def _serves(self, kind):
        """Return False for a type whose ordinary request fails: other tests judge that."""
        sent = act(kind, self.config, self.contents)
        completion = self.disk.send(sent.request)
        if completion.status != Status.OK:
            return False
        sent.check(completion, "alone")
        return True

    def rounds(self):
        """Yield numbers from 0 on: ROUNDS of them, fewer on a slow device."""
        for number in range(ROUNDS):
            if time.monotonic() > self._end:
                return
            yield number

    def next(self):
        """Return a request on other sectors than the ones before it."""
        self._turn += 1
        return act(self.chosen.choice(self.kinds), self.config, self.contents, self._turn)

    def pause(self):
        """Wait a random time, without a system call: a sleep takes longer than a request."""
        until = time.perf_counter() + self.chosen.uniform(0, LONGEST_PAUSE)
        while time.perf_counter() < until:
            pass


@ways(
    described("2.7.10-P-01"),
    described("2.7.10-P-01"),
    described("2.8.10-P-01"),
    described("2.8.10-P-01"),
)
def test_no_notification_that_the_device_needs_is_left_out(plug, packed, extra):
    """The driver notifies where the device asks for it, and publishes while the device works."""
    load = Load(plug, packed, extra)

    for number in load.rounds():
        queue = load.chosen.randrange(load.queues)
        sent, tokens = [], []
        for _ in range(load.chosen.randint(1, load.most)):
            sent.append(load.next())
            tokens += load.driver.submit([sent[-1].request], queue)
            load.pause()
        types = ", ".join(request.kind.type.name for request in sent)
        way = f"in round {number} on queue {queue} (with {types})"
        try:
            completions = load.driver.complete(tokens, PATIENCE)
        except DeviceTimeoutError as error:
            state = load.driver.queue_state(queue)
            raise AssertionError(f"{way}: {error.message}; {state}") from None
        for request, completion in zip(sent, completions, strict=True):
            request.check(completion, way)
    load.contents.check("requests that were notified of only when asked for")


@ways(
    clause("2.7.7.2-D-03"),
    clause("2.7.7.2-D-05"),
    described("2.8.10-P-03"),
    described("2.8.10-P-02"),
)
def test_no_interrupt_that_the_driver_asks_for_is_left_out(plug, packed, extra):
    """The driver looks at the rings only after an interrupt, and asks for the next one then."""
    load = Load(plug, packed, extra)

    for number in load.rounds():
        seen = load.driver.interrupts().queue
        tokens, acts = [], []
        for _ in range(load.chosen.randint(1, load.most)):
            acts.append(load.next())
            tokens += load.driver.submit([acts[-1].request], load.chosen.randrange(load.queues))
        missing = set(tokens)
        end = time.monotonic() + PATIENCE
        while missing:
            try:
                seen = load.driver.wait_interrupt("queue", above=seen, timeout=SOON).queue
            except DeviceTimeoutError:
                if used := missing & set(load.driver.completed()):
                    let_pass()  # they may have been used just now
                    silent = load.driver.interrupts().queue <= seen
                    assert not silent, f"round {number}: {len(used)} requests without an interrupt"
                elif time.monotonic() > end:
                    raise
            missing -= set(load.driver.completed())
        way = f"in round {number}"
        for request, completion in zip(acts, load.driver.complete(tokens), strict=True):
            request.check(completion, way)


@both_rings
@on("vhost-user")
@described("2.3-P-01")
def test_a_completion_is_signalled_on_its_own_queue(plug, packed):
    """Alone, in both orders of the queues, then on all queues at once."""
    disk = plug_ring(plug, packed, prefer={"queues": 4})
    driver, features = disk.driver, disk.driver.accepted()
    count = min(driver.config().num_queues or 1, 8)
    if count < 2:
        pytest.skip("the device has 1 request virtqueue")
    disk.start(features, count)

    def signals():
        return driver.interrupts().queues[:count]

    for queues in (*([n] for n in (*range(count), *reversed(range(count)))), [*range(count)]):
        before = settled(disk).queues[:count]
        tokens = []
        for queue in queues:
            tokens += driver.submit([GET_ID], queue)
        for completion in driver.complete(tokens):
            needed(completion, "GET_ID")
        end = time.monotonic() + SOON
        while (silent := [n for n in queues if signals()[n] <= before[n]]) and (
            time.monotonic() < end
        ):
            time.sleep(0.001)
        after = signals()
        assert not silent, (
            f"requests on queues {queues}: no signal on queues {silent};"
            f" signals of each queue before {before}, after {after}"
        )


@described("2.7.10-P-01")
@reads_only
def test_with_event_idx_requests_are_served_where_the_index_wraps_around(plug):
    """The driver notifies only where avail_event asks for it."""
    disk = plug(extra=[Feature.EVENT_IDX], without=[Feature.NOTIFICATION_DATA])
    disk.needs_descriptors(64)
    requests = RingWrapper(disk, suppressed=True)
    requests.turn(0xFFF0)

    for _ in range(0x20):
        requests.turn(1)
