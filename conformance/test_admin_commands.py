"""Group administration commands: lists, groups, members, errors (virtio 2.12.1, 2.12.1.5)."""

import pytest

from conformance.administration import (
    RESERVED_GROUP,
    UNKNOWN_OPCODE,
    Objects,
    check_refused,
    need,
    others,
    owner,
    shown,
    start,
    use,
    use_all,
)
from conformance.pcispace import extended_capabilities
from harness.report import clause, described, on
from harness.virtio.admin import (
    GETS,
    LISTS,
    SETS,
    AdminStatus,
    Group,
    Opcode,
    Qualifier,
    numbers,
    words,
)
from harness.virtio.blk import Status
from harness.virtio.device import DeviceStatus
from harness.virtio.pci import EXT_CAP_SR_IOV, SR_IOV_CONTROL, SR_IOV_VF_ENABLE

pytestmark = on("pci", "modern")


@described("2.12.1-P-01")
def test_the_commands_for_lists_are_listed(plug):
    _, queue = owner(plug)

    assert queue.supported() >= LISTS


@clause("2.12.1.5-D-05")
def test_a_command_that_returns_its_result_has_the_status_ok(plug):
    _, queue = owner(plug)

    answer = queue.command(Opcode.LIST_QUERY)

    if not numbers(answer.result) >= LISTS:
        pytest.skip("LIST_QUERY returned no list")
    assert answer.status == AdminStatus.OK, shown(answer)


@clause("2.12.1.5-D-06")
def test_a_command_that_does_not_exist_has_another_status_than_ok(plug):
    _, queue = owner(plug)
    use_all(queue)

    assert queue.command(UNKNOWN_OPCODE).status != AdminStatus.OK


@clause("2.12.1.5-D-01", "2.12.1.5-D-02")
@pytest.mark.parametrize("opcode", [Opcode.LIST_QUERY, UNKNOWN_OPCODE], ids=["known", "unknown"])
def test_a_group_that_does_not_exist_is_invalid_whatever_the_command(plug, opcode):
    _, queue = owner(plug)

    check_refused(queue.command(opcode, RESERVED_GROUP), Qualifier.INVALID_GROUP)


@clause("2.12.1.5-D-01", "2.12.1.5-D-03")
def test_a_command_that_does_not_exist_is_invalid(plug):
    _, queue = owner(plug)
    use_all(queue)

    check_refused(queue.command(UNKNOWN_OPCODE), Qualifier.INVALID_OPCODE)


@clause("2.12.1.5-D-04")
def test_a_member_that_does_not_exist_is_invalid(members):
    opcode = others(members.queue, Group.SR_IOV)[0]
    use_all(members.queue, Group.SR_IOV)

    answer = members.command(opcode, bytes(64), member=0x1_0000_0000)

    check_refused(answer, Qualifier.INVALID_MEMBER)


@clause("2.12.1.5-D-03")
def test_of_an_opcode_and_a_member_that_do_not_exist_the_opcode_is_named(members):
    use_all(members.queue, Group.SR_IOV)

    answer = members.command(UNKNOWN_OPCODE, bytes(64), member=0x1_0000_0000)

    check_refused(answer, Qualifier.INVALID_OPCODE)


@clause("2.12.1.5-D-17b")
def test_members_count_from_1_to_the_enabled_virtual_functions(members):
    opcodes = others(members.queue, Group.SR_IOV)
    use_all(members.queue, Group.SR_IOV)

    for opcode in opcodes:
        for member in (0, members.count + 1):
            answer = members.command(opcode, bytes(64), member)
            check_refused(answer, Qualifier.INVALID_MEMBER)


@clause("2.12.1.5-D-17a")
def test_without_enabled_virtual_functions_there_is_no_group_of_them(plug):
    disk, queue = owner(plug)
    found = [at for kind, at in extended_capabilities(disk.driver) if kind == EXT_CAP_SR_IOV]
    if found and disk.driver.pci_read(found[0] + SR_IOV_CONTROL, 1)[0] & SR_IOV_VF_ENABLE:
        pytest.skip("virtual functions are enabled already")

    for opcode in (*LISTS, Opcode.LEGACY_NOTIFY_INFO, Opcode.DEV_MODE_SET):
        answer = queue.command(opcode, Group.SR_IOV, 1, bytes(64))
        check_refused(answer, Qualifier.INVALID_GROUP)


def send_invalid_commands(queue):
    """Send commands that are invalid; skip a device that does not answer EINVAL to all of them."""
    for opcode, group in (
        (Opcode.LIST_QUERY, RESERVED_GROUP),
        (Opcode.LIST_USE, RESERVED_GROUP),
        (UNKNOWN_OPCODE, Group.SELF),
    ):
        answer = queue.command(opcode, group, data=words(LISTS))
        if answer.status != AdminStatus.EINVAL:
            pytest.skip(f"command {opcode:#x} for group {group} is not EINVAL: {shown(answer)}")


