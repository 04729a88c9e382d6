"""Administration virtqueues: lengths of buffers, what is written, order (virtio 2.13.1)."""

from dataclasses import replace

import pytest

from conformance.administration import (
    RESERVED_GROUP,
    UNKNOWN_OPCODE,
    Objects,
    need,
    owner,
    shown,
    start,
)
from conformance.data import untouched
from harness.driver.admin import Command
from harness.driver.interface import CANARY
from harness.report import clause, described, on
from harness.virtio.admin import (
    ANSWER,
    COMMAND,
    GETS,
    METADATA,
    METADATA_COUNT,
    METADATA_LIST,
    OBJECT,
    OBJECT_DEV_PARTS,
    OBJECT_HEAD,
    PARTS_OBJECT,
    PARTS_QUESTION,
    AdminStatus,
    Group,
    Opcode,
)
from harness.virtio.features import Feature

pytestmark = on("pci", "modern")

WORD = 8
"""Bytes of the unit that the parts of a command are multiples of."""


def list_query(queue, room=128):
    """Return the answer to a LIST_QUERY as the specification describes it; skip if it fails."""
    return need(queue.exchange([Command.of(Opcode.LIST_QUERY, room=room)])[0], "LIST_QUERY")


@clause("2.13.1-D-01", "2.13.1-D-04")
def test_a_command_that_ends_early_has_zeros_behind_its_end(plug):
    _, queue = owner(plug)
    whole = list_query(queue)

    for length in (WORD, 2 * WORD):
        sent = Command.of(Opcode.LIST_QUERY).sent[:length]
        answer = queue.exchange([Command(sent, ANSWER.size + 128)])[0]

        assert answer.status == AdminStatus.OK, f"{length} bytes: {shown(answer)}"
        assert answer.result == whole.result


@clause("2.13.1-D-01", "2.13.1-D-04")
def test_a_result_without_room_is_left_out(plug):
    _, queue = owner(plug)
    list_query(queue)

    answer = queue.exchange([Command.of(Opcode.LIST_QUERY, room=0)])[0]

    assert answer.status == AdminStatus.OK, shown(answer)
    assert answer.used <= ANSWER.size, shown(answer)


@clause("2.13.1-D-02", "2.13.1-D-04")
def test_what_follows_a_command_is_ignored(plug):
    _, queue = owner(plug)
    whole = list_query(queue)
    sent = Command.of(Opcode.LIST_QUERY, data=b"\xa5" * 64).sent

    answer = queue.exchange([Command(sent, ANSWER.size + 128)])[0]

    assert answer.status == AdminStatus.OK, shown(answer)
    assert answer.result == whole.result


MORE_THAN_ALL = 8192
"""Bytes: twice the longest list of commands."""


@clause("2.13.1-D-02")
def test_only_the_result_is_written_and_counted(plug):
    _, queue = owner(plug)

    whole = list_query(queue, room=MORE_THAN_ALL).used
    if 1016 <= whole < MORE_THAN_ALL:
        pytest.skip(f"the device has a list of {whole} bytes, which fills the buffer")
    answer = list_query(queue, room=1016)

    written = len(answer.written.rstrip(bytes([CANARY])))
    assert answer.used == written, f"{written} bytes were written, {answer.used} are counted"
    assert written < len(answer.written), "the whole buffer was written"


@clause("2.13.1-D-03")
def test_a_result_is_written_also_where_it_is_zero(plug):
    _, queue = owner(plug)

    for room in (WORD, 2 * WORD):
        answer = list_query(queue, room)
        # Opcodes 8 to 63 of the first word: a list has all bits, whatever they are.
        assert CANARY not in answer.written[ANSWER.size : ANSWER.size + WORD], answer.written.hex()


@clause("2.13.1-D-05")
def test_the_head_of_an_answer_is_written_as_a_whole(plug):
    _, queue = owner(plug)

    for command in (Command.of(Opcode.LIST_QUERY, room=64), Command.of(UNKNOWN_OPCODE, room=64)):
        answer = queue.exchange([command])[0]

        assert answer.used >= ANSWER.size, shown(answer)
        assert CANARY not in answer.written[: ANSWER.size], answer.written[: ANSWER.size].hex()


