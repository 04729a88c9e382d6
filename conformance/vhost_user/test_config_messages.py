"""The configuration space in messages (GET_CONFIG, SET_CONFIG, CONFIG_CHANGE)."""

import select

import pytest

from conformance.vhost_user.front_end import SIMPLE, check_ok, read
from conformance.waiting import QUIET, SOON
from harness.report import clause, on, reads_only
from harness.virtio.blk import CONFIG_FIELD
from harness.virtio.vhost_user import (
    CONFIG,
    HEADER,
    NEED_REPLY,
    REPLY,
    VERSION,
    VERSION_MASK,
    BackEndRequest,
    FrontEndRequest,
    ProtocolFeature,
)

pytestmark = on("vhost-user")

SIZES = (96, 72, 60, 36, 8)
"""Lengths of the configuration space, of which a back-end may show one."""

LENGTHS = (1, 2, 3, 4, 8, 20)
ANNOUNCES = (ProtocolFeature.BACKEND_REQ, ProtocolFeature.CONFIG)


def whole(vmm):
    """Return the configuration space, as much as the back-end shows at once."""
    for size in SIZES:
        if space := vmm.config(0, size)[CONFIG.size :]:
            return space
    pytest.skip("the back-end shows no configuration space")


@reads_only
@clause("VU-config-01")
def test_the_answer_is_as_long_as_the_question_or_empty(front):
    vmm = front(needs=[ProtocolFeature.CONFIG])
    size = len(whole(vmm))

    for offset in range(size + 1):
        for length in (*LENGTHS, size - offset or 1, size, 200):
            answer = len(vmm.config(offset, length))
            assert answer in (0, CONFIG.size + length), (
                f"{length} bytes at {offset}: the answer has {answer} bytes"
            )


@reads_only
@clause("VU-config-02")
def test_the_answer_has_the_bytes_at_the_offset(front):
    vmm = front(needs=[ProtocolFeature.CONFIG])
    space = whole(vmm)

    for offset in range(len(space)):
        for length in (1, 4, 8, len(space) - offset):
            answer = vmm.config(offset, length)[CONFIG.size :]
            expected = space[offset : offset + length]
            assert answer[: len(expected)] in (b"", expected), (
                f"{length} bytes at {offset} are {answer.hex()}, and {expected.hex()} in the whole"
            )


@clause("VU-config-03")
@pytest.mark.parametrize("name", ["capacity", "seg_max", "blk_size", "num_queues"])
def test_a_field_that_is_only_read_is_not_changed(front, name):
    vmm = front(needs=[ProtocolFeature.CONFIG])
    before = whole(vmm)
    field = CONFIG_FIELD[name]
    if field.offset + field.size > len(before):
        pytest.skip(f"the back-end does not show {name}")
    flags = VERSION | (NEED_REPLY if vmm.accepted(ProtocolFeature.REPLY_ACK) else 0)

    value = bytes(byte ^ 1 for byte in before[field.offset : field.offset + field.size])
    payload = CONFIG.pack(field.offset, field.size, 0) + value
    vmm.send(FrontEndRequest.SET_CONFIG, payload, flags=flags)
    if flags & NEED_REPLY:
        vmm.answer()  # whether the back-end refuses or ignores it, or hangs up
    vmm.close()

    assert whole(front()) == before


def next_message(vmm, timeout):
    """Return the next message on the back-end's channel, b"" if there is none in time."""
    ready, _, _ = select.select([vmm.requests], [], [], timeout)
    return vmm.requests.recv(4096) if ready else b""


def resizable(front):
    """Return a front-end with a back-end's channel, for a disk that can be resized."""
    vmm = front(protocol=SIMPLE, needs=ANNOUNCES)
    if not front.disk.resizable:
        pytest.skip("nobody here can change the capacity")
    return vmm


@clause("VU-config-04")
def test_a_change_is_told_by_a_well_formed_message(front):
    vmm = resizable(front)
    ring = vmm.begin()
    check_ok(ring.wait(ring.send(read())))

    capacity = 2 * front.disk.spec.capacity
    front.disk.resize(capacity)
    if int.from_bytes(vmm.config(0, 8)[CONFIG.size :], "little") != capacity:
        pytest.skip("the device shows the capacity that it had before the resize")
    message = next_message(vmm, SOON)
    if not message:
        pytest.skip("the device does not tell of the resize")

    assert len(message) % HEADER.size == 0, f"messages of {len(message)} bytes: {message.hex()}"
    for request, flags, size in HEADER.iter_unpack(message):
        assert request == BackEndRequest.CONFIG_CHANGE
        assert flags & (VERSION_MASK | REPLY) == VERSION, f"flags {flags:#x} of a request"
        assert size == 0
    check_ok(ring.wait(ring.send(read())))


@clause("VU-backend-01")
def test_a_device_with_stopped_rings_sends_no_message(front):
    vmm = resizable(front)
    ring = vmm.begin()
    check_ok(ring.wait(ring.send(read())))
    ring.stop()

    front.disk.resize(2 * front.disk.spec.capacity)

    assert next_message(vmm, QUIET) == b""
    vmm.barrier()
