"""Messages and their replies, and protocol features."""

import os

import pytest

from conformance.vhost_user.front_end import SIMPLE, TAKEN, check_ok, read
from harness.report import clause, on, reads_only
from harness.virtio.vhost_user import (
    CONFIG,
    FEATURE_PROTOCOL,
    NEED_REPLY,
    REGION,
    U64,
    VERSION,
    VRING_STATE,
    FrontEndRequest,
    ProtocolFeature,
)

pytestmark = on("vhost-user")

MOMENT = 0.05
"""Seconds to wait for a second reply, which must not come."""

SOME_CONFIG = CONFIG.pack(0, 8, 0) + bytes(8)

QUESTIONS = {
    FrontEndRequest.GET_FEATURES: b"",
    FrontEndRequest.GET_PROTOCOL_FEATURES: b"",
    FrontEndRequest.GET_QUEUE_NUM: b"",
    FrontEndRequest.GET_CONFIG: SOME_CONFIG,
    FrontEndRequest.GET_VRING_BASE: VRING_STATE.pack(0, 0),
}
"""Messages with a reply of their own, and their payload."""

OF_A_FEATURE = {
    FrontEndRequest.GET_QUEUE_NUM: ProtocolFeature.MQ,
    FrontEndRequest.GET_CONFIG: ProtocolFeature.CONFIG,
}
"""Messages that a front-end sends only if a protocol feature was accepted."""

CHOSEN = [ProtocolFeature.REPLY_ACK]

ASKS = VERSION | NEED_REPLY


@reads_only
@clause("VU-header-01")
def test_replies_have_the_form_of_a_reply(front):
    vmm = front()
    vmm.begin()

    for request, payload in questions(vmm).items():
        vmm.send(request, payload)
        assert len(vmm.reply(request)) in (8, len(payload), 0)
        assert vmm.answer(MOMENT) == b"", f"more than one reply to {request.name}"


@reads_only
@clause("VU-features-01")
def test_protocol_features_are_negotiated_before_the_features(front):
    vmm = front()

    assert vmm.ask_number(FrontEndRequest.GET_PROTOCOL_FEATURES) == vmm.has
    vmm.tell(FrontEndRequest.SET_PROTOCOL_FEATURES, U64.pack(vmm.protocol))
    ring = vmm.begin()

    check_ok(ring.wait(ring.send(read())))


def questions(vmm):
    """Return the messages of QUESTIONS that this front-end may send, with their payload."""
    return {
        request: payload
        for request, payload in QUESTIONS.items()
        if request not in OF_A_FEATURE or vmm.accepted(OF_A_FEATURE[request])
    }


def check_works(vmm):
    """Start the device and read from it."""
    ring = vmm.begin()
    check_ok(ring.wait(ring.send(read(0), read(1))))
    assert ring.stop() == 2


@reads_only
@clause("VU-features-02")
@pytest.mark.parametrize("left_out", list(ProtocolFeature), ids=lambda feature: feature.name)
def test_the_device_works_without_a_protocol_feature(front, left_out):
    vmm = front(protocol=[feature for feature in ProtocolFeature if feature is not left_out])

    check_works(vmm)


@reads_only
@clause("VU-features-02")
@pytest.mark.parametrize("only", [None, *SIMPLE], ids=lambda only: only.name if only else "none")
def test_the_device_works_with_few_protocol_features(front, only):
    check_works(front(protocol=[only] if only else []))


@reads_only
@clause("VU-reply-ack-01")
def test_each_message_that_asks_for_it_is_acknowledged(front):
    vmm = front(needs=CHOSEN)
    ring = vmm.ring()
    region, layout = vmm.regions[0], ring.queue.layout
    features = vmm.offered & TAKEN | FEATURE_PROTOCOL
    table = (1).to_bytes(8, "little") + REGION.pack(*region.entry)[8:]
    messages = [
        (FrontEndRequest.SET_FEATURES, U64.pack(features), []),
        (FrontEndRequest.SET_MEM_TABLE, table, [region.fd]),
        (FrontEndRequest.SET_VRING_NUM, VRING_STATE.pack(0, layout.size), []),
        (FrontEndRequest.SET_VRING_BASE, VRING_STATE.pack(0, 0), []),
        (FrontEndRequest.SET_VRING_ADDR, ring.address(), []),
        (FrontEndRequest.SET_VRING_ERR, U64.pack(0), [ring.events.error]),
        (FrontEndRequest.SET_VRING_CALL, U64.pack(0), [ring.events.call]),
        (FrontEndRequest.SET_VRING_KICK, U64.pack(0), [ring.events.kick]),
        (FrontEndRequest.SET_VRING_ENABLE, VRING_STATE.pack(0, 1), []),
    ]

    for request, payload, fds in messages:
        vmm.send(request, payload, fds, ASKS)
        assert vmm.reply(request) == U64.pack(0), f"{request.name} is not acknowledged with 0"
        assert vmm.answer(0.01) == b"", f"more than one reply to {request.name}"


@reads_only
@clause("VU-reply-ack-02")
def test_memory_that_cannot_be_mapped_is_not_acknowledged(front):
    vmm = front(needs=CHOSEN)
    vmm.agree()
    table = (1).to_bytes(8, "little") + REGION.pack(*vmm.regions[0].entry)[8:]
    fds = os.pipe()
    try:
        vmm.send(FrontEndRequest.SET_MEM_TABLE, table, fds[:1], ASKS)
        answer = vmm.answer()
    finally:
        for fd in fds:
            os.close(fd)

    if answer is not None:  # the back-end may also close the connection
        assert answer, "SET_MEM_TABLE with REPLY_ACK is not answered"
        assert answer[12:] != U64.pack(0), "memory that cannot be mapped is acknowledged"


@reads_only
@clause("VU-reply-ack-03")
def test_a_message_with_its_own_reply_has_no_second_one(front):
    vmm = front(needs=CHOSEN)
    vmm.begin()

    for request, payload in questions(vmm).items():
        vmm.send(request, payload)
        plain = vmm.reply(request)
        vmm.send(request, payload, flags=ASKS)
        assert vmm.reply(request) == plain
        assert vmm.answer(MOMENT) == b"", f"more than one reply to {request.name}"
