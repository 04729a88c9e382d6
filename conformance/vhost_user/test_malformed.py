"""Messages that a front-end may not send, and a second front-end: the back-end has to survive.

The document says that a back-end may close the connection when it finds an error. So the device is
judged by a new connection afterwards: it has to be accepted, and the device has to work.
"""

import os
import time
from contextlib import contextmanager

import pytest

from conformance.vhost_user.front_end import ANSWERS, BUS, USER, check_ok, read
from harness.driver.errors import DriverError
from harness.driver.transport.vhost_channel import Channel
from harness.report import hardening, on
from harness.report.hardened import EVIDENCE, RING, VERDICT
from harness.robustness.fate import Fate
from harness.robustness.process_watch import Judgement, ProcessWatch
from harness.virtio.vhost_user import (
    CONFIG,
    INFLIGHT,
    LOG,
    REGION,
    REPLY,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_STATE,
    FrontEndRequest,
)

pytestmark = [on("vhost-user"), pytest.mark.reads_only]

MOMENT = 0.1
"""Seconds in which a back-end reacts to a message, if it does."""

PAYLOADS = {
    FrontEndRequest.SET_FEATURES: U64.pack(1 << 32 | 1 << 30),
    FrontEndRequest.SET_PROTOCOL_FEATURES: U64.pack(1 << 9),
    FrontEndRequest.SET_MEM_TABLE: U64.pack(1) + REGION.pack(BUS, 1 << 20, USER, 0)[8:],
    FrontEndRequest.SET_LOG_BASE: LOG.pack(4096, 0),
    FrontEndRequest.SET_VRING_NUM: VRING_STATE.pack(0, 64),
    FrontEndRequest.SET_VRING_ADDR: VRING_ADDR.pack(0, 0, USER, USER, USER, 0),
    FrontEndRequest.SET_VRING_BASE: VRING_STATE.pack(0, 0),
    FrontEndRequest.GET_VRING_BASE: VRING_STATE.pack(0, 0),
    FrontEndRequest.SET_VRING_KICK: U64.pack(0),
    FrontEndRequest.SET_VRING_CALL: U64.pack(0),
    FrontEndRequest.SET_VRING_ENABLE: VRING_STATE.pack(0, 1),
    FrontEndRequest.GET_CONFIG: CONFIG.pack(0, 8, 0) + bytes(8),
    FrontEndRequest.SET_CONFIG: CONFIG.pack(32, 1, 0) + bytes(1),
    FrontEndRequest.GET_INFLIGHT_FD: INFLIGHT.pack(0, 0, 1, 64),
    FrontEndRequest.SET_INFLIGHT_FD: INFLIGHT.pack(4096, 0, 1, 64),
    FrontEndRequest.ADD_MEM_REG: REGION.pack(BUS + (1 << 30), 1 << 20, USER + (1 << 30), 0),
    FrontEndRequest.REM_MEM_REG: REGION.pack(BUS, 1 << 20, USER, 0),
    FrontEndRequest.SET_STATUS: U64.pack(0),
}
"""Messages with a payload, and one that makes sense."""

WITH_A_FILE = {
    FrontEndRequest.SET_MEM_TABLE,
    FrontEndRequest.SET_LOG_BASE,
    FrontEndRequest.SET_VRING_KICK,
    FrontEndRequest.SET_INFLIGHT_FD,
    FrontEndRequest.ADD_MEM_REG,
}

OF_A_RING = {
    FrontEndRequest.SET_VRING_NUM: VRING_STATE.pack(0xFFFF_FFFF, 64),
    FrontEndRequest.SET_VRING_ADDR: VRING_ADDR.pack(0xFFFF_FFFF, 0, USER, USER, USER, 0),
    FrontEndRequest.SET_VRING_BASE: VRING_STATE.pack(0xFFFF_FFFF, 0),
    FrontEndRequest.GET_VRING_BASE: VRING_STATE.pack(200, 0),
    FrontEndRequest.SET_VRING_CALL: U64.pack(200),
    FrontEndRequest.SET_VRING_ENABLE: VRING_STATE.pack(0x8000_0000, 1),
}
"""Messages about a virtqueue that does not exist, most of them far beyond the last: a back-end that
writes beyond its array by a little damages its own memory, and may end in a later test."""

