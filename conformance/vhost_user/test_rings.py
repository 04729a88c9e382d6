"""Rings that are started, stopped, enabled and disabled."""

import pytest

from conformance.data import sectors
from conformance.vhost_user.front_end import (
    SIZE,
    Events,
    check_ok,
    read,
    signals,
    write,
)
from conformance.waiting import eventually, let_pass
from harness.report import clause, on, reads_only
from harness.virtio.vhost_user import U64, FrontEndRequest

pytestmark = on("vhost-user")


@reads_only
@clause("VU-ring-01")
def test_a_ring_without_a_kick_descriptor_is_not_processed(front):
    vmm = front()
    vmm.agree()
    vmm.share()
    ring = vmm.ring()
    flights = ring.send(read())

    ring.describe()
    ring.enable()
    vmm.ready()
    let_pass(disk=front.disk)

    assert ring.done(flights) == 0
    assert signals(ring.events.call) <= 1  # one may stand for a signal on an earlier descriptor


@clause("VU-ring-02")
def test_a_ring_that_was_never_enabled_does_not_change_the_disk(front):
    vmm = front()
    front.disk.backing.write(0, sectors(1))
    vmm.agree()
    vmm.share()
    ring = vmm.ring()
    ring.describe()
    ring.send(write(0, sectors(1, salt=9)))

    ring.give_kick()
    vmm.barrier()
    vmm.ready()
    let_pass(disk=front.disk)

    assert front.disk.backing.read(0, 1) == sectors(1)


@reads_only
@clause("VU-ring-03")
def test_a_kick_before_the_ring_is_enabled_is_not_forgotten(front):
    vmm = front()
    vmm.agree()
    vmm.share()
    ring = vmm.ring()
    ring.describe()
    flights = ring.send(read(0), read(1), read(2))
    ring.give_kick()
    vmm.ready()
    vmm.barrier()
    let_pass(disk=front.disk)

    ring.enable()

    check_ok(ring.wait(flights))
    assert not ring.again


@clause("VU-ring-04")
def test_a_ring_that_is_disabled_does_not_change_the_disk(front):
    vmm = front()
    ring = vmm.begin()
    front.disk.backing.write(0, sectors(2))
    check_ok(ring.wait(ring.send(read(0))))

    ring.enable(False)
    flights = ring.send(write(0, sectors(1, salt=9)), write(1, sectors(1, salt=5)))
    let_pass(disk=front.disk)

    assert front.disk.backing.read(0, 2) == sectors(2)
    assert ring.done(flights) == 0


@reads_only
@clause("VU-ring-04")
@pytest.mark.parametrize("kick", [True, False], ids=["kicked", "silent"])
def test_a_ring_that_is_enabled_again_goes_on_where_it_was(front, kick):
    vmm = front()
    ring = vmm.begin()
    used = 0
    for turn in range(4):
        check_ok(ring.wait(ring.send(*[read(n) for n in range(3)])))
        ring.enable(False)
        flights = ring.send(read(turn), read(turn + 1), kick=kick)
        ring.enable()
        if not kick:
            ring.notify()
        check_ok(ring.wait(flights))
        used += 5
        assert ring.queue.state().used_idx == used
    assert not ring.again


@reads_only
@clause("VU-ring-05")
def test_features_without_protocol_features_enable_the_rings(front):
    vmm = front()
    vmm.share()
    ring = vmm.ring()
    flights = ring.send(read(0), read(1))

    vmm.agree(protocol=False)
    ring.describe()
    ring.give_kick()
    vmm.ready()

    check_ok(ring.wait(flights))


@reads_only
@clause("VU-ring-06")
def test_the_call_descriptor_is_replaced_while_the_ring_runs(front):
    vmm = front()
    ring = vmm.begin()
    check_ok(ring.wait(ring.send(read())))
    old = ring.events
    new = Events.new()
    vmm.tell(FrontEndRequest.SET_VRING_CALL, U64.pack(0), [new.call])
    vmm.barrier()
    signals(new.call)
    signals(old.call)

    check_ok(ring.wait(ring.send(read())))

    assert eventually(lambda: signals(new.call) > 0), "nothing is signalled on the new descriptor"
    assert signals(old.call) == 0
    new.close()


@reads_only
@clause("VU-ring-06")
def test_the_kick_descriptor_is_replaced_while_the_ring_runs(front):
    vmm = front()
    ring = vmm.begin()
    check_ok(ring.wait(ring.send(read())))
    old, ring.events = ring.events, Events.new()

    ring.give_kick()
    vmm.barrier()
    old.close()
    for turn in range(3):
        check_ok(ring.wait(ring.send(read(turn))))

    assert ring.queue.state().used_idx == 4


@reads_only
@clause("VU-queue-num-01")
def test_all_virtqueues_can_be_used_at_once(front):
    vmm = front(prefer={"queues": 4})
    count = min(vmm.queue_count(), 16)
    assert count > 0, "GET_QUEUE_NUM returns 0"
    vmm.agree()
    vmm.share()
    rings = [vmm.ring(index, SIZE) for index in range(count)]
    for ring in rings:
        ring.start()
    vmm.ready()

    flights = [ring.send(read(ring.index), read(ring.index + 1)) for ring in rings]

    for ring, sent in zip(rings, flights, strict=True):
        check_ok(ring.wait(sent))
        assert not ring.again
        assert eventually(lambda ring=ring: signals(ring.events.call) > 0)
