"""Access to a running machine of another process, over its `Machine.qmp_path`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.diskspec import SECTOR
from harness.machine.errors import MachineError
from harness.machine.monitor import LoopThread, Monitor

DEADLINE = 5.0


@dataclass(frozen=True)
class Visitor:
    """A session with a running machine, from `visit`."""

    monitor: Monitor

    def drives(self) -> dict[str, int]:
        """Return the sizes of its disks in bytes, by name."""
        found = self.monitor.execute("query-block", {}, DEADLINE)
        inserted = (block["inserted"] for block in found if "inserted" in block)
        return {node["node-name"]: node["image"]["virtual-size"] for node in inserted}

    def files(self) -> dict[str, str]:
        """Return the file behind each of its disks, as QEMU names it; "" for none."""
        found = self.monitor.execute("query-block", {}, DEADLINE)
        inserted = (block["inserted"] for block in found if "inserted" in block)
        return {node["node-name"]: _file_of(node["image"]["filename"]) for node in inserted}

    def resize(self, drive: str, size: int) -> None:
        """Resize the disk to `size` bytes while the machine runs.

        Raises MachineError if there is no such disk, or if QEMU refuses the size.
        """
        drives = self.drives()
        if drive not in drives:
            raise MachineError(
                f"there is no disk {drive}; there are: {', '.join(drives) or 'none'}"
            )
        if size <= 0 or size % SECTOR:
            raise MachineError(f"{size} bytes is no disk size: use whole sectors of {SECTOR}")
        try:
            self.monitor.execute("block_resize", {"node-name": drive, "size": size}, DEADLINE)
        except MachineError as error:
            raise MachineError(f"{drive} was not resized to {size} bytes: {error}") from error


def _file_of(filename: str) -> str:
    """Return the name of a node's file, "" for a null disk, which has none."""
    return "" if filename.startswith("null-co:") else filename


@contextmanager
def visit(qmp_path: Path) -> Iterator[Visitor]:
    """Open a session with the machine of this QMP socket, and close it afterwards.

    Raises MachineError if no process listens there, or another session is open.
    """
    loop = LoopThread("visitor")
    try:
        try:
            monitor = Monitor(loop, str(qmp_path), "QEMU", DEADLINE)
        except MachineError as error:
            raise MachineError(f"no machine answers at {qmp_path}: {error}") from error
        try:
            yield Visitor(monitor)
        finally:
            monitor.close()
    finally:
        loop.close()
