"""Defects of the owner of a group: commands, administration virtqueues, members (2.12, 2.13)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.model.administration import (
    Administration,
    AdminQueue,
    Capabilities,
    Command,
    Group,
    Handler,
    RefusedError,
)
from harness.model.defects.registry import Original, during, on_pci
from harness.model.memory import BrokenError, size
from harness.model.pci.function import Function
from harness.model.pci.member import Member, MismatchError, Values
from harness.model.pci.owner import Members, Owner
from harness.model.queue import Queue
from harness.model.ring import Chain, Ring
from harness.virtio.admin import (
    ANSWER,
    COMMAND,
    LISTS,
    NOTIFY_INFO,
    AdminStatus,
    Opcode,
    Part,
    Qualifier,
    numbers,
    words,
)
from harness.virtio.pci import (
    EXTENDED,
    ISR_QUEUE,
    REVISION,
    SR_IOV_BAR_0,
    SUBSYSTEM,
    TRANSITIONAL_DEVICE_ID,
)

FEW = 2
"""Objects that a defective device has room for."""


def other_status(error: RefusedError, status: AdminStatus) -> RefusedError:
    """Return the same refusal with another status."""
    return RefusedError(status, error.qualifier)


# --- commands and lists (2.12.1.5)


@on_pci(Group._list_query, "2.12.1-P-01", text="LIST_QUERY does not list itself and LIST_USE")
def lists_not_listed(original: Original, group: Group, command: Command) -> bytes:
    return words(frozenset(numbers(original(group, command)) - LISTS))


@on_pci(
    Administration.answer, "2.12.1-P-02", text="a command with reserved bytes that are not 0 fails"
)
def reserved_bytes_checked(
    original: Original, administration: Administration, sent: bytes, room: int
) -> bytes:
    if any(sent[4:16]):
        return ANSWER.pack(AdminStatus.EINVAL, Qualifier.INVALID_COMMAND)[:room]
    return bytes(original(administration, sent, room))


@on_pci(Administration.answer, "2.12.1.5-D-05", text="a command that succeeds has the status 1")
def success_has_another_status(
    original: Original, administration: Administration, sent: bytes, room: int
) -> bytes:
    answer = bytes(original(administration, sent, room))
    return b"\1\0" + answer[2:] if answer[:2] == bytes(2) else answer


@on_pci(Administration.answer, "2.12.1.5-D-06", text="a command that fails has the status OK")
def failed_commands_are_ok(
    original: Original, administration: Administration, sent: bytes, room: int
) -> bytes:
    return bytes(2) + bytes(original(administration, sent, room))[2:]


@on_pci(
    Administration.execute,
    "2.12.1.5-D-01",
    "2.12.1.5-D-02",
    text="a group of an unknown type is the self group",
)
def unknown_group_is_the_self_group(
    original: Original, administration: Administration, command: Command
) -> bytes:
    known = command.group in administration.groups
    return bytes(original(administration, command if known else replace(command, group=0)))


@on_pci(
    Administration.execute,
    "2.12.1.5-D-02",
    text="of an invalid group and an invalid opcode the opcode is named",
)
def opcode_before_group(
    original: Original, administration: Administration, command: Command
) -> bytes:
    if all(command.opcode not in group.used for group in administration.groups.values()):
        raise RefusedError(AdminStatus.EINVAL, Qualifier.INVALID_OPCODE)
    return bytes(original(administration, command))


@on_pci(Group.execute, "2.12.1.5-D-03", text="an invalid opcode has the qualifier INVALID_FIELD")
def invalid_opcode_is_a_field(original: Original, group: Group, command: Command) -> bytes:
    if command.opcode not in group.used:
        raise RefusedError(AdminStatus.EINVAL, Qualifier.INVALID_FIELD)
    return bytes(original(group, command))


@on_pci(Group.execute, "2.12.1.5-D-03", text="members are checked before the opcode")
def member_before_opcode(original: Original, group: Group, command: Command) -> bytes:
    if command.opcode not in LISTS and command.member not in (group.members() or ()):
        raise RefusedError(AdminStatus.EINVAL, Qualifier.INVALID_MEMBER)
    return bytes(original(group, command))


@on_pci(Group.execute, "2.12.1.5-D-04", text="an invalid member has the qualifier INVALID_FIELD")
def invalid_member_is_a_field(original: Original, group: Group, command: Command) -> bytes:
    try:
        return bytes(original(group, command))
    except RefusedError as error:
        if error.qualifier is Qualifier.INVALID_MEMBER:
            raise RefusedError(AdminStatus.EINVAL, Qualifier.INVALID_FIELD) from None
        raise


@on_pci(
    Administration.execute,
    "2.12.1.5-D-07a",
    "2.12.1.5-D-07b",
    text="after an invalid command only those for lists are in use",
)
def invalid_commands_empty_the_list(
    original: Original, administration: Administration, command: Command
) -> bytes:
    try:
        return bytes(original(administration, command))
    except RefusedError:
        administration.reset()
        raise


@on_pci(AdminQueue._begin, "2.12.1.5-D-07c", text="an invalid group leads to NEEDS_RESET")
def invalid_group_needs_a_reset(
    original: Original, queue: AdminQueue, ring: Ring, chain: Chain, replayed: bool = False
) -> None:
    original(queue, ring, chain, replayed)
    group = b"".join(chain.readable)[2:4]
    if int.from_bytes(group, "little") not in queue._administration.groups:
        raise BrokenError("a command for a group that does not exist")


@on_pci(Members._create, "2.12.1.5-D-08", text="a failed creation changes the object of this id")
def failed_creation_changes(original: Original, members: Members, command: Command) -> bytes:
    try:
        return bytes(original(members, command))
    except RefusedError as error:
        if error.status is AdminStatus.EEXIST:
            members._modify(command)
        raise


@on_pci(Administration.execute, "2.12.1.5-D-10a", text="LIST_USE counts for all groups")
def groups_share_their_list(
    original: Original, administration: Administration, command: Command
) -> bytes:
    result = bytes(original(administration, command))
    if command.opcode == Opcode.LIST_USE:
        for group in administration.groups.values():
            group.used = frozenset(numbers(command.data))
    return result


@on_pci(Group.reset, "2.12.1.5-D-11", text="commands stay in use over a reset")
def commands_in_use_after_a_reset(original: Original, group: Group) -> None:
    if "used" not in vars(group):
        original(group)


@on_pci(Group._list_use, "2.12.1.5-D-12", text="LIST_USE adds to the commands in use")
def list_use_adds(original: Original, group: Group, command: Command) -> bytes:
    before = group.used
    result = bytes(original(group, command))
    group.used |= before
    return result


@on_pci(
    Group.execute,
    "2.12.1.5-D-13a",
    "2.12.1.5-D-11",
    text="every supported command can be used without LIST_USE",
)
def list_of_use_not_checked(original: Original, group: Group, command: Command) -> bytes:
    if command.opcode == Opcode.LIST_USE:
        return bytes(original(group, command))
    with during(group, used=group.supported()):
        return bytes(original(group, command))


@on_pci(Group.execute, "2.12.1.5-D-13b", text="a command that is not in use ends with EBUSY")
def unused_commands_are_busy(original: Original, group: Group, command: Command) -> bytes:
    if command.opcode in group.supported() - group.used:
        raise RefusedError(AdminStatus.EBUSY)
    return bytes(original(group, command))


@on_pci(Group._list_use, "2.12.1.5-D-14a", text="only the commands in use are listed later")
def only_used_commands_listed(original: Original, group: Group, command: Command) -> bytes:
    result = bytes(original(group, command))
    for opcode in group.supported() - LISTS - group.used:
        del group._handlers[opcode]
    return result


@on_pci(
    Group._list_query, "2.12.1.5-D-14c", text="a command is not listed after the next LIST_QUERY"
)
def fewer_commands_each_time(original: Original, group: Group, command: Command) -> bytes:
    listed = numbers(original(group, command))
    times = vars(group).setdefault("times_listed", 0)
    vars(group)["times_listed"] = times + 1
    rest = sorted(listed - LISTS)
    return words(frozenset(LISTS | set(rest[: max(len(rest) - times, 0)])))


@on_pci(
    Group._list_use,
    "2.12.1.5-D-15a",
    "2.12.1.5-D-15b",
    text="a list is accepted once, and refused after a reset",
)
def list_refused_after_a_reset(original: Original, group: Group, command: Command) -> bytes:
    seen: set[bytes] = vars(group).setdefault("lists_seen", set())
    if command.data in seen:
        raise RefusedError(AdminStatus.EINVAL)
    result = bytes(original(group, command))
    seen.add(command.data)
    return result


@on_pci(Members.present, "2.12.1.5-D-17a", text="the group of SR-IOV exists without VF Enable")
def members_without_vf_enable(original: Original, members: Members) -> range:
    found = original(members)
    return range(0) if found is None else range(found.start, found.stop)


@on_pci(
    Members.present,
    "2.12.1.5-D-17b",
    "2.12.1.5-D-04",
    text="every member that can be enabled exists",
)
def disabled_members_exist(original: Original, members: Members) -> range | None:
    return None if original(members) is None else range(1 << 40)


# --- administration virtqueues (2.13.1)


@on_pci(
    Administration.answer,
    "2.13.1-D-01",
    "2.13.1-D-04",
    text="a command with less than its whole head is refused",
)
def short_commands_refused(
    original: Original, administration: Administration, sent: bytes, room: int
) -> bytes:
    if len(sent) < COMMAND.size:
        return ANSWER.pack(AdminStatus.EINVAL, Qualifier.INVALID_COMMAND)[:room]
    return bytes(original(administration, sent, room))


@on_pci(
    Administration.answer,
    "2.13.1-D-01",
    "2.13.1-D-04",
    text="a command without room for its result is refused",
)
def results_need_room(
    original: Original, administration: Administration, sent: bytes, room: int
) -> bytes:
    answer = bytes(original(administration, sent, 1 << 16))
    if len(answer) > room:
        return ANSWER.pack(AdminStatus.EINVAL, Qualifier.INVALID_COMMAND)[:room]
    return answer


@on_pci(
    Group._list_query,
    "2.13.1-D-02",
    "2.13.1-D-04",
    text="LIST_QUERY with data behind it is refused",
)
def long_commands_refused(original: Original, group: Group, command: Command) -> bytes:
    if command.data:
        raise RefusedError(AdminStatus.EINVAL)
    return bytes(original(group, command))


@on_pci(AdminQueue._begin, "2.7.4.1-D-01", text="only the first descriptor of a command is read")
def command_in_one_descriptor(
    original: Original, queue: AdminQueue, ring: Ring, chain: Chain, replayed: bool = False
) -> None:
    original(queue, ring, replace(chain, readable=chain.readable[:1]), replayed)


@on_pci(AdminQueue.finish, "2.13.1-D-02", text="the whole buffer is counted as used")
def whole_buffer_counted(
    original: Original, queue: AdminQueue, ring: Ring, chain: Chain, answer: bytes
) -> None:
    original(queue, Counted(ring, size(chain.writable)), chain, answer)


class Counted:
    """A ring that counts `length` bytes for every chain."""

    def __init__(self, ring: Ring, length: int) -> None:
        self._ring = ring
        self._length = length

    def use(self, chain: Chain, length: int) -> None:
        """Use a chain, whatever was written."""
        del length
        self._ring.use(chain, self._length)


@on_pci(AdminQueue.finish, "2.13.1-D-02", text="the whole buffer is written")
def whole_buffer_written(
    original: Original, queue: AdminQueue, ring: Ring, chain: Chain, answer: bytes
) -> None:
    original(queue, ring, chain, answer.ljust(size(chain.writable), b"\0"))


def write_some(
    original: Original, queue: AdminQueue, ring: Ring, chain: Chain, answer: bytes, kept: set[int]
) -> None:
    """Write an answer, but leave the bytes at these offsets as the driver had them."""
    before = b"".join(chain.writable)
    partly = bytes(before[at] if at in kept else byte for at, byte in enumerate(answer))
    original(queue, ring, chain, partly)


@on_pci(AdminQueue.finish, "2.13.1-D-03", text="zeros of a result are not written")
def zeros_not_written(
    original: Original, queue: AdminQueue, ring: Ring, chain: Chain, answer: bytes
) -> None:
    zeros = {at for at, byte in enumerate(answer) if at >= ANSWER.size and not byte}
    write_some(original, queue, ring, chain, answer, zeros)


@on_pci(AdminQueue.finish, "2.13.1-D-05", text="the second half of an answer's head is not written")
def half_a_head_written(
    original: Original, queue: AdminQueue, ring: Ring, chain: Chain, answer: bytes
) -> None:
    write_some(original, queue, ring, chain, answer, set(range(4, ANSWER.size)))


@on_pci(AdminQueue.finish, "2.13.1-D-06", text="a qualifier of 0 is not written")
def qualifier_not_written(
    original: Original, queue: AdminQueue, ring: Ring, chain: Chain, answer: bytes
) -> None:
    write_some(original, queue, ring, chain, answer, set() if any(answer[2:4]) else {2, 3})


@on_pci(AdminQueue.run, "2.13.1-D-07", text="commands of one notification are executed backwards")
def commands_backwards(original: Original, queue: AdminQueue) -> None:
    chains = []
    while queue.ring and (chain := queue._take(queue.ring)):
        chains.append(chain)
    for chain in reversed(chains):
        assert queue.ring
        queue._begin(queue.ring, chain)
    original(queue)


@on_pci(Members._metadata, "2.13.1-D-09", text="a command that ends with ENOMEM changes its object")
def refused_for_room_with_an_effect(
    original: Original, members: Members, command: Command
) -> bytes:
    try:
        return bytes(original(members, command))
    except RefusedError as error:
        if error.status is AdminStatus.ENOMEM:
            members._destroy(command)
        raise


# --- capabilities (2.12.1.2.4)


@on_pci(Capabilities.handlers, "2.12.1.2.4-D-01", text="the driver's capabilities cannot be set")
def capabilities_cannot_be_set(
    original: Original, capabilities: Capabilities
) -> dict[int, Handler]:
    handlers: dict[int, Handler] = original(capabilities)
    handlers.pop(Opcode.DRIVER_CAP_SET, None)
    return handlers


@on_pci(
    Capabilities._set, "2.12.1.2.4-D-02", text="limits other than those of the device are refused"
)
def only_the_largest_limits(
    original: Original, capabilities: Capabilities, command: Command
) -> bytes:
    if command.data[8:10] != next(iter(capabilities._offered.values())):
        raise RefusedError(AdminStatus.EINVAL)
    return bytes(original(capabilities, command))


@on_pci(
    Members._handlers,
    "2.12.1.2.4-D-05",
    "2.12.1.2.4-D-06",
    text="the commands for capabilities work for members, too",
)
def capabilities_for_members(original: Original, members: Members) -> dict[int, Handler]:
    return {**original(members), **members.capabilities.handlers()}


@on_pci(Members._in_use, "2.12.1.2.4-D-07", text="a capability that is needed can be disabled")
def capability_disabled_under_objects(original: Original, members: Members, limits: bytes) -> bool:
    return False


@on_pci(Capabilities._known, "2.12.1.2.4-D-08", text="an unknown capability ends with EINVAL")
def unknown_capability_is_invalid(
    original: Original, capabilities: Capabilities, command: Command
) -> int:
    try:
        return int(original(capabilities, command))
    except RefusedError as error:
        raise other_status(error, AdminStatus.EINVAL) from None


@on_pci(Capabilities.reset, "2.12.1.2.4-D-09", text="the driver's capabilities survive a reset")
def capabilities_after_a_reset(original: Original, capabilities: Capabilities) -> None:
    if "_chosen" not in vars(capabilities):
        original(capabilities)


@on_pci(
    Capabilities.limits, "2.12.1.2.4-D-10", text="limits that are not set are those of the device"
)
def limits_without_a_capability(original: Original, capabilities: Capabilities) -> tuple[int, int]:
    gets, sets = original(capabilities)
    return (gets, sets) if capabilities._chosen else (1, 1)


# --- resource objects (2.12.1.3.5)


@on_pci(Members._create, "2.12.1.3.5-D-01", text="creating an object twice ends with EINVAL")
def taken_id_is_invalid(original: Original, members: Members, command: Command) -> bytes:
    try:
        return bytes(original(members, command))
    except RefusedError as error:
        if error.status is AdminStatus.EEXIST:
            raise other_status(error, AdminStatus.EINVAL) from None
        raise


@on_pci(Members._existing, "2.12.1.3.5-D-02", text="an object that does not exist ends with EINVAL")
def missing_object_is_invalid(
    original: Original, members: Members, command: Command, purpose: int | None = None
) -> int:
    try:
        return int(original(members, command, purpose))
    except RefusedError as error:
        raise other_status(error, AdminStatus.EINVAL) from None


@on_pci(Members._create, "2.12.1.3.5-D-03", text="without room for an object the status is EBUSY")
def no_room_is_busy(original: Original, members: Members, command: Command) -> bytes:
    if len(members._objects) >= FEW:
        raise RefusedError(AdminStatus.EBUSY)
    return bytes(original(members, command))


@on_pci(
    Members._create, "2.12.1.3.5-D-08", text="there is room for fewer objects than the limit says"
)
def fewer_objects_than_allowed(original: Original, members: Members, command: Command) -> bytes:
    if len(members._objects) >= FEW:
        raise RefusedError(AdminStatus.ENOSPC)
    return bytes(original(members, command))


@on_pci(Members._destroy, "2.12.1.3.5-D-05", text="the id of a destroyed object stays taken")
def ids_are_used_once(original: Original, members: Members, command: Command) -> bytes:
    members._existing(command)
    return b""


@on_pci(Members._create, "2.12.1.3.5-D-06", text="objects have to be created in the order of ids")
def ids_in_order_only(original: Original, members: Members, command: Command) -> bytes:
    if int.from_bytes(command.data[4:8], "little") > len(members._objects):
        raise RefusedError(AdminStatus.EINVAL)
    return bytes(original(members, command))


@on_pci(Members._modify, "2.12.1.3.5-D-09", text="a failed modification clears the object")
def failed_modification_clears(original: Original, members: Members, command: Command) -> bytes:
    try:
        return bytes(original(members, command))
    except RefusedError:
        members._objects[members._existing(command)] = 0, command.member
        raise


@on_pci(Members._query, "2.12.1.3.5-D-10", text="a query returns the first creation's data")
def query_returns_another_purpose(original: Original, members: Members, command: Command) -> bytes:
    known: dict[int, bytes] = vars(members).setdefault("first_answers", {})
    return known.setdefault(members._existing(command), bytes(original(members, command)))


@on_pci(Members._query, "2.12.1.3.5-D-10", text="a query always returns zeros")
def query_returns_zeros(original: Original, members: Members, command: Command) -> bytes:
    return bytes(len(original(members, command)))


@on_pci(Members.forget, "2.12.1.3.5-D-11", text="objects survive a reset")
def objects_after_a_reset(original: Original, members: Members) -> None:
    members.capabilities.reset()


# --- device parts (2.12.1.4.4.1)


@on_pci(Members._handlers, "2.12.1.4.4.1-D-01", text="there is no command to stop a member")
def no_command_to_stop(original: Original, members: Members) -> dict[int, Handler]:
    handlers: dict[int, Handler] = original(members)
    del handlers[Opcode.DEV_MODE_SET]
    return handlers


def once(thing: object, name: str) -> None:
    """Refuse the second command of a name."""
    if vars(thing).get(name):
        raise RefusedError(AdminStatus.EBUSY)
    vars(thing)[name] = True


@on_pci(Members._get_parts, "2.12.1.4.4.1-D-02", text="parts can be read once")
def parts_read_once(original: Original, members: Members, command: Command) -> bytes:
    once(members, "parts_read")
    return bytes(original(members, command))


@on_pci(Members._set_parts, "2.12.1.4.4.1-D-05", text="parts can be set once")
def parts_set_once(original: Original, members: Members, command: Command) -> bytes:
    once(members, "parts_set")
    return bytes(original(members, command))


def moved(parts: Values, kind: Part, to_the_end: bool) -> Values:
    """Return the parts with those of one type at one end."""
    chosen = {key: value for key, value in parts.items() if key[0] == kind}
    rest = {key: value for key, value in parts.items() if key[0] != kind}
    return {**rest, **chosen} if to_the_end else {**chosen, **rest}


@on_pci(Member.parts, "2.12.1.4.4.1-D-03", text="the device status is the last part")
def status_is_the_last_part(original: Original, member: Member) -> Values:
    return moved(original(member), Part.DEVICE_STATUS, to_the_end=True)


@on_pci(
    Member.parts,
    "2.12.1.4.4.1-D-24",
    "2.12.1.4.4.1-D-25",
    text="the device features are the last part",
)
def device_features_last(original: Original, member: Member) -> Values:
    return moved(original(member), Part.DEV_FEATURES, to_the_end=True)


@on_pci(Member.parts, "2.12.1.4.4.1-D-26", text="the common configuration is the first part")
def common_configuration_first(original: Original, member: Member) -> Values:
    return moved(original(member), Part.PCI_COMMON_CFG, to_the_end=False)


@on_pci(Members._set_parts, "2.12.1.4.4.1-D-04", text="parts of a member that runs can be set")
def parts_set_while_running(original: Original, members: Members, command: Command) -> bytes:
    with during(members.function(command), stopped=True):
        return bytes(original(members, command))


@on_pci(Member.check_parts, "2.12.1.4.4.1-D-06", text="the lengths of parts are not checked")
def lengths_not_checked(original: Original, member: Member, given: Values) -> None:
    own = member.parts()
    for key in given:
        if key in own:
            given[key] = given[key][: len(own[key])].ljust(len(own[key]), b"\0")
    original(member, given)


@on_pci(Member.check_parts, "2.12.1.4.4.1-D-07", text="the device features can be set")
def device_features_set(original: Original, member: Member, given: Values) -> None:
    for key in [key for key in given if key[0] == Part.DEV_FEATURES]:
        member.device._transport_features |= int.from_bytes(given.pop(key), "little")
    original(member, given)


@on_pci(Member.check_parts, "2.12.1.4.4.1-D-28a", text="the common configuration is not compared")
def common_configuration_not_compared(original: Original, member: Member, given: Values) -> None:
    original(member, {key: value for key, value in given.items() if key[0] != Part.PCI_COMMON_CFG})


@on_pci(Member.check_parts, "2.12.1.4.4.1-D-28b", text="the common configuration can be set")
def common_configuration_set(original: Original, member: Member, given: Values) -> None:
    for key in [key for key in given if key[0] == Part.PCI_COMMON_CFG]:
        member.device.block.queues = int.from_bytes(given.pop(key), "little")
    original(member, given)


@on_pci(Member.parts, "2.12.1.4.4.1-D-22", text="a reset leaves the device status in the parts")
def parts_after_a_reset(original: Original, member: Member) -> Values:
    found: Values = original(member)
    key = next(key for key in found if key[0] == Part.DEVICE_STATUS)
    if member.device.status:
        vars(member)["last_status"] = found[key]
    return {**found, key: vars(member).get("last_status", b"\x0f")}


@on_pci(
    Member.serves,
    "2.12.1.4.4.1-D-08",
    "2.12.1.4.4.1-D-15",
    "2.12.1.4.4.1-D-16",
    text="a stopped member executes requests",
)
def stopped_member_serves(original: Original, member: Member, queue: Queue) -> bool:
    with during(member, stopped=False):
        return bool(original(member, queue))


@on_pci(Member.settle, "2.12.1.4.4.1-D-09", text="a stopped member continues with its requests")
def stop_without_an_end(original: Original, member: Member, queue: Queue) -> None:
    pass


@on_pci(Member.settle, "2.12.1.4.4.1-D-10", text="a stopped member does not use what it executed")
def executed_but_not_used(original: Original, member: Member, queue: Queue) -> None:
    for job in queue._jobs:
        job.length = member.device.block.serve(job.request)
        job.done = True


@on_pci(
    Member.resume,
    "2.12.1.4.4.1-D-11a",
    text="notifications to a stopped member have no effect later",
)
def notifications_forgotten(original: Original, member: Member) -> None:
    for queue in member.device.queues:
        queue.kicked = False
    original(member)


@on_pci(Function._legacy_notify, "2.12.1.4.4.1-D-16", text="a notified member interrupts at once")
def stopped_member_interrupts(original: Original, function: Function, index: int) -> None:
    original(function, index)
    if vars(function).get("stopped"):
        function.interrupts.raise_interrupt(0, ISR_QUEUE)


@on_pci(
    Member.announce_config_change, "2.12.1.4.4.1-D-16", text="a stopped member announces changes"
)
def stopped_member_announces(original: Original, member: Member) -> None:
    with during(member, stopped=False):
        original(member)


def refuse_mode(members: Members, command: Command, flags: int, stopped: bool) -> None:
    """Refuse a mode in which the member is already."""
    if command.data[0] == flags and members.function(command).stopped == stopped:
        raise RefusedError(AdminStatus.EINVAL)


@on_pci(Members._set_mode, "2.12.1.4.4.1-D-20", text="a stopped member cannot be stopped")
def stopped_once(original: Original, members: Members, command: Command) -> bytes:
    refuse_mode(members, command, 1, stopped=True)
    return bytes(original(members, command))


@on_pci(Members._set_mode, "2.12.1.4.4.1-D-21", text="a member that runs cannot be resumed")
def running_not_resumed(original: Original, members: Members, command: Command) -> bytes:
    refuse_mode(members, command, 0, stopped=False)
    return bytes(original(members, command))


# --- legacy access (2.12.1.1.6)


@on_pci(
    Members._handlers,
    "2.12.1.1.6-D-01",
    "2.12.1.1.6-D-12",
    text="there is no command to read the legacy header",
)
def no_command_to_read_the_header(original: Original, members: Members) -> dict[int, Handler]:
    handlers: dict[int, Handler] = original(members)
    del handlers[Opcode.LEGACY_COMMON_CFG_READ]
    return handlers


@on_pci(
    Member.read_config,
    "2.12.1.1.6-D-02",
    "2.12.1.1.6-D-08",
    text="the legacy configuration of a member is big-endian",
)
def member_configuration_big_endian(
    original: Original, member: Member, offset: int, length: int
) -> bytes:
    return bytes(original(member, offset, length))[::-1]


@on_pci(
    Member.read_legacy,
    "2.12.1.1.6-D-02",
    "2.12.1.1.6-D-06",
    text="the legacy header of a member is read big-endian",
)
def member_header_big_endian(original: Original, member: Member, offset: int, length: int) -> bytes:
    return bytes(original(member, offset, length))[::-1]


@on_pci(
    Member.check_common, "2.12.1.1.6-D-03", text="accesses to several fields of a header succeed"
)
def header_fields_not_checked(original: Original, member: Member, offset: int, length: int) -> None:
    if not length:
        raise MismatchError("no bytes")


@on_pci(
    Member.check_config,
    "2.12.1.1.6-D-04",
    text="accesses to several fields of a configuration succeed",
)
def configuration_fields_not_checked(
    original: Original, member: Member, offset: int, length: int
) -> None:
    if not length:
        raise MismatchError("no bytes")


@on_pci(
    Member.write_legacy, "2.12.1.1.6-D-05", text="writes to the legacy header of a member are lost"
)
def header_writes_lost(original: Original, member: Member, offset: int, data: bytes) -> None:
    pass


@on_pci(Member.read_legacy, "2.12.1.1.6-D-06", text="the legacy header of a member reads 0")
def header_reads_0(original: Original, member: Member, offset: int, length: int) -> bytes:
    return bytes(length)


@on_pci(
    Member.write_config,
    "2.12.1.1.6-D-07",
    text="writes to the legacy configuration of a member are lost",
)
def configuration_writes_lost(original: Original, member: Member, offset: int, data: bytes) -> None:
    pass


@on_pci(Member.read_config, "2.12.1.1.6-D-08", text="the legacy configuration of a member reads 0")
def configuration_reads_0(original: Original, member: Member, offset: int, length: int) -> bytes:
    return bytes(length)


@on_pci(Owner._define_header, "2.12.1.1.6-D-09", text="the owner's ids are transitional")
def owner_with_transitional_ids(original: Original, owner: Owner) -> None:
    original(owner)
    owner.space.define(REVISION, b"\0")
    owner.space.define(SUBSYSTEM, b"\2\0")


@on_pci(Owner._define_header, "2.12.1.1.6-D-10", text="the owner's device id is transitional")
def owner_with_a_transitional_device_id(original: Original, owner: Owner) -> None:
    original(owner)
    owner.space.define(2, TRANSITIONAL_DEVICE_ID.to_bytes(2, "little"))


@on_pci(Members.notified, "2.12.1.1.6-D-11", text="the addresses for notifications do nothing")
def notification_addresses_dead(
    original: Original, members: Members, offset: int, data: bytes
) -> None:
    pass


def altered_entries(answer: bytes, bar: int | None = None, uneven: bool = False) -> bytes:
    """Return the entries of LEGACY_NOTIFY_INFO with another BAR, or odd offsets."""
    entries: list[tuple[Any, ...]] = [
        (flags, at if bar is None or not flags else bar, offset + (uneven and flags > 0))
        for flags, at, offset in NOTIFY_INFO.iter_unpack(answer)
    ]
    return b"".join(NOTIFY_INFO.pack(*entry) for entry in entries)


@on_pci(Members._notify_info, "2.12.1.1.6-D-13", text="the list of addresses has no end")
def addresses_without_an_end(original: Original, members: Members, command: Command) -> bytes:
    answer = bytes(original(members, command))
    return answer[: NOTIFY_INFO.size] * (len(answer) // NOTIFY_INFO.size)


@on_pci(Members._notify_info, "2.12.1.1.6-D-14", text="an address is in a BAR that does not exist")
def addresses_in_no_bar(original: Original, members: Members, command: Command) -> bytes:
    return altered_entries(bytes(original(members, command)), bar=3)


@on_pci(Members._notify_info, "2.12.1.1.6-D-15", text="an address for notifications is odd")
def odd_addresses(original: Original, members: Members, command: Command) -> bytes:
    return altered_entries(bytes(original(members, command)), uneven=True)


@on_pci(Members.power_on, "2.12.1.1.6-D-17", text="the members have a BAR 0")
def members_have_bar_0(original: Original, members: Members) -> None:
    original(members)
    members._owner.space.define(EXTENDED + SR_IOV_BAR_0, bytes(4), b"\x00\xf0\xff\xff")


# --- the bus of a stopped member (2.12.1.4.4.1)


@on_pci(Function._bar_read, "2.12.1.4.4.1-D-12", text="registers of a stopped member read ones")
def stopped_member_reads_ones(
    original: Original, function: Function, bar: int, offset: int, length: int
) -> bytes:
    if vars(function).get("stopped"):
        return b"\xff" * length
    return bytes(original(function, bar, offset, length))


@on_pci(
    Function._config_read,
    "2.12.1.4.4.1-D-12",
    text="configuration space of a stopped member reads ones",
)
def stopped_member_hides_its_header(
    original: Original, function: Function, offset: int, length: int
) -> bytes:
    if vars(function).get("stopped"):
        return b"\xff" * length
    return bytes(original(function, offset, length))


@on_pci(
    Function.config_write,
    "2.12.1.4.4.1-D-13",
    text="writes to the configuration space of a stopped member are lost",
)
def stopped_member_ignores_writes(
    original: Original, function: Function, offset: int, data: bytes
) -> None:
    if not vars(function).get("stopped"):
        original(function, offset, data)


@on_pci(Member.reset, "2.12.1.4.4.1-D-13", text="a stopped member is not reset, and stays as it is")
def stopped_member_is_not_reset(original: Original, member: Member) -> None:
    if not member.stopped or not member.attached:
        original(member)
