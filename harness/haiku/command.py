# Derived from Haiku's virtio_block driver:
# Copyright 2013, Jérôme Duval, korli@users.berlios.de.
# Distributed under the terms of the MIT License.
"""The command buffer: a page with the headers and ack bytes of commands.

Haiku's driver has a single header and ack for all commands, so a command that
the device finishes after its timeout writes the ack of the next one. Here every
command has its own slot, which is reused only after the device has used its
chain.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.haiku.constants import B_PAGE_SIZE
from harness.haiku.request import IOOperation
from harness.virtio.blk import REQUEST_HEADER

SLOT_SIZE = 32
"""Bytes of a slot: the header, the ack byte after it, and padding."""


@dataclass
class Command:
    """A command for the device; `address` is that of its header in the command buffer.

    `head` is the head of its chain, once that is written. `operation` is the I/O
    operation that it executes, None for a flush. A command is abandoned when its
    timeout has passed: its ack is not read any more.
    """

    address: int
    operation: IOOperation | None
    head: int = -1
    used: bool = False
    abandoned: bool = False

    @property
    def ack(self) -> int:
        """Address of the byte in which the device writes its status."""
        return self.address + REQUEST_HEADER.size


class CommandBuffer:
    """The slots of a page, and the commands in the device, by the head of their chain."""

    def __init__(self, address: int) -> None:
        slots = range(address, address + B_PAGE_SIZE, SLOT_SIZE)
        self._free = list(reversed(slots))
        self.in_flight: dict[int, Command] = {}

    def take(self, operation: IOOperation | None) -> Command | None:
        """Return a command with a free slot, None if the device has all slots."""
        return Command(self._free.pop(), operation) if self._free else None

    def give_back(self, command: Command) -> None:
        """Free the slot of a command that the device has used or never received."""
        self._free.append(command.address)

    @property
    def abandoned(self) -> list[Command]:
        """Return commands that timed out and that the device may still execute."""
        return [command for command in self.in_flight.values() if command.abandoned]