@clause("2.12.1.5-D-07a", "2.12.1.5-D-07b")
def test_invalid_commands_have_no_effect_on_the_commands_in_use(plug):
    _, queue = owner(plug)
    opcode = others(queue)[0]
    use_all(queue)
    before = queue.command(opcode)
    if before.status == AdminStatus.EINVAL:
        pytest.skip(f"command {opcode:#x} without data is invalid: {shown(before)}")

    send_invalid_commands(queue)

    after = queue.command(opcode)
    assert (after.status, after.qualifier) == (before.status, before.qualifier)


@clause("2.12.1.5-D-07c")
def test_invalid_commands_lead_to_no_error_state(plug):
    disk, queue = owner(plug)

    send_invalid_commands(queue)

    assert not disk.driver.status() & DeviceStatus.NEEDS_RESET
    assert queue.command(Opcode.LIST_QUERY).status == AdminStatus.OK
    assert disk.read(0).status is Status.OK


@clause("2.12.1.5-D-08")
def test_a_failed_creation_leaves_the_object_of_this_id_as_it_is(members):
    objects = Objects(members)
    objects.needs(1, SETS)
    objects.number()
    need(objects.create(0, SETS), "RESOURCE_OBJ_CREATE")
    before = objects.query(0)
    if objects.create(0, GETS).status == AdminStatus.OK:
        pytest.skip("the device creates an object twice")

    assert objects.query(0).result == before.result


@clause("2.12.1.5-D-10a")
def test_the_commands_in_use_of_one_group_are_not_those_of_another(members):
    queue = members.queue
    own, of_members = others(queue)[0], others(queue, Group.SR_IOV)[0]
    use_all(queue)

    check_refused(members.command(of_members, bytes(64)), Qualifier.INVALID_OPCODE)
    use_all(queue, Group.SR_IOV)
    use(queue, LISTS)

    answer = members.command(of_members, bytes(64))
    assert answer.qualifier != Qualifier.INVALID_OPCODE, shown(answer)
    check_refused(queue.command(own), Qualifier.INVALID_OPCODE)


@clause("2.12.1.5-D-11", "2.12.1.5-D-13a", "2.12.1.5-D-13b")
def test_after_a_reset_only_the_commands_for_lists_are_in_use(plug):
    disk, queue = owner(plug)
    opcodes = others(queue)
    use_all(queue)
    queue = start(disk)

    for opcode in opcodes:
        check_refused(queue.command(opcode), Qualifier.INVALID_OPCODE)
    assert queue.command(Opcode.LIST_QUERY).status == AdminStatus.OK


@clause("2.12.1.5-D-12", "2.12.1.5-D-13a", "2.12.1.5-D-13b")
def test_list_use_replaces_the_commands_in_use(plug):
    _, queue = owner(plug)
    first, second, *_ = others(queue, count=2)
    use(queue, LISTS | {first})

    allowed, forbidden = queue.command(first), queue.command(second)
    use(queue, LISTS | {second})
    forbidden_then, allowed_then = queue.command(first), queue.command(second)

    assert allowed.qualifier != Qualifier.INVALID_OPCODE, shown(allowed)
    assert allowed_then.qualifier != Qualifier.INVALID_OPCODE, shown(allowed_then)
    check_refused(forbidden, Qualifier.INVALID_OPCODE)
    check_refused(forbidden_then, Qualifier.INVALID_OPCODE)


@clause("2.12.1.5-D-13a", "2.12.1.5-D-13b")
def test_a_driver_can_give_up_list_query(plug):
    _, queue = owner(plug)
    use(queue, {Opcode.LIST_USE})

    check_refused(queue.command(Opcode.LIST_QUERY), Qualifier.INVALID_OPCODE)

    use(queue, LISTS)
    assert queue.command(Opcode.LIST_QUERY).status == AdminStatus.OK


@clause("2.12.1.5-D-14a")
def test_the_list_of_supported_commands_does_not_shrink(plug):
    _, queue = owner(plug)
    first = queue.supported()
    use(queue, LISTS)

    for _ in range(3):
        assert queue.supported() >= first


@clause("2.12.1.5-D-14c")
def test_a_command_that_was_supported_is_supported_after_a_reset(plug):
    disk, queue = owner(plug)
    first = use_all(queue)

    for _ in range(3):
        queue = start(disk)
        assert queue.supported() >= first


def use_again(plug):
    """Use all commands, reset the device, and return the answer to the same LIST_USE."""
    disk, queue = owner(plug)
    opcodes = use_all(queue)
    return start(disk).use(opcodes)


@clause("2.12.1.5-D-15a")
def test_a_list_that_was_in_use_is_accepted_after_a_reset(plug):
    answer = use_again(plug)

    assert answer.status == AdminStatus.OK, shown(answer)


@clause("2.12.1.5-D-15b")
def test_a_list_that_was_in_use_is_not_invalid_after_a_reset(plug):
    answer = use_again(plug)

    assert answer.status != AdminStatus.EINVAL, shown(answer)