EACH = pytest.mark.parametrize("request_", list(PAYLOADS), ids=lambda number: number.name)


@pytest.fixture
def victim(front, request):
    """A front-end whose back-end is judged after the test's messages."""

    @contextmanager
    def make():
        vmm = front()
        vmm.begin()
        watch = ProcessWatch(front.disk.processes())
        with watch.guarded():
            yield vmm
            judgement = judged(front, vmm, watch)
        request.node.user_properties += [
            (RING, "split"),
            (VERDICT, str(judgement.fate)),
            (EVIDENCE, judgement.evidence),
        ]
        if not judgement.fate.tolerable:
            front.disk.kill()
        assert judgement.fate.tolerable, str(judgement)

    return make


def judged(front, vmm, watch):
    """Return the verdict on the device, by the old connection and by a new one."""
    hung_up = vmm.answer(MOMENT) is None
    vmm.close()
    if dead := watch.dead(hung_up):
        return dead
    trouble = "nothing was tried"
    deadline = time.monotonic() + ANSWERS
    while time.monotonic() < deadline:
        again = None
        try:
            again = front()
            ring = again.begin()
            check_ok(ring.wait(ring.send(read(0), read(1))))
        except (AssertionError, DriverError) as error:
            trouble = str(error)
            if again:
                again.close()  # a back-end may serve one connection at a time
            if dead := watch.dead(True):
                return dead
            time.sleep(MOMENT)
        else:
            again.close()
            if dead := watch.dead(False) or watch.growth():
                return dead
            if hung_up:
                return Judgement(Fate.RECOVERED, "it hung up, and works on a new connection")
            return Judgement(Fate.REJECTED, "it went on, and works on a new connection")
    return Judgement(Fate.WEDGED, f"on a new connection: {trouble}")


@hardening("VU", "a version that is not 1")
@pytest.mark.parametrize("version", [0, 2, 3])
def test_another_version(victim, version):
    with victim() as vmm:
        vmm.send(FrontEndRequest.GET_FEATURES, flags=version)


@hardening("VU", "the reply flag in a request")
def test_a_request_that_says_it_is_a_reply(victim):
    with victim() as vmm:
        vmm.send(FrontEndRequest.GET_FEATURES, flags=VERSION | REPLY)


@hardening("VU", "flags that are not defined")
def test_undefined_flags(victim):
    with victim() as vmm:
        vmm.send(FrontEndRequest.GET_FEATURES, flags=0xFFFF_FFF1 & ~REPLY)


@hardening("VU", "a request that is not defined")
@pytest.mark.parametrize("number", [0, 99, 0x7FFF_FFFF, 0xFFFF_FFFF])
@pytest.mark.parametrize("length", [0, 8])
def test_an_undefined_request(victim, number, length):
    with victim() as vmm:
        vmm.send(number, bytes(length))


@EACH
@hardening("VU", "a message without its payload")
def test_a_message_without_its_payload(victim, request_):
    with victim() as vmm:
        vmm.send(request_)


@EACH
@hardening("VU", "a payload that is too short")
def test_a_payload_that_is_too_short(victim, request_):
    with victim() as vmm:
        vmm.send(request_, PAYLOADS[request_][:4])


@EACH
@hardening("VU", "a payload that is too long")
def test_a_payload_that_is_too_long(victim, request_):
    with victim() as vmm:
        files = [vmm.regions[0].fd] if request_ in WITH_A_FILE else []
        vmm.send(request_, PAYLOADS[request_] + bytes(40), files)


