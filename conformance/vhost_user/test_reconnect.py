"""A connection that ends with requests in flight, and the next one (INFLIGHT_SHMFD)."""

import os

import pytest

from conformance.vhost_user.front_end import SIZE, check_ok, read
from conformance.waiting import let_pass
from harness.driver.interface import Request
from harness.report import clause, on, reads_only
from harness.virtio.blk import ID_LENGTH, RequestType
from harness.virtio.features import Feature
from harness.virtio.vhost_user import INFLIGHT, FrontEndRequest, ProtocolFeature

pytestmark = on("vhost-user")

TRACKED = [ProtocolFeature.INFLIGHT_SHMFD]
GET_ID = Request(RequestType.GET_ID, receive=ID_LENGTH)
FORMATS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@reads_only
@clause("VU-inflight-01")
def test_a_region_for_requests_in_flight_has_its_file(front):
    vmm = front(needs=TRACKED)
    vmm.agree()

    vmm.track(size=SIZE)

    fd, answer = vmm.tracker
    assert len(answer) >= INFLIGHT.size - 4, f"the answer has {len(answer)} bytes"
    length, offset, queues, size = INFLIGHT.unpack(answer.ljust(INFLIGHT.size, b"\0"))
    assert length > 0
    assert os.fstat(fd).st_size >= offset + length, "the file ends before the region"
    assert (queues, size) == (1, SIZE)


def in_flight(front, packed, **fields):
    """Return a ring, and the requests that were sent: slow, fast, slow, fast and so on, and slow.

    The fast ones are used by now.
    """
    if packed:
        fields["packed"] = True
    vmm = front(needs=TRACKED, **fields)
    ring = vmm.begin(packed=packed)
    flights = []
    for n in range(5):
        flights += ring.send(read(n), GET_ID)
    ring.wait(flights[1::2])
    return ring, [*flights, *ring.send(read(5), read(6), read(7))]


def go_on(ring):
    """Set up a ring on a new connection, at the place after the last used chain."""
    vmm = ring.front
    vmm.agree(*([Feature.RING_PACKED] if ring.packed else []))
    vmm.track()
    vmm.share()
    ring.poll()
    ring.start(ring.now())
    vmm.ready()


def check_all_used_once(ring, flights):
    """Wait until all requests are used. AssertionError if one is used twice."""
    check_ok(ring.wait(flights, timeout=10))
    check_ok(ring.wait(ring.send(read(), GET_ID)))
    let_pass(0.05)
    ring.poll()
    assert not ring.again, f"chains {ring.again} are used twice"


@FORMATS
@reads_only
@clause("VU-inflight-02")
def test_requests_in_flight_are_done_again_by_the_next_process(front, packed):
    ring, flights = in_flight(front, packed, iops=25)
    if ring.done(flights) == len(flights):
        pytest.skip("no request is in flight any more")

    front.disk.restart()
    ring.front.reconnect(front.disk.hand_over())
    go_on(ring)

    check_all_used_once(ring, flights)


@FORMATS
@reads_only
@clause("VU-inflight-03")
def test_requests_in_flight_are_used_once_after_a_new_connection(front, packed):
    ring, flights = in_flight(front, packed, prefer={"iops": 50})

    ring.front.reconnect(front.disk.hand_over())
    go_on(ring)

    check_all_used_once(ring, flights)


@reads_only
@clause("VU-reconnect-01")
def test_on_a_new_connection_the_rings_are_stopped(front):
    vmm = front()
    ring = vmm.begin()
    check_ok(ring.wait(ring.send(read(0), read(1))))

    vmm.reconnect(front.disk.hand_over())
    vmm.agree()
    vmm.share()
    flights = ring.send(read(2))
    let_pass(disk=front.disk)
    assert ring.done(flights) == 0, "a ring of the last connection is still processed"

    ring.start(ring.now())
    vmm.ready()
    check_ok(ring.wait(flights))
    assert vmm.ask_number(FrontEndRequest.GET_FEATURES) == vmm.offered
