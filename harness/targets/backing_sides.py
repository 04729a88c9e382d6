"""The host's side of a disk, by who has its blocks: the machine itself, or a daemon beside it."""

from __future__ import annotations

from harness.diskspec import DiskSpec, unsupported
from harness.machine import Drive, Machine, MachineError
from harness.machine.blockgraph import HONOURED
from harness.machine.command import Board
from harness.machine.drive import Volume
from harness.machine.storage_daemon import Export
from harness.robustness.device_process import MONITOR_DEADLINE, DeviceProcess
from harness.targets.base import Backing, LacksError, TargetError, translated
from harness.targets.daemon import Daemon


def check_board(board: Board, spec: DiskSpec) -> None:
    """LacksError if a disk on that board cannot be what `spec` says, whoever has its blocks."""
    odd = unsupported(spec, HONOURED)
    if odd:
        raise LacksError(f"QEMU over a file has no option for a disk's {', '.join(odd)}")
    if board == "microvm" and spec.queue_size is not None:
        raise LacksError("QEMU's virtio-mmio shows 1024 as every queue's size, not a disk's own")


def machine_process(machine: Machine) -> tuple[DeviceProcess, ...]:
    """The QEMU of a machine that runs or ran."""
    if machine.pid is None:
        return ()

    def answers() -> bool:
        try:
            machine.qmp("query-status", timeout=MONITOR_DEADLINE)
        except MachineError:
            return False
        return True

    return (DeviceProcess("QEMU", machine.pid, machine.alive, machine.last_words, answers),)


class DriveSide:
    """The host's side of a disk whose blocks are QEMU's."""

    _drive: Drive

    @property
    def backing(self) -> Backing:
        """The raw file behind the disk. TargetError for a null disk."""
        return _backing(self._drive)

    def resize(self, capacity: int) -> None:
        """`block_resize`, live."""
        _resize(self._drive, capacity)


class ExportSide:
    """The host's side of a disk that is a daemon's export."""

    export: Export
    killed: bool
    _daemon: Daemon

    def _remove_export(self) -> None:
        if self.killed:
            return  # the daemon went, and all its exports with it
        try:
            self._daemon.remove(self.export)
        except MachineError as error:
            raise translated(error) from None

    @property
    def backing(self) -> Backing:
        """The raw file behind the disk. TargetError for a null disk."""
        return _backing(self.export)

    def resize(self, capacity: int) -> None:
        """`block_resize` in the daemon, live."""
        _resize(self.export, capacity)


def _backing(blocks: Volume) -> Backing:
    try:
        return blocks.backing
    except MachineError as error:
        raise TargetError(str(error)) from None


def _resize(blocks: Volume, capacity: int) -> None:
    try:
        blocks.resize(capacity)
    except MachineError as error:
        raise translated(error) from None
