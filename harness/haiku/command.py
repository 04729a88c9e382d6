# Derived from Haiku's virtio_block driver:
# Copyright 2013, Jérôme Duval, korli@users.berlios.de.
# Distributed under the terms of the MIT License.
"""The command buffer: one page with the headers and ack bytes of commands.

The seed has one header and one ack for all commands, so that a command which
the device finishes after its timeout writes the ack of the next one. Here every
command has a slot of its own, and a slot goes back into use only after the
device has used its chain.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.haiku.constants import B_PAGE_SIZE
from harness.haiku.request import IOOperation
from harness.virtio.blk import REQUEST_HEADER

SLOT_SIZE = 32
"""Bytes of a slot: the header, the ack byte behind it, and padding."""


@dataclass
class Command:
    """A command for the device; `address` is that of its header in the command buffer.

    `head` is the head of its chain once that is laid out. `operation` is the
    I/O operation it carries out, None for a flush. A command is abandoned when
    its timeout has passed: nobody looks at its ack any more.
    """

    address: int
    operation: IOOperation | None
    head: int = -1
    used: bool = False
    abandoned: bool = False

    @property
    def ack(self) -> int:
        """The address of the byte that the device puts its status in."""
        return self.address + REQUEST_HEADER.size


class CommandBuffer:
    """The slots of one page, and the commands the device has, by the head of their chain."""

    def __init__(self, address: int) -> None:
        slots = range(address, address + B_PAGE_SIZE, SLOT_SIZE)
        self._free = list(reversed(slots))
        self.in_flight: dict[int, Command] = {}

    def take(self, operation: IOOperation | None) -> Command | None:
        """A command with a free slot, None if the device has them all."""
        return Command(self._free.pop(), operation) if self._free else None

    def give_back(self, command: Command) -> None:
        """Take back the slot of a command that the device is done with, or never got."""
        self._free.append(command.address)

    @property
    def abandoned(self) -> list[Command]:
        """Commands that timed out and that the device may still carry out."""
        return [command for command in self.in_flight.values() if command.abandoned]