@hardening("VU", "a size beyond that of any message")
@pytest.mark.parametrize("size", [5000, 1 << 20, 0x8000_0000, 0xFFFF_FFFF])
def test_a_size_beyond_any_message(victim, size):
    with victim() as vmm:
        vmm.send(FrontEndRequest.GET_FEATURES, bytes(64), size=size)


@hardening("VU", "a connection that ends within a message")
@pytest.mark.parametrize("length", [0, 4])
def test_a_connection_that_ends_within_a_message(victim, length):
    with victim() as vmm:
        vmm.send(FrontEndRequest.SET_FEATURES, bytes(length), size=8)
        vmm.hang_up()


@hardening("VU", "a message without its file descriptor")
@pytest.mark.parametrize("request_", sorted(WITH_A_FILE), ids=lambda number: number.name)
def test_a_message_without_its_descriptor(victim, request_):
    with victim() as vmm:
        vmm.send(request_, PAYLOADS[request_])


@EACH
@hardening("VU", "more file descriptors than a message has")
def test_more_descriptors_than_a_message_has(victim, request_):
    with victim() as vmm:
        fds = [os.eventfd(0) for _ in range(8)]
        try:
            vmm.send(request_, PAYLOADS[request_], fds)
        finally:
            for fd in fds:
                os.close(fd)


@hardening("VU", "a virtqueue that does not exist")
@pytest.mark.parametrize("request_", list(OF_A_RING), ids=lambda number: number.name)
def test_a_virtqueue_that_does_not_exist(victim, request_):
    with victim() as vmm:
        vmm.send(request_, OF_A_RING[request_])


@hardening("VU", "a queue size that is not possible")
@pytest.mark.parametrize("size", [0, 3, 0x1_0000, 0xFFFF_FFFF])
def test_an_impossible_queue_size(victim, size):
    with victim() as vmm:
        vmm.rings[0].stop()
        vmm.send(FrontEndRequest.SET_VRING_NUM, VRING_STATE.pack(0, size))
        vmm.rings[0].notify()


@hardening("VU", "a ring outside the memory")
@pytest.mark.parametrize("address", [0, USER - 4096, USER + (1 << 20) - 16, (1 << 64) - 4096])
def test_a_ring_outside_the_memory(victim, address):
    with victim() as vmm:
        vmm.rings[0].stop()
        message = VRING_ADDR.pack(0, 0, address, address, address, 0)
        vmm.send(FrontEndRequest.SET_VRING_ADDR, message)
        vmm.send(FrontEndRequest.SET_VRING_KICK, U64.pack(0), [vmm.rings[0].events.kick])
        vmm.rings[0].notify()


@hardening("VU", "a memory table whose count is wrong")
@pytest.mark.parametrize("count", [0, 2, 9, 0xFFFF_FFFF])
def test_a_memory_table_with_a_wrong_count(victim, count):
    with victim() as vmm:
        entry = REGION.pack(*vmm.regions[0].entry)[8:]
        vmm.send(FrontEndRequest.SET_MEM_TABLE, U64.pack(count) + entry, [vmm.regions[0].fd])


@hardening("VU", "a configuration message about other bytes than there are")
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 0xFFFF_FFFF), (0xFFFF_FFFF, 8), (0xFFFF_FFF8, 8), (0, 257)]
)
@pytest.mark.parametrize("request_", ["GET_CONFIG", "SET_CONFIG"])
def test_a_configuration_message_beyond_the_end(victim, request_, offset, size):
    with victim() as vmm:
        message = CONFIG.pack(offset, size, 0) + bytes(8)
        vmm.send(FrontEndRequest[request_], message)


@hardening("VU", "a second front-end while the first is connected")
def test_a_second_front_end(victim):
    with victim() as vmm:
        ring = vmm.rings[0]
        second = Channel(vmm.path, ANSWERS)
        try:
            for n in range(5):
                check_ok(ring.wait(ring.send(read(n))))
            vmm.barrier()
        finally:
            second.close()
        check_ok(ring.wait(ring.send(read())))
