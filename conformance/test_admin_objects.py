"""Capabilities and resource objects of a group's owner (virtio 2.12.1.2, 2.12.1.3)."""

import pytest

from conformance.administration import (
    UNKNOWN_CAPABILITY,
    Objects,
    check_refused,
    limits,
    need,
    owner,
    set_limits,
    shown,
    use_all,
)
from harness.report import clause, on
from harness.virtio.admin import (
    CAP_DEV_PARTS,
    CAP_HEAD,
    CAPABILITIES,
    GETS,
    PARTS_OBJECT,
    SETS,
    AdminStatus,
    Group,
    Opcode,
)

pytestmark = on("pci", "modern")

UNKNOWN_ID = 0
"""The id of an object that no test has created."""


def capable(plug):
    """Return a started disk and its administration virtqueue; skip without capabilities."""
    disk, queue = owner(plug)
    limits(queue)
    return disk, queue


# --- capabilities (2.12.1.2)


@clause("2.12.1.2.4-D-01")
def test_the_commands_for_capabilities_come_together(plug):
    _, queue = owner(plug)

    found = queue.supported() & CAPABILITIES

    assert found in (set(), CAPABILITIES)


@clause("2.12.1.2.4-D-02")
def test_every_limit_up_to_that_of_the_device_can_be_set(plug):
    _, queue = capable(plug)
    gets, sets = limits(queue)

    for wanted in [(0, 0), (gets, sets), (gets // 2, sets // 2), (gets, 0), (0, sets)]:
        answer = set_limits(queue, *wanted)
        assert answer.status == AdminStatus.OK, f"{wanted}: {shown(answer)}"


@clause("2.12.1.2.4-D-05")
@pytest.mark.parametrize("opcode", [Opcode.CAP_ID_LIST_QUERY, Opcode.DRIVER_CAP_SET])
def test_capabilities_belong_to_the_self_group(members, opcode):
    limits(members.queue)
    use_all(members.queue, Group.SR_IOV)

    check_refused(members.command(opcode, CAP_HEAD.pack(CAP_DEV_PARTS) + bytes(8)))


@clause("2.12.1.2.4-D-06")
def test_every_command_for_capabilities_is_invalid_for_members(members):
    limits(members.queue)
    use_all(members.queue, Group.SR_IOV)

    for opcode in sorted(CAPABILITIES):
        check_refused(members.command(opcode, CAP_HEAD.pack(CAP_DEV_PARTS) + bytes(8)))


@clause("2.12.1.2.4-D-07")
def test_a_capability_that_an_object_needs_cannot_be_disabled(members):
    objects = Objects(members)
    objects.needs(1)
    need(objects.create(0), "RESOURCE_OBJ_CREATE")

    answer = set_limits(members.queue, 0, 0)

    assert answer.status == AdminStatus.EBUSY, shown(answer)


@clause("2.12.1.2.4-D-08")
@pytest.mark.parametrize("opcode", [Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET])
def test_a_capability_that_is_not_listed_does_not_exist(plug, opcode):
    _, queue = capable(plug)

    answer = queue.command(opcode, data=CAP_HEAD.pack(UNKNOWN_CAPABILITY) + bytes(8))

    assert answer.status == AdminStatus.ENXIO, shown(answer)


@clause("2.12.1.2.4-D-10")
def test_without_a_capability_of_the_driver_no_object_can_be_created(members):
    objects = Objects(members, set_limits=False)

    assert objects.create(0).status != AdminStatus.OK


@clause("2.12.1.2.4-D-09")
def test_a_reset_forgets_the_capability_of_the_driver(members):
    objects = Objects(members, set_limits=False)
    objects.needs(1)
    if objects.create(0).status == AdminStatus.OK:
        pytest.skip("the device needs no capability of the driver")
    objects.set_limits(objects.gets, objects.sets)
    need(objects.create(0), "RESOURCE_OBJ_CREATE")
    members.restart()
    again = Objects(members, set_limits=False)

    assert again.create(0).status != AdminStatus.OK


# --- resource objects (2.12.1.3)


@pytest.fixture
def objects(members):
    """Device parts objects of a member, none of which exists."""
    found = Objects(members)
    found.needs(1)
    found.number()
    return found


@clause("2.12.1.3.5-D-01")
def test_an_object_is_not_created_twice(objects):
    need(objects.create(0), "RESOURCE_OBJ_CREATE")

    answer = objects.create(0)

    assert answer.status == AdminStatus.EEXIST, shown(answer)


@clause("2.12.1.3.5-D-02")
def test_an_object_that_does_not_exist_cannot_be_used(objects):
    for act in (
        objects.query,
        lambda ident: objects.modify(ident, SETS),
        objects.destroy,
    ):
        answer = act(UNKNOWN_ID)
        assert answer.status == AdminStatus.ENXIO, shown(answer)


@clause("2.12.1.3.5-D-03")
def test_a_device_without_room_for_an_object_says_so(objects):
    answers = [objects.create(ident) for ident in range(objects.gets)]

    failed = [answer for answer in answers if answer.status != AdminStatus.OK]
    if not failed:
        pytest.skip("the device creates as many objects as it allows")
    assert failed[0].status == AdminStatus.ENOSPC, shown(failed[0])


@clause("2.12.1.3.5-D-05")
def test_an_object_that_was_destroyed_can_be_created_again(objects):
    need(objects.create(1), "RESOURCE_OBJ_CREATE")
    need(objects.destroy(1), "RESOURCE_OBJ_DESTROY")
    for _ in range(3):
        created = objects.create(0)
        assert created.status == AdminStatus.OK, shown(created)
        need(objects.destroy(0), "RESOURCE_OBJ_DESTROY")


@clause("2.12.1.3.5-D-06")
def test_objects_can_be_created_with_ids_in_any_order(objects):
    objects.needs(2)

    last, first = objects.create(objects.gets - 1), objects.create(0)

    assert last.status == AdminStatus.OK, shown(last)
    assert first.status == AdminStatus.OK, shown(first)


@clause("2.12.1.3.5-D-08")
def test_as_many_objects_can_be_created_as_the_capability_says(objects):
    for ident in range(objects.gets):
        answer = objects.create(ident)
        assert answer.status == AdminStatus.OK, f"object {ident}: {shown(answer)}"


@clause("2.12.1.3.5-D-09")
def test_a_modification_that_fails_has_no_effect(objects):
    need(objects.create(0, SETS), "RESOURCE_OBJ_CREATE")
    before = need(objects.query(0), "RESOURCE_OBJ_QUERY")
    if objects.modify(0, 0xFF).status == AdminStatus.OK:
        pytest.skip("the device takes an object of an unknown purpose")

    assert objects.query(0).result == before.result


@clause("2.12.1.3.5-D-10")
@pytest.mark.parametrize("purpose", [GETS, SETS], ids=["get", "set"])
def test_a_query_returns_what_an_object_was_created_with(objects, purpose):
    objects.needs(1, SETS)
    need(objects.create(0, purpose), "RESOURCE_OBJ_CREATE")

    answer = need(objects.query(0), "RESOURCE_OBJ_QUERY")

    assert answer.result[: PARTS_OBJECT.size] == PARTS_OBJECT.pack(purpose)


@clause("2.12.1.3.5-D-10")
@pytest.mark.parametrize("purpose", [GETS, SETS], ids=["get", "set"])
def test_a_query_returns_what_an_object_was_modified_to(objects, purpose):
    objects.needs(1, SETS)
    need(objects.create(0, GETS if purpose == SETS else SETS), "RESOURCE_OBJ_CREATE")
    need(objects.modify(0, purpose), "RESOURCE_OBJ_MODIFY")

    answer = need(objects.query(0), "RESOURCE_OBJ_QUERY")

    assert answer.result[: PARTS_OBJECT.size] == PARTS_OBJECT.pack(purpose)


@clause("2.12.1.3.5-D-11")
def test_a_reset_destroys_all_objects(objects):
    need(objects.create(0), "RESOURCE_OBJ_CREATE")
    opcode = objects.query_opcode
    objects.members.restart()
    again = Objects(objects.members)
    again.query_opcode = opcode

    assert again.query(0).status != AdminStatus.OK
