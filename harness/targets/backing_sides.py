"""Mixins that give a disk `backing` and `resize`.

`DriveSide` is for a disk whose blocks QEMU owns, `ExportSide` for one whose blocks a storage daemon
owns.
"""

from __future__ import annotations

from harness.diskspec import SECTOR, DiskSpec, unsupported
from harness.driver.block import BlockDriver
from harness.driver.interface import Driver
from harness.machine import Drive, Machine, MachineError
from harness.machine.blockgraph import HONOURED
from harness.machine.command import Board
from harness.machine.drive import Volume
from harness.machine.qcow2 import MAX_SIZE
from harness.robustness.device_process import MONITOR_DEADLINE, DeviceProcess
from harness.targets.base import Backing, LacksError, TargetError, translated
from harness.targets.daemon import BackEnd, Exported
from harness.targets.through_device import ThroughDevice, unnamed

OF_PCI = frozenset({"msix", "notify_port"})
"""Fields of `DiskSpec` for PCI functions only."""


def check_board(board: Board, spec: DiskSpec, legacy: bool) -> None:
    """LacksError if a disk on that board cannot be what `spec` says, whoever has its blocks.

    `legacy` says that the driver uses the legacy interface.
    """
    lacking = unsupported(spec, HONOURED)
    if lacking:
        raise LacksError(f"QEMU has no option for a file-backed disk's {', '.join(lacking)}")
    if spec.image == "qcow2" and spec.capacity * SECTOR > MAX_SIZE:
        raise LacksError(f"a qcow2 image has at most {MAX_SIZE >> 50} PiB")
    if spec.scsi and not legacy:
        raise LacksError("QEMU has SCSI commands (scsi) only without a modern interface")
    if spec.notify_port and legacy:
        raise LacksError("the legacy interface has no notification structures (notify_port)")
    if board in ("microvm", "virt-mmio") and (lacking := unsupported(spec, HONOURED - OF_PCI)):
        raise LacksError(f"a device on virtio-mmio has no {', '.join(lacking)}")
    if board == "microvm" and spec.iothreads:
        raise LacksError("QEMU's virtio-mmio has no ioeventfd without KVM, which iothreads need")
    if board == "microvm" and spec.queue_size is not None:
        raise LacksError(
            "QEMU's virtio-mmio always reports a queue size of 1024; a disk cannot choose its own"
        )


def qemu_parts(board: Board, vhost_user: bool) -> frozenset[str]:
    """Return the parts of QEMU that a disk consists of, by their names in records of deviations.

    `vhost_user` says that its virtqueues and requests are served by a back-end outside QEMU.
    """
    transport = "virtio-mmio" if board == "microvm" else "virtio-pci"
    return frozenset({transport, "vhost-user-blk-pci" if vhost_user else "virtio-blk"})


def machine_process(machine: Machine) -> tuple[DeviceProcess, ...]:
    """Return the QEMU process of a machine that runs or has run."""
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
    """Host side of a disk whose blocks QEMU owns."""

    machine: Machine
    driver: Driver
    through_device: bool
    _drive: Drive

    @property
    def backing(self) -> Backing:
        """Return the raw file behind the disk, of a qcow2 image the view through the device.

        Raise TargetError for a null disk, LacksError for a qcow2 image with a driver in a guest.
        """
        if self._drive.spec.image == "raw":
            return _backing(self._drive)
        missing = f"the blocks of a {self._drive.spec.image} image are not in order in its file"
        if not isinstance(self.driver, BlockDriver):
            raise LacksError(f"{missing}, and the driver is in a guest")
        self.through_device = True
        return ThroughDevice(self.driver, missing)

    def resize(self, capacity: int) -> None:
        """Change the capacity (sectors of 512 bytes) of the running disk with `block_resize`."""
        _resize(self._drive, capacity)


class ExportSide:
    """Host side of a disk that is an export of a back-end outside QEMU."""

    export: Exported
    driver: Driver
    killed: bool
    through_device: bool
    _daemon: BackEnd

    def _remove_export(self) -> None:
        try:
            self._daemon.remove(self.export, self.killed)
        except MachineError as error:
            raise translated(error) from None

    @property
    def backing(self) -> Backing:
        """Return the file behind the disk, else the view through the device.

        Raise TargetError for a null disk, LacksError if the bytes can be seen in neither way.
        """
        try:
            return self.export.backing
        except MachineError as error:
            raise TargetError(str(error)) from None
        except LacksError:
            if not isinstance(self.driver, BlockDriver):
                raise
        self.through_device = True
        return ThroughDevice(self.driver, unnamed("the back-end"))

    def resize(self, capacity: int) -> None:
        """Change the capacity (sectors of 512 bytes) while the device runs."""
        try:
            self.export.resize(capacity)
        except MachineError as error:
            raise translated(error) from None


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
