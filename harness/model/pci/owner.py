"""The PCI function with administration virtqueues, and the group of functions that it owns.

Without `members` of the disk there is the self group alone, with no commands but LIST_QUERY and
LIST_USE. With them the function has an SR-IOV capability, and drivers enable its members there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from harness.model.administration import (
    Administration,
    AdminQueue,
    Capabilities,
    Command,
    Group,
    Handler,
    RefusedError,
)
from harness.model.block import Block
from harness.model.loop import Loop
from harness.model.memory import Memory
from harness.model.pci.function import (
    MEMBERS_BAR,
    MSIX_BAR,
    REGISTER_BAR,
    REGISTER_BAR_SIZE,
    Function,
)
from harness.model.pci.interrupts import BAR_SIZE as MSIX_BAR_SIZE
from harness.model.pci.member import Member, MismatchError, Values
from harness.virtio.admin import (
    CAP_DEV_PARTS,
    GETS,
    LEGACY_ACCESS_HEAD,
    METADATA,
    METADATA_COUNT,
    METADATA_LIST,
    METADATA_SIZE,
    MODE,
    MODE_STOPPED,
    NOTIFY_ENTRIES,
    NOTIFY_INFO,
    NOTIFY_OWNER,
    OBJECT,
    OBJECT_DEV_PARTS,
    OBJECT_HEAD,
    PART,
    PART_OPTIONAL,
    PARTS_ALL,
    PARTS_LIMITS,
    PARTS_OBJECT,
    PARTS_QUESTION,
    PARTS_SELECTED,
    SETS,
    AdminStatus,
    Opcode,
    Part,
    parts_in,
)
from harness.virtio.admin import Group as GroupType
from harness.virtio.features import Feature, mask
from harness.virtio.pci import (
    BAR_64,
    EXT_CAP_SR_IOV,
    EXTENDED,
    MODERN_DEVICE_ID,
    SR_IOV_BAR_0,
    SR_IOV_CONTROL,
    SR_IOV_DEVICE,
    SR_IOV_INITIAL_VFS,
    SR_IOV_NUM_VFS,
    SR_IOV_PAGE_SIZES,
    SR_IOV_SIZE,
    SR_IOV_TOTAL_VFS,
    SR_IOV_VF_ENABLE,
    SR_IOV_VF_MEMORY,
)

PARTS_OBJECTS = 4
"""Most device parts objects of each purpose."""

MEMBERS_BAR_SIZE = 0x1000
NOTIFY_STEP = 4
"""Size of the BAR for notifications of members, and the distance between two members, in bytes."""


class Owner(Function):
    """A function with one administration virtqueue, behind the virtqueues of the block device."""

    def _transport_features(self, block: Block) -> int:
        own = mask(Feature.ADMIN_VQ) | (mask(Feature.SR_IOV) if block.spec.members else 0)
        return super()._transport_features(block) | own

    def _add_queues(self, block: Block, loop: Loop) -> None:
        self._members = Members(self, block, loop) if block.spec.members else None
        alone = [Group(GroupType.SELF, {}, lambda: range(1))]
        self.administration = Administration(self._members.groups if self._members else alone)
        self.device.queues.append(AdminQueue(block, loop, self.administration))

    def _available(self, index: int) -> bool:
        first, count = self._admin_queues()
        has = first <= index < first + count and self.device.has(Feature.ADMIN_VQ)
        return has or super()._available(index)

    def _admin_queues(self) -> tuple[int, int]:
        return self.device.block.queues, 1

    def _reset_registers(self) -> None:
        super()._reset_registers()
        self.administration.reset()
        if self._members:
            self._members.forget()

    # --- the members

    def _power_on(self) -> None:
        super()._power_on()
        if self._members:
            self._members.power_on()

    @property
    def bars(self) -> dict[int, int]:
        """Return the sizes of the BARs in bytes, by number."""
        return super().bars | ({MEMBERS_BAR: MEMBERS_BAR_SIZE} if self._members else {})

    def _define_header(self) -> None:
        super()._define_header()
        if self._members:
            self.space.define_bar(MEMBERS_BAR, MEMBERS_BAR_SIZE, 0)

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space; the SR-IOV capability there enables members."""
        super().config_write(offset, data)
        if self._members:
            self._members.control_written()

    def _bar_read(self, bar: int, offset: int, length: int) -> bytes:
        if bar == MEMBERS_BAR:
            return bytes(length)
        return super()._bar_read(bar, offset, length)

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        """Write bytes of a BAR by one access."""
        if bar == MEMBERS_BAR and self._members and self._powered:
            self._members.notified(offset, data)
        else:
            super().bar_write(bar, offset, data)

    def set_memory(self, memory: Memory) -> None:
        """Use another view of the client's memory, also in the members."""
        super().set_memory(memory)
        if self._members:
            self._members.set_memory(memory)

    def announce_config_change(self) -> None:
        """Send a configuration change notification, also for members whose capacity changes."""
        super().announce_config_change()
        if self._members:
            self._members.resize(self.device.block.capacity)

    def member(self, number: int) -> Member | None:
        """Return the member with this identifier, None while it is not enabled."""
        return self._members.enabled(number) if self._members else None


