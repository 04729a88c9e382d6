"""The driver of an administration virtqueue (virtio 2.12, 2.13)."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from harness.driver.errors import BadArgumentError
from harness.driver.interface import CANARY, REQUEST_TIMEOUT, Buffer, Driver
from harness.virtio.admin import ANSWER, COMMAND, AdminStatus, Group, Opcode, numbers, words

ROOM = 64
"""Bytes for the result of a command, unless the caller says otherwise."""


@dataclass(frozen=True)
class Command:
    """A command: the device-readable part, and the size of the device-writable one, in bytes.

    `readable` and `writable` cut these into descriptors of these lengths; empty means one each.
    """

    sent: bytes
    room: int
    readable: tuple[int, ...] = ()
    writable: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, opcode: int, group: int = Group.SELF, member: int = 0, data: bytes = b"", room: int = 0
    ) -> Command:
        """Return a command with its own data, and with `room` bytes for its result."""
        return cls(COMMAND.pack(opcode, group, member) + data, ANSWER.size + room)


@dataclass(frozen=True)
class Answer:
    """The answer to a command.

    `written` is the whole device-writable part as it lies in memory; a byte equal to `CANARY` was
    not written. `used` is the length in the used ring.
    """

    written: bytes
    used: int

    @property
    def status(self) -> int:
        """Return the status. What the device did not write counts as 0 (virtio 2.13)."""
        return int(ANSWER.unpack(self._known(0, ANSWER.size))[0])

    @property
    def qualifier(self) -> int:
        """Return the status qualifier."""
        return int(ANSWER.unpack(self._known(0, ANSWER.size))[1])

    @property
    def result(self) -> bytes:
        """Return the result as far as the device says that it wrote it."""
        return self.written[ANSWER.size : self.used]

    def _known(self, start: int, end: int) -> bytes:
        return self.written[start : min(end, self.used)].ljust(end - start, b"\0")


class AdminQueue:
    """An administration virtqueue of a device that was negotiated with ADMIN_VQ, before DRIVER_OK.

    The device's memory holds a command and its answer until the next reset.
    """

    def __init__(self, driver: Driver, number: int = 0) -> None:
        """Set up virtqueue `number` of the administration virtqueues, which count from 0."""
        count = driver.register_read("admin_queue_num")
        if number >= count:
            raise BadArgumentError(f"the device has {count} administration virtqueues")
        self.driver = driver
        self.index = driver.register_read("admin_queue_index") + number
        driver.queue_setup(self.index)

    def exchange(
        self, commands: Sequence[Command], timeout: float = REQUEST_TIMEOUT
    ) -> list[Answer]:
        """Make commands available together, and return their answers in the same order."""
        driver = self.driver
        heads: dict[int, tuple[int, int]] = {}
        for command in commands:
            sent = driver.alloc(len(command.sent), 8)
            driver.memory_write(sent, command.sent)
            answer = driver.alloc(command.room, 8)
            driver.memory_write(answer, bytes([CANARY]) * command.room)
            buffers = [
                *_cut(sent, command.readable or (len(command.sent),)),
                *_cut(answer, command.writable or (command.room,), writable=True),
            ]
            heads[driver.queue_add(self.index, buffers)] = answer, command.room
        driver.queue_publish(self.index, list(heads))
        driver.queue_kick(self.index)
        used = driver.queue_poll(self.index, len(commands), timeout)
        lengths = {chain.id: chain.length for chain in used}
        return [
            Answer(driver.memory_read(at, room), lengths[head])
            for head, (at, room) in heads.items()
        ]

    def command(
        self,
        opcode: int,
        group: int = Group.SELF,
        member: int = 0,
        data: bytes = b"",
        room: int = ROOM,
    ) -> Answer:
        """Send a command and wait for its answer."""
        return self.exchange([Command.of(opcode, group, member, data, room)])[0]

    def supported(self, group: int = Group.SELF) -> set[int]:
        """Return the opcodes that the device supports for a group, none if LIST_QUERY fails."""
        answer = self.command(Opcode.LIST_QUERY, group)
        return numbers(answer.result) if answer.status == AdminStatus.OK else set()

    def use(self, opcodes: Set[int], group: int = Group.SELF) -> Answer:
        """Tell the device which commands will be used for a group."""
        return self.command(Opcode.LIST_USE, group, data=words(frozenset(opcodes)))


def _cut(address: int, lengths: Sequence[int], writable: bool = False) -> list[Buffer]:
    """Return buffers of these lengths that follow one another."""
    starts = [address + sum(lengths[:number]) for number in range(len(lengths))]
    return [Buffer(start, length, writable) for start, length in zip(starts, lengths, strict=True)]
