"""The base of a ring, at which it stops and goes on (GET_VRING_BASE, SET_VRING_BASE)."""

import pytest

from conformance.vhost_user.front_end import check_ok, read, signals
from conformance.waiting import let_pass
from harness.driver.interface import Request
from harness.report import clause, on, reads_only
from harness.virtio.blk import ID_LENGTH, RequestType
from harness.virtio.vhost_user import FrontEndRequest

pytestmark = on("vhost-user")

SLOW = {"prefer": {"iops": 30}}
"""A disk on which requests stay in flight for a while, where that can be arranged."""

GET_ID = Request(RequestType.GET_ID, receive=ID_LENGTH)


def taken(base):
    """Return how many descriptors of a packed ring of 16 are taken and used, by its base."""
    return tuple(
        (half & 0x7FFF) + (0 if half & 0x8000 else 16) for half in (base & 0xFFFF, base >> 16)
    )


@reads_only
@clause("VU-vring-base-01")
@pytest.mark.parametrize("index", [0, 1])
def test_the_base_is_the_available_index(front, index):
    vmm = front(prefer={"queues": 2})
    if index and vmm.queue_count() < 2:
        pytest.skip("the device has one queue")
    vmm.agree()
    vmm.share()
    ring = vmm.ring(index, size=4)
    ring.start()
    vmm.ready()

    for turn in range(11):
        check_ok(ring.wait(ring.send(read(turn))))

    assert ring.stop() == 11


@reads_only
@clause("VU-vring-base-01")
def test_the_base_of_a_ring_that_was_never_started_is_the_one_that_was_set(front):
    vmm = front()
    vmm.agree()
    vmm.share()
    ring = vmm.ring()
    ring.describe(base=0)

    assert ring.stop() == 0


@reads_only
@clause("VU-vring-base-02")
def test_a_stopped_ring_is_silent(front):
    vmm = front()
    ring = vmm.begin()
    check_ok(ring.wait(ring.send(read())))
    ring.stop()
    signals(ring.events.call)

    flights = ring.send(read(1), read(2))
    let_pass(disk=front.disk)

    assert ring.done(flights) == 0
    assert signals(ring.events.call) == 0
    assert vmm.ask_number(FrontEndRequest.GET_FEATURES) == vmm.offered


@reads_only
@clause("VU-vring-base-03")
def test_nothing_is_in_flight_when_the_base_is_returned(front):
    vmm = front(**SLOW)
    ring = vmm.begin()
    flights = ring.send(*[read(n) for n in range(12)], GET_ID)

    base = ring.stop()

    used = ring.queue.state().used_idx
    assert base == used, f"the base is {base}, and {used} chains are used"
    done = ring.done(flights)
    assert done == used
    images = [bytes(ring.front.regions[0].view)]
    let_pass(disk=front.disk)
    assert bytes(ring.front.regions[0].view) == images[0], "memory is written after the stop"


@reads_only
@clause("VU-vring-base-04")
@pytest.mark.parametrize("in_flight", [False, True], ids=["idle", "in flight"])
def test_a_ring_goes_on_at_its_base(front, in_flight):
    vmm = front(**(SLOW if in_flight else {}))
    ring = vmm.begin()
    flights = []
    for turn in range(4):
        sent = ring.send(read(turn), GET_ID, read(turn + 1))
        flights += sent
        if not in_flight:
            check_ok(ring.wait(sent))
        base = ring.stop()
        ring.start(base)

    check_ok(ring.wait(flights, timeout=10))
    let_pass(0.05, disk=front.disk)
    ring.poll()
    assert not ring.again, f"chains {ring.again} are used twice"
    assert ring.queue.state().used_idx == len(flights)


@reads_only
@clause("VU-vring-base-05")
def test_a_packed_ring_goes_on_at_its_base(front):
    vmm = front(prefer={"packed": True})
    ring = vmm.begin(packed=True, size=16)
    descriptors = 0
    for turn in range(9):
        check_ok(ring.wait(ring.send(read(turn), read(turn + 1))))
        descriptors += 6
        base = ring.stop()
        assert taken(base) == (descriptors % 32, descriptors % 32), f"the base is {base:#x}"
        ring.start(base)
    assert not ring.again


@reads_only
@clause("VU-vring-base-06")
@pytest.mark.parametrize("start", [1, 0x7FFE, 0xFFFD])
def test_a_ring_begins_where_the_front_end_says(front, start):
    vmm = front()
    vmm.agree()
    vmm.share()
    ring = vmm.ring()
    ring.queue.begin_at(start)
    ring.start(base=start)
    vmm.ready()

    for turn in range(5):
        check_ok(ring.wait(ring.send(read(turn))))

    assert ring.queue.state().used_idx == (start + 5) & 0xFFFF
    assert ring.stop() == (start + 5) & 0xFFFF
