"""Groups of devices, and the administration virtqueues of their owner (virtio 2.12, 2.13).

A `Group` has the commands of one type of group. `Administration` finds the group of a command, and
`AdminQueue` takes commands from a virtqueue.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.model.block import Block
from harness.model.loop import Loop
from harness.model.memory import pieces, size
from harness.model.queue import Queue, Throttle
from harness.model.ring import Chain, Ring
from harness.virtio.admin import (
    ANSWER,
    CAP_DEV_PARTS,
    CAP_HEAD,
    COMMAND,
    LISTS,
    PARTS_LIMITS,
    AdminStatus,
    Opcode,
    Qualifier,
    numbers,
    words,
)
from harness.virtio.admin import Group as GroupType


class RefusedError(Exception):
    """Error of a command: `status` and `qualifier` are the answer to it."""

    def __init__(self, status: AdminStatus, qualifier: Qualifier | None = None) -> None:
        """`qualifier` is INVALID_FIELD for EINVAL, and INVALID_COMMAND for another status."""
        invalid = status is AdminStatus.EINVAL
        self.status = status
        self.qualifier = qualifier or (
            Qualifier.INVALID_FIELD if invalid else Qualifier.INVALID_COMMAND
        )
        super().__init__(f"{self.status.name}, {self.qualifier.name}")


@dataclass(frozen=True)
class Command:
    """A command. `data` follows its head; `room` is the number of bytes for its result."""

    opcode: int
    group: int
    member: int
    data: bytes
    room: int

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Return the fields at the start of the data. Bytes that are not there are 0 (2.13.1)."""
        return layout.unpack(self.data[: layout.size].ljust(layout.size, b"\0"))


Handler = Callable[[Command], bytes]
"""Execute a command: return its result, or raise RefusedError and change nothing."""


class Group:
    """A group of one type, with the commands that its owner supports for it."""

    def __init__(
        self,
        kind: GroupType,
        handlers: Mapping[int, Handler],
        members: Callable[[], range | None],
    ) -> None:
        """`members` returns the identifiers of the members, None while there is no group."""
        self.kind = kind
        self.members = members
        self._handlers: dict[int, Handler] = {
            Opcode.LIST_QUERY: self._list_query,
            Opcode.LIST_USE: self._list_use,
            **handlers,
        }
        self.reset()

    def reset(self) -> None:
        """Return to the commands that a driver may use before LIST_USE."""
        self.used: frozenset[int] = LISTS

    def supported(self) -> frozenset[int]:
        """Return the opcodes of all commands."""
        return frozenset(self._handlers)

    def execute(self, command: Command) -> bytes:
        """Return the result of a command. RefusedError if it fails."""
        if command.opcode not in self.used:
            raise RefusedError(AdminStatus.EINVAL, Qualifier.INVALID_OPCODE)
        if command.opcode not in LISTS and command.member not in (self.members() or ()):
            raise RefusedError(AdminStatus.EINVAL, Qualifier.INVALID_MEMBER)
        return self._handlers[command.opcode](command)

    def _list_query(self, command: Command) -> bytes:
        del command
        return words(self.supported())

    def _list_use(self, command: Command) -> bytes:
        wanted = frozenset(numbers(command.data))
        if not wanted <= self.supported():
            raise RefusedError(AdminStatus.EINVAL)
        self.used = wanted
        return b""


class Capabilities:
    """Capabilities of the device, and what the driver has set of them (virtio 2.12.1.2)."""

    def __init__(
        self, offered: Mapping[int, bytes], in_use: Callable[[bytes], bool] = lambda _: False
    ) -> None:
        """`in_use` returns True if an object exists that new limits leave no room for."""
        self._offered = dict(offered)
        self._in_use = in_use
        self.reset()

    def reset(self) -> None:
        """Forget what the driver has set."""
        self._chosen: dict[int, bytes] = {}

    def handlers(self) -> dict[int, Handler]:
        """Return the commands; there are none without a capability."""
        if not self._offered:
            return {}
        return {
            Opcode.CAP_ID_LIST_QUERY: self._query,
            Opcode.DEVICE_CAP_GET: self._get,
            Opcode.DRIVER_CAP_SET: self._set,
        }

    def limits(self) -> tuple[int, int]:
        """Return how many objects the driver may create for getting, and for setting parts."""
        gets, sets = PARTS_LIMITS.unpack(self._chosen.get(CAP_DEV_PARTS, bytes(2)))
        return gets, sets

    def _query(self, command: Command) -> bytes:
        del command
        return words(frozenset(self._offered))

    def _known(self, command: Command) -> int:
        (ident,) = command.unpack(CAP_HEAD)
        if ident not in self._offered:
            raise RefusedError(AdminStatus.ENXIO)
        return int(ident)

    def _get(self, command: Command) -> bytes:
        return self._offered[self._known(command)]

    def _set(self, command: Command) -> bytes:
        ident = self._known(command)
        most = self._offered[ident]
        wanted = command.data[CAP_HEAD.size :][: len(most)].ljust(len(most), b"\0")
        if any(value > limit for value, limit in zip(wanted, most, strict=True)):
            raise RefusedError(AdminStatus.EINVAL)
        if self._in_use(wanted):
            raise RefusedError(AdminStatus.EBUSY)
        self._chosen[ident] = wanted
        return b""


class Administration:
    """All groups of an owner."""

    def __init__(self, groups: list[Group]) -> None:
        self.groups = {group.kind: group for group in groups}

    def reset(self) -> None:
        """Forget which commands the driver uses."""
        for group in self.groups.values():
            group.reset()

    def answer(self, sent: bytes, room: int) -> bytes:
        """Return the device-writable part for a device-readable one; at most `room` bytes."""
        opcode, kind, member = COMMAND.unpack(sent[: COMMAND.size].ljust(COMMAND.size, b"\0"))
        command = Command(opcode, kind, member, sent[COMMAND.size :], max(room - ANSWER.size, 0))
        try:
            result = self.execute(command)
            status, qualifier = AdminStatus.OK, Qualifier.OK
        except RefusedError as error:
            result, status, qualifier = b"", error.status, error.qualifier
        return (ANSWER.pack(status, qualifier) + result)[:room]

    def execute(self, command: Command) -> bytes:
        """Return the result of a command. RefusedError if it fails (virtio 2.12.1.5)."""
        group = self.groups.get(GroupType(command.group)) if command.group in self.groups else None
        if group is None or group.members() is None:
            raise RefusedError(AdminStatus.EINVAL, Qualifier.INVALID_GROUP)
        return group.execute(command)


class AdminQueue(Queue):
    """An administration virtqueue: each chain is a command, executed at once and in order."""

    def __init__(self, block: Block, loop: Loop, administration: Administration) -> None:
        super().__init__(block, Throttle(None), loop)
        self._administration = administration

    def _begin(self, ring: Ring, chain: Chain, replayed: bool = False) -> None:
        sent = b"".join(pieces(chain.readable, 0, size(chain.readable)))
        answer = self._administration.answer(sent, size(chain.writable))
        self.finish(ring, chain, answer)

    def finish(self, ring: Ring, chain: Chain, answer: bytes) -> None:
        """Write the answer to a command, and use its chain."""
        at = 0
        for piece in pieces(chain.writable, 0, len(answer)):
            piece[:] = answer[at : at + len(piece)]
            at += len(piece)
        ring.use(chain, len(answer))
