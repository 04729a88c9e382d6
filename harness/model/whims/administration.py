"""Whims of administration virtqueues and of the groups of an owner (virtio 2.12, 2.13, 4.1.4.3)."""

from __future__ import annotations

from harness.model.administration import (
    Capabilities,
    Command,
    Group,
    Handler,
    RefusedError,
)
from harness.model.block import Block
from harness.model.pci.member import Member, Values
from harness.model.pci.owner import Members, Owner
from harness.model.whims.registry import PCI, Original, whim
from harness.virtio.admin import (
    DEVICE_PARTS,
    LEGACY_ACCESS,
    OBJECT,
    OPCODES_PER_WORD,
    AdminStatus,
    Opcode,
    Part,
    Qualifier,
)
from harness.virtio.features import Feature

FEW = 1
"""Device parts objects that a device has room for, though it allows more."""


@whim(Owner._transport_features, text="ADMIN_VQ is not offered", family="admin", ways=(PCI,))
def no_administration(original: Original, owner: Owner, block: Block) -> int:
    return int(original(owner, block)) & ~Feature.ADMIN_VQ.mask


@whim(
    Members._handlers,
    text="the owner cannot access the legacy interface of its members",
    family="admin-commands",
    ways=(PCI,),
)
def no_legacy_access(original: Original, members: Members) -> dict[int, Handler]:
    left = {*LEGACY_ACCESS, Opcode.LEGACY_NOTIFY_INFO}
    return {opcode: act for opcode, act in original(members).items() if opcode not in left}


@whim(
    Members._handlers,
    text="the owner has no addresses for notifications of its members",
    family="admin-commands",
    ways=(PCI,),
)
def no_notification_addresses(original: Original, members: Members) -> dict[int, Handler]:
    handlers: dict[int, Handler] = original(members)
    del handlers[Opcode.LEGACY_NOTIFY_INFO]
    return handlers


@whim(
    Members._handlers,
    text="the owner has no device parts of its members",
    family="admin-commands",
    ways=(PCI,),
)
def no_device_parts(original: Original, members: Members) -> dict[int, Handler]:
    return {opcode: act for opcode, act in original(members).items() if opcode not in DEVICE_PARTS}


@whim(
    Capabilities.handlers,
    text="the owner has no capabilities",
    family="admin-capabilities",
    ways=(PCI,),
)
def no_capabilities(original: Original, capabilities: Capabilities) -> dict[int, Handler]:
    return {}


@whim(Group._list_query, text="lists of commands end with words that are 0", ways=(PCI,))
def longer_lists(original: Original, group: Group, command: Command) -> bytes:
    return bytes(original(group, command)) + bytes(2 * OPCODES_PER_WORD // 8)


@whim(
    Members._create,
    text="there is room for one device parts object, though two are allowed",
    breaks=("2.12.1.3.5-D-06", "2.12.1.3.5-D-08"),
    ways=(PCI,),
)
def room_for_one_object(original: Original, members: Members, command: Command) -> bytes:
    _, ident, _ = command.unpack(OBJECT)
    if len(members._objects) >= FEW and ident not in members._objects:
        raise RefusedError(AdminStatus.ENOSPC, Qualifier.NO_RESOURCE)
    return bytes(original(members, command))


@whim(
    Capabilities._set,
    text="a limit above that of the device is taken for that of the device",
    ways=(PCI,),
)
def large_limits_taken(original: Original, capabilities: Capabilities, command: Command) -> bytes:
    try:
        return bytes(original(capabilities, command))
    except RefusedError as error:
        if error.status is AdminStatus.EINVAL:
            capabilities._chosen[capabilities._known(command)] = next(
                iter(capabilities._offered.values())
            )
            return b""
        raise


@whim(Member.parts, text="members have no parts about notifications", ways=(PCI,))
def no_notification_parts(original: Original, member: Member) -> Values:
    found: Values = original(member)
    return {key: value for key, value in found.items() if key[0] != Part.VQ_NOTIFY_CFG}