class Members:
    """The member functions of an owner, and the commands for them.

    They have the disk of their owner. They are there while VF Enable is set.
    """

    def __init__(self, owner: Owner, block: Block, loop: Loop) -> None:
        self._owner = owner
        self._total = block.spec.members or 0
        spec = replace(block.spec, members=None, notify_port=None)
        self._functions = [
            Member(type(block)(spec, block.storage), loop) for _ in range(self._total)
        ]
        self._enabled = 0
        self._objects: dict[int, tuple[int, int]] = {}
        """The purpose and the member of each device parts object, by its id."""
        limits = PARTS_LIMITS.pack(PARTS_OBJECTS, PARTS_OBJECTS)
        self.capabilities = Capabilities({CAP_DEV_PARTS: limits}, self._in_use)
        self.groups = [
            Group(GroupType.SELF, self.capabilities.handlers(), lambda: range(1)),
            Group(GroupType.SR_IOV, self._handlers(), self.present),
        ]

    def _handlers(self) -> dict[int, Handler]:
        return {
            Opcode.LEGACY_COMMON_CFG_WRITE: self._write_common,
            Opcode.LEGACY_COMMON_CFG_READ: self._read_common,
            Opcode.LEGACY_DEV_CFG_WRITE: self._write_config,
            Opcode.LEGACY_DEV_CFG_READ: self._read_config,
            Opcode.LEGACY_NOTIFY_INFO: self._notify_info,
            Opcode.RESOURCE_OBJ_CREATE: self._create,
            Opcode.RESOURCE_OBJ_QUERY: self._query,
            Opcode.RESOURCE_OBJ_MODIFY: self._modify,
            Opcode.RESOURCE_OBJ_DESTROY: self._destroy,
            Opcode.DEV_PARTS_METADATA_GET: self._metadata,
            Opcode.DEV_PARTS_GET: self._get_parts,
            Opcode.DEV_PARTS_SET: self._set_parts,
            Opcode.DEV_MODE_SET: self._set_mode,
        }

    # --- the SR-IOV capability

    def power_on(self) -> None:
        """Define the capability, with all members disabled."""
        space = self._owner.space
        capability = bytearray(SR_IOV_SIZE)
        capability[:4] = (EXT_CAP_SR_IOV | 1 << 16).to_bytes(4, "little")
        for offset, value, width in (
            (SR_IOV_INITIAL_VFS, self._total, 2),
            (SR_IOV_TOTAL_VFS, self._total, 2),
            (SR_IOV_DEVICE, MODERN_DEVICE_ID, 2),
            (SR_IOV_PAGE_SIZES, 1, 4),
            (SR_IOV_PAGE_SIZES + 4, 1, 4),
            (SR_IOV_BAR_0 + 4 * REGISTER_BAR, BAR_64, 4),
        ):
            capability[offset : offset + width] = value.to_bytes(width, "little")
        writable = bytearray(SR_IOV_SIZE)
        writable[SR_IOV_CONTROL] = SR_IOV_VF_ENABLE | SR_IOV_VF_MEMORY
        writable[SR_IOV_NUM_VFS : SR_IOV_NUM_VFS + 2] = b"\xff\xff"
        for bar, size in ((MSIX_BAR, MSIX_BAR_SIZE), (REGISTER_BAR, REGISTER_BAR_SIZE)):
            at = SR_IOV_BAR_0 + 4 * bar
            width = 8 if bar == REGISTER_BAR else 4
            writable[at : at + width] = (-size & (1 << 8 * width) - 1).to_bytes(width, "little")
        space.define(EXTENDED, bytes(capability), bytes(writable))
        self.control_written()

    def present(self) -> range | None:
        """Return the identifiers of the members, None while VF Enable is clear."""
        space = self._owner.space
        if not space.field(EXTENDED + SR_IOV_CONTROL, 2) & SR_IOV_VF_ENABLE:
            return None
        return range(1, min(space.field(EXTENDED + SR_IOV_NUM_VFS, 2), self._total) + 1)

    def control_written(self) -> None:
        """Reset the members that are not there any more, with what belongs to them."""
        enabled = len(self.present() or ())
        gone = range(enabled, self._enabled)
        self._enabled = enabled
        for number in gone:
            self._functions[number].vanish()
        self._objects = {
            ident: known for ident, known in self._objects.items() if known[1] <= enabled
        }

    def set_memory(self, memory: Memory) -> None:
        """Use another view of the client's memory."""
        for function in self._functions:
            function.share_memory(memory)

    def resize(self, capacity: int) -> None:
        """Give the members the capacity of their owner, in sectors, and announce a change."""
        for function in self._functions:
            if function.device.block.capacity != capacity:
                function.device.block.capacity = capacity
                function.device.config_changed()

    def forget(self) -> None:
        """Forget capabilities and objects, as a reset of the owner does."""
        self._objects.clear()
        self.capabilities.reset()

    def enabled(self, number: int) -> Member | None:
        """Return the member with an identifier, None if there is none now."""
        return self._functions[number - 1] if number in (self.present() or ()) else None

    def function(self, command: Command) -> Member:
        """Return the member of a command."""
        return self._functions[command.member - 1]

    # --- legacy access (2.12.1.1)

    def notified(self, offset: int, data: bytes) -> None:
        """Take a write to the addresses of LEGACY_NOTIFY_INFO."""
        number, at = divmod(offset, NOTIFY_STEP)
        if number + 1 in (self.present() or ()) and at == 0 and len(data) == 2:
            self._functions[number].notify_legacy(int.from_bytes(data, "little"))

    @staticmethod
    def _access(command: Command) -> tuple[int, bytes]:
        (offset,) = command.unpack(LEGACY_ACCESS_HEAD)
        return offset, command.data[LEGACY_ACCESS_HEAD.size :]

    def _write_common(self, command: Command) -> bytes:
        offset, data = self._access(command)
        member = self.function(command)
        _refuse_mismatch(lambda: member.check_common(offset, len(data)))
        member.write_legacy(offset, data)
        return b""

    def _read_common(self, command: Command) -> bytes:
        offset, _ = self._access(command)
        member = self.function(command)
        _refuse_mismatch(lambda: member.check_common(offset, command.room))
        return member.read_legacy(offset, command.room)

    def _write_config(self, command: Command) -> bytes:
        offset, data = self._access(command)
        member = self.function(command)
        _refuse_mismatch(lambda: member.check_config(offset, len(data)))
        member.write_config(offset, data)
        return b""

    def _read_config(self, command: Command) -> bytes:
        offset, _ = self._access(command)
        member = self.function(command)
        _refuse_mismatch(lambda: member.check_config(offset, command.room))
        return member.read_config(offset, command.room)

    def _notify_info(self, command: Command) -> bytes:
        at = NOTIFY_STEP * (command.member - 1)
        entry = NOTIFY_INFO.pack(NOTIFY_OWNER, MEMBERS_BAR, at)
        return entry.ljust(NOTIFY_ENTRIES * NOTIFY_INFO.size, b"\0")

    # --- device parts objects (2.12.1.3)

    def _in_use(self, limits: bytes) -> bool:
        most = PARTS_LIMITS.unpack(limits)
        return any(ident >= most[purpose] for ident, (purpose, _) in self._objects.items())

    @staticmethod
    def _purpose(data: bytes) -> int:
        (purpose,) = PARTS_OBJECT.unpack(data[: PARTS_OBJECT.size].ljust(PARTS_OBJECT.size, b"\0"))
        if purpose not in (GETS, SETS):
            raise RefusedError(AdminStatus.EINVAL)
        return int(purpose)

    def _create(self, command: Command) -> bytes:
        kind, ident, _ = command.unpack(OBJECT)
        if kind != OBJECT_DEV_PARTS:
            raise RefusedError(AdminStatus.EINVAL)
        purpose = self._purpose(command.data[OBJECT.size :])
        if ident in self._objects:
            raise RefusedError(AdminStatus.EEXIST)
        if ident >= self.capabilities.limits()[purpose]:
            raise RefusedError(AdminStatus.ENOSPC)
        self._objects[ident] = purpose, command.member
        return b""

    def _existing(self, command: Command, purpose: int | None = None) -> int:
        """Return the id of the object that a command names. RefusedError for a wrong purpose."""
        kind, ident = command.unpack(OBJECT_HEAD)
        known = self._objects.get(ident)
        if kind != OBJECT_DEV_PARTS or known is None or known[1] != command.member:
            raise RefusedError(AdminStatus.ENXIO)
        if purpose is not None and known[0] != purpose:
            raise RefusedError(AdminStatus.EINVAL)
        return int(ident)

    def _query(self, command: Command) -> bytes:
        return PARTS_OBJECT.pack(self._objects[self._existing(command)][0])

    def _modify(self, command: Command) -> bytes:
        ident = self._existing(command)
        self._objects[ident] = self._purpose(command.data[OBJECT.size :]), command.member
        return b""

    def _destroy(self, command: Command) -> bytes:
        del self._objects[self._existing(command)]
        return b""

    # --- device parts (2.12.1.4)

    def _metadata(self, command: Command) -> bytes:
        self._existing(command, GETS)
        *_, question = command.unpack(PARTS_QUESTION)
        parts = self.function(command).parts()
        answers = {
            METADATA_SIZE: METADATA.pack(len(_packed(parts))),
            METADATA_COUNT: METADATA.pack(len(parts)),
            METADATA_LIST: METADATA.pack(len(parts)) + _heads(parts),
        }
        if question not in answers:
            raise RefusedError(AdminStatus.EINVAL)
        if len(answers[question]) > command.room:
            raise RefusedError(AdminStatus.ENOMEM)
        return answers[question]

    def _get_parts(self, command: Command) -> bytes:
        self._existing(command, GETS)
        *_, question = command.unpack(PARTS_QUESTION)
        parts = self.function(command).parts()
        if question == PARTS_SELECTED:
            heads = command.data[PARTS_QUESTION.size :]
            heads = heads[: len(heads) // PART.size * PART.size]
            wanted = {(kind, selector) for kind, _, selector, _ in PART.iter_unpack(heads)}
            parts = {key: value for key, value in parts.items() if key in wanted}
        elif question != PARTS_ALL:
            raise RefusedError(AdminStatus.EINVAL)
        return _packed(parts)

    def _set_parts(self, command: Command) -> bytes:
        self._existing(command, SETS)
        member = self.function(command)
        try:
            found = parts_in(command.data[OBJECT_HEAD.size :])
        except ValueError:
            raise RefusedError(AdminStatus.EINVAL) from None
        given = {(kind, selector): value for kind, _, selector, value in found}
        _refuse_mismatch(lambda: member.check_parts(given))
        if not member.stopped:
            raise RefusedError(AdminStatus.EBUSY)
        member.restore(given)
        return b""

    def _set_mode(self, command: Command) -> bytes:
        (flags,) = command.unpack(MODE)
        member = self.function(command)
        if flags & ~MODE_STOPPED:
            raise RefusedError(AdminStatus.EINVAL)
        if not flags:
            member.resume()
        elif not member.stopped:
            member.stop()
        return b""


def _refuse_mismatch(check: Callable[[], None]) -> None:
    """Turn a MismatchError of `check` into the answer EINVAL."""
    try:
        check()
    except MismatchError:
        raise RefusedError(AdminStatus.EINVAL) from None


def _flags(kind: int) -> int:
    return PART_OPTIONAL if kind == Part.DEV_FEATURES else 0


def _heads(parts: Values) -> bytes:
    return b"".join(
        PART.pack(kind, _flags(kind), selector, len(value))
        for (kind, selector), value in parts.items()
    )


def _packed(parts: Values) -> bytes:
    return b"".join(
        PART.pack(kind, _flags(kind), selector, len(value)) + value
        for (kind, selector), value in parts.items()
    )
