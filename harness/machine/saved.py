"""A machine's state in files, and machines that go on from it.

Guest RAM is a file of its own, shared with QEMU while the machine runs, so that only the
devices' state is written when it is saved. A machine that goes on from it maps the file
copy-on-write: the file stays as it is, for any number of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from harness.machine.errors import MachineError

if TYPE_CHECKING:
    from harness.machine.machine import Machine

DEADLINE = 30.0
"""Seconds that QEMU may take to write, or to read, the state of all devices."""

# Without the first QEMU would copy RAM into the state; the second announces the end.
_CAPABILITIES = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]


@dataclass(frozen=True)
class Saved:
    """What `save` leaves of a machine: the file of its RAM, and that of its devices' state."""

    ram: Path
    state: Path


def save(machine: Machine, state: Path) -> None:
    """Halt a machine that has a `ram_file`, and write the state of its devices to a file.

    The machine is of no more use then. MachineError if QEMU cannot.
    """
    machine.qmp("stop")
    machine.qmp("migrate-set-capabilities", capabilities=_CAPABILITIES)
    machine.qmp("migrate", uri=f"exec:cat > {quote(str(state))}")
    _await_end(machine, "save")


def load(machine: Machine, state: int) -> None:
    """Bring a machine that has not run yet to the state in an open file.

    The machine must have been given the descriptor. MachineError if QEMU cannot.
    """
    machine.qmp("migrate-set-capabilities", capabilities=_CAPABILITIES)
    machine.qmp("migrate-incoming", uri=f"fd:{state}")
    _await_end(machine, "load")


def _await_end(machine: Machine, verb: str) -> None:
    def ended(event: dict[str, Any]) -> bool:
        return event["data"]["status"] in ("completed", "failed")

    event = machine.wait_event("MIGRATION", ended, DEADLINE)
    if event["data"]["status"] == "failed":
        reason = machine.qmp("query-migrate").get("error-desc", "it does not say why")
        raise MachineError(f"QEMU does not {verb} the machine's state: {reason}")


def private_copy(ram: Path) -> int:
    """An open file in memory with the contents of a file of RAM, holes left out.

    For a machine whose RAM somebody else maps too, which a copy-on-write mapping does not
    allow. The memory is free again when the last user has closed or ended.
    """
    size = ram.stat().st_size
    copy = os.memfd_create(ram.name)
    try:
        os.ftruncate(copy, size)
        with ram.open("rb", buffering=0) as source:
            for begin, end in extents(source.fileno(), size):
                os.lseek(copy, begin, os.SEEK_SET)
                while begin < end:
                    count = os.sendfile(copy, source.fileno(), begin, end - begin)
                    if count == 0:
                        raise MachineError(f"{ram} was cut short while it was copied")
                    begin += count
    except BaseException:
        os.close(copy)
        raise
    return copy


def extents(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Where an open file of `size` bytes has data: pairs of first byte and first after."""
    found = []
    end = 0
    while end < size:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            break
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        found.append((begin, end))
    return found