@clause("2.13.1-D-06")
@pytest.mark.parametrize("opcode", [Opcode.LIST_QUERY, UNKNOWN_OPCODE], ids=["known", "unknown"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_status_and_qualifier_are_written(plug, packed, opcode):
    disk, queue = owner(plug)
    if packed:
        if not disk.driver.offered() & Feature.RING_PACKED.mask:
            pytest.skip("the device does not offer RING_PACKED")
        queue = start(disk, Feature.RING_PACKED.mask)

    answer = queue.exchange([Command.of(opcode, room=64)])[0]

    assert answer.written[:2] != untouched(2), "the status was not written"
    assert answer.written[2:4] != untouched(2), "the qualifier was not written"


@described("2.12.1-P-02")
def test_reserved_bytes_of_a_command_are_ignored(plug):
    _, queue = owner(plug)
    whole = list_query(queue)
    sent = bytearray(Command.of(Opcode.LIST_QUERY).sent)
    sent[4:16] = b"\xa5" * 12

    answer = queue.exchange([Command(bytes(sent), ANSWER.size + 128)])[0]

    assert answer.status == AdminStatus.OK, shown(answer)
    assert answer.result == whole.result


@clause("2.7.4.1-D-01")
def test_a_command_may_be_cut_anywhere(plug):
    _, queue = owner(plug)
    listing, invalid = Command.of(Opcode.LIST_QUERY), Command.of(UNKNOWN_OPCODE, RESERVED_GROUP)
    whole = list_query(queue, room=24)
    refused = queue.exchange([replace(invalid, room=32)])[0]

    for readable, writable in (((1, 22, 1), (1, 6, 25)), ((2, 2, 20), (9, 23)), ((24,), (2, 30))):
        cut = Command(listing.sent, 32, readable, writable)
        answer, refusal = queue.exchange([cut, replace(cut, sent=invalid.sent)])

        assert answer.status == AdminStatus.OK, f"{readable}, {writable}: {shown(answer)}"
        assert answer.result == whole.result
        assert (refusal.status, refusal.qualifier) == (refused.status, refused.qualifier)


@clause("2.13.1-D-07")
def test_commands_are_executed_in_the_order_in_which_they_are_queued(members):
    objects = Objects(members)
    objects.needs(1)
    objects.number()
    need(objects.create(1), "RESOURCE_OBJ_CREATE")
    need(objects.destroy(1), "RESOURCE_OBJ_DESTROY")
    create = Command(
        COMMAND.pack(Opcode.RESOURCE_OBJ_CREATE, Group.SR_IOV, 1)
        + OBJECT.pack(OBJECT_DEV_PARTS, 0, 0)
        + PARTS_OBJECT.pack(GETS),
        64,
    )
    query = Command(
        COMMAND.pack(objects.query_opcode, Group.SR_IOV, 1) + OBJECT.pack(OBJECT_DEV_PARTS, 0, 0),
        64,
    )
    destroy = Command(
        COMMAND.pack(Opcode.RESOURCE_OBJ_DESTROY, Group.SR_IOV, 1)
        + OBJECT_HEAD.pack(OBJECT_DEV_PARTS, 0),
        64,
    )

    answers = members.queue.exchange([create, query, destroy, query, create, query])

    failed = [answer.status != AdminStatus.OK for answer in answers]
    assert failed == [False, False, False, True, False, False]


@clause("2.13.1-D-09")
def test_a_command_that_may_be_retried_has_no_effect(members):
    members.needs(Opcode.DEV_PARTS_METADATA_GET)
    objects = Objects(members)
    objects.needs(1)
    objects.number()
    need(objects.create(0), "RESOURCE_OBJ_CREATE")
    before = objects.query(0)
    ask = PARTS_QUESTION.pack(OBJECT_DEV_PARTS, 0, METADATA_LIST)

    answer = members.command(Opcode.DEV_PARTS_METADATA_GET, ask, room=METADATA.size)
    if answer.status not in (AdminStatus.EAGAIN, AdminStatus.ENOMEM):
        pytest.skip(f"a list of parts without room is not ENOMEM: {shown(answer)}")

    assert objects.query(0).result == before.result
    count = PARTS_QUESTION.pack(OBJECT_DEV_PARTS, 0, METADATA_COUNT)
    assert members.command(Opcode.DEV_PARTS_METADATA_GET, count).status == AdminStatus.OK
