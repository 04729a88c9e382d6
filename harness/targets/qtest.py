"""The targets `qtest-...`: QEMU's devices without a guest, driven from this process.

The machine's CPU is parked, so that only our driver touches the device: it accesses registers
through QEMU's qtest socket, and memory is shared. Every disk has a QEMU of its own, which takes
some 50 ms to start. On the board `pc`, where disks can be hot-plugged, the next QEMU can start
while a test uses the present disk.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from harness.defects.bus import AlteredMmio, AlteredPci, MachineEvent
from harness.defects.registers import RegisterDefect
from harness.diskspec import DiskSpec
from harness.driver.block import BlockDriver
from harness.driver.bus.base import Bus
from harness.driver.bus.qtest import EJECT, Qtest, QtestExpress, QtestMmio, QtestPci
from harness.driver.errors import DriverError
from harness.driver.trace import Recorded
from harness.driver.transport.base import Transport
from harness.driver.transport.mmio import MmioLegacy, MmioModern
from harness.driver.transport.pci import PciModern
from harness.driver.transport.pci_legacy import PciLegacy
from harness.machine import Drive, Machine, MachineConfig, MachineError, Qemu, find_qemu
from harness.machine.command import Board, Interface
from harness.machine.drive import IoError
from harness.machine.machine import IOTHREADS_SINCE
from harness.robustness.device_process import DeviceProcess
from harness.targets.backing_sides import (
    DriveSide,
    ExportSide,
    check_board,
    machine_process,
    qemu_parts,
)
from harness.targets.base import (
    DeviceIdentity,
    LacksError,
    Plugged,
    Target,
    TargetError,
    translated,
)
from harness.targets.daemon import BY_QEMU, BackEnd, Daemon, as_exported
from harness.targets.prefetch import Prefetch

Defects = Sequence[RegisterDefect]
Take = Callable[[], Machine]
End = Callable[[Machine], None]

MEMORY = 1024
"""RAM in MiB below 4 GiB, of which only touched pages use memory. QEMU warns of less than 1 GiB
in a machine that has memory above 4 GiB."""

ABOVE_4_GIB = 16
"""RAM in MiB above 4 GiB, where the board can have it. Only tests of addresses use it."""

MMIO_BASE = 0xFEB0_0000
MMIO_STRIDE = 0x200
MMIO_INTERRUPT = 16


def _function(qtest: Qtest, machine: Machine, drive: Drive) -> QtestPci:
    below = machine.config.memory - machine.config.above_4_gib
    kind = QtestExpress if machine.config.board == "q35" else QtestPci
    return kind(qtest, machine.ram_path, drive.slot, below << 20)


def _window(qtest: Qtest, machine: Machine, drive: Drive) -> QtestMmio:
    address = MMIO_BASE + MMIO_STRIDE * drive.slot
    return QtestMmio(qtest, machine.ram_path, address, MMIO_INTERRUPT + drive.slot)


REFUSALS = ("igration is disabled", "igration disabled", "non-migratable", "disallowed")
"""Words of QEMU for a machine that cannot be saved. A save or load that fails is no refusal."""


@dataclass(frozen=True)
class Variant:
    """Variant of a target: its board, the interface of its device, and the driver's transport.

    `traits` are those of `Target.traits`. `disk` has fields of every disk, by their names, unless
    a test asks for other values.
    """

    description: str
    traits: frozenset[str]
    board: Board
    interface: Interface
    bus: Callable[[Qtest, Machine, Drive], QtestPci | QtestMmio]
    transport: Callable[[Any], Transport]
    vhost_user: bool = False
    disk: Mapping[str, Any] = field(default_factory=dict)

    def completed(self, spec: DiskSpec) -> DiskSpec:
        """Return the disk that a test asks for, with the fields of this variant."""
        default = DiskSpec()
        asked = {name for name in self.disk if getattr(spec, name) != getattr(default, name)}
        return replace(spec, **{name: self.disk[name] for name in {*self.disk} - asked})


VARIANTS: dict[str, Variant] = {
    "qtest-pci": Variant(
        "QEMU's modern virtio-blk-pci, driven from the host without a guest",
        frozenset({"pci", "modern"}),
        "pc",
        "modern",
        _function,
        PciModern,
    ),
    "qtest-pci-transitional": Variant(
        "QEMU's transitional virtio-blk-pci through its modern interface, without a guest",
        frozenset({"pci", "modern"}),
        "pc",
        "transitional",
        _function,
        PciModern,
    ),
    "qtest-pci-legacy": Variant(
        "QEMU's transitional virtio-blk-pci through its legacy interface, without a guest",
        frozenset({"pci", "legacy"}),
        "pc",
        "transitional",
        _function,
        PciLegacy,
    ),
    "qtest-pci-qcow2": Variant(
        "QEMU's modern virtio-blk-pci over a qcow2 image, without a guest",
        frozenset({"pci", "modern"}),
        "pc",
        "modern",
        _function,
        PciModern,
        disk={"image": "qcow2"},
    ),
    "qtest-pci-iothreads": Variant(
        "QEMU's modern virtio-blk-pci with 2 iothreads (1 before QEMU 9.0), without a guest",
        frozenset({"pci", "modern"}),
        "pc",
        "modern",
        _function,
        PciModern,
        disk={"iothreads": 2},
    ),
    "qtest-vhost-user": Variant(
        "QEMU's vhost-user-blk-pci with qemu-storage-daemon behind it, without a guest",
        frozenset({"pci", "modern"}),
        "pc",
        "modern",
        _function,
        PciModern,
        vhost_user=True,
    ),
    "qtest-mmio": Variant(
        "QEMU's virtio-blk on modern virtio-mmio, without a guest",
        frozenset({"mmio", "modern"}),
        "microvm",
        "modern",
        _window,
        MmioModern,
    ),
    "qtest-mmio-legacy": Variant(
        "QEMU's virtio-blk on legacy virtio-mmio, without a guest",
        frozenset({"mmio", "legacy"}),
        "microvm",
        "legacy",
        _window,
        MmioLegacy,
    ),
}


def _connection(machine: Machine) -> socket.socket:
    """Return a connection to the machine's qtest socket."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(machine.qtest_path))
    return connection


@contextmanager
def _as_target_errors() -> Iterator[None]:
    """Raise a TargetError for a MachineError of the block."""
    try:
        yield
    except MachineError as error:
        raise TargetError(str(error)) from None


EXPRESS = frozenset({"qtest-pci"})
"""Targets that have a disk as a PCI Express function, on the board "q35", if a test asks for it."""


class QtestDisk(DriveSide, Plugged):
    """A disk in a QEMU of its own, with a driver of this process on it."""

    def __init__(
        self, take: Take, end: End, variant: Variant, spec: DiskSpec, defects: Defects
    ) -> None:
        """Plug a disk into the machine that `take` returns, which may run already.

        The machine stops with the disk: `end` is called for it.
        """
        self.spec = spec
        self._variant = variant
        self._end = end
        self.machine = machine = take()
        try:
            self._drive = self._add()
            if machine.pid is None:
                machine.start()
            self._qtest = Qtest(_connection(machine))
            self._defects = defects
            self._removed = False
            self.driver = self._attach()
        except BaseException:
            machine.stop()
            raise

    def _attach(self) -> BlockDriver:
        """Return a driver on the device; on PCI, its BARs are assigned first."""
        bus: Bus
        bus = self._bus = self._variant.bus(self._qtest, self.machine, self._drive)
        self._altered: list[AlteredPci | AlteredMmio] = []
        for defect in self._defects:
            bus = altered = defect.alter(bus)
            self._altered.append(altered)
        return BlockDriver(self._variant.transport(bus))

    def _note(self, event: MachineEvent) -> None:
        """Tell the planted defects what has happened to the machine."""
        for bus in self._altered:
            bus.happened(event)

    def system_reset(self) -> None:
        """Reset the machine, and attach a new driver to the device."""
        with _as_target_errors():
            self.machine.qmp("set-action", reboot="reset")  # it was started with -no-reboot
            self.machine.qmp("system_reset")
            self.machine.wait_event("RESET")
        self._note("system reset")
        self.driver = self._attach()
        self._note("system reset")  # to the defects of the new driver's bus

    def pause(self) -> None:
        """Stop the machine."""
        with _as_target_errors():
            self.machine.pause()

    def resume(self) -> None:
        """Let the machine go on."""
        with _as_target_errors():
            self.machine.resume()
        self._note("paused")

    def move(self) -> None:
        """Go on in another QEMU. LacksError for a disk that QEMU cannot save."""
        try:
            self.machine.move()
        except MachineError as error:
            if any(words in str(error) for words in REFUSALS):
                raise LacksError(f"QEMU cannot save this machine: {error}") from None
            raise translated(error) from None
        self._bus.continue_on(_connection(self.machine))
        self._note("moved")

    def bus_reset(self) -> None:
        """Reset the bus below the function's port. LacksError for a function of bus 0."""
        if not isinstance(self._bus, QtestExpress):
            raise LacksError("the device is on the root bus, which cannot be reset alone")
        self._bus.reset_bus()

    def idle(self, within: float) -> bool:
        """Return True when QEMU has nothing in flight, False after `within` seconds.

        False also where QEMU cannot say so: see `Machine.at_rest`. A QEMU that refuses the question
        or has ended is no error here; the test finds out what it looks for.
        """
        try:
            return self.machine.at_rest(self._drive, within)
        except MachineError:
            return False

    def remove(self) -> None:
        """Unplug the device from the machine, in place of a guest that has no driver for it."""
        board = self.machine.config.board
        if board != "pc":
            raise LacksError(f"a device of the board {board} cannot be removed without a guest")
        with _as_target_errors():
            self.machine.qmp("device_del", id=self._drive.name)
            self._qtest.command(f"outl {EJECT:#x} {1 << self._drive.slot:#x}")
            self.machine.wait_event("DEVICE_DELETED")
        self._removed = True
        self._note("removed")

    def wait_io_error(self) -> IoError:
        """Return the oldest report of an error of the backing store; wait 10 s if there is none."""
        try:
            return self.machine.wait_io_error(self._drive)
        except MachineError as error:
            raise translated(error) from None

    def _add(self) -> Drive:
        return self.machine.add_disk(self.spec)

    def messages(self) -> list[Recorded]:
        """Return how the machine and the disk are made, and QEMU's last QMP commands."""
        board, interface = self._variant.board, self._variant.interface
        graph = self._drive.graph
        parts = [
            (0.0, "machine", board, interface, self.machine.config.memory),
            (0.0, "disk", list(graph.objects), list(graph.nodes), graph.device, self.spec.capacity),
        ]
        return [*parts, *self.machine.messages]

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the disk's QEMU."""
        return machine_process(self.machine)

    def unplug(self) -> None:
        """Reset the device, and stop its QEMU."""
        try:
            if self._removed:
                self._qtest.close()
            else:
                self.driver.close()
        except DriverError as error:
            if not self.killed:
                raise TargetError(f"the driver could not be closed: {error}") from None
        finally:
            self._end(self.machine)


class QtestExport(ExportSide, QtestDisk):
    """A disk whose device has a back-end outside QEMU."""

    def __init__(
        self,
        take: Take,
        end: End,
        variant: Variant,
        spec: DiskSpec,
        defects: Defects,
        daemon: BackEnd,
        writes: bool = True,
    ) -> None:
        self._daemon = daemon
        self.export = daemon.export(spec, BY_QEMU, writes)
        self.resizable, self.storage_known = daemon.resizes, daemon.made_to_order
        spec = as_exported(spec, self.export)
        try:
            super().__init__(take, end, variant, spec, defects)
        except BaseException:
            with suppress(MachineError, TargetError):
                daemon.remove(self.export)
            raise

    def _add(self) -> Drive:
        return self.machine.add_vhost_user(self.export.path, self.spec)

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the disk's QEMU, and the back-end."""
        return (*super().processes(), *self._daemon.processes())

    def unplug(self) -> None:
        """Reset the device, stop its QEMU, and remove the export."""
        try:
            super().unplug()
        finally:
            self._remove_export()


class QtestTarget(Target):
    """A target from `VARIANTS`."""

    def __init__(
        self,
        name: str,
        qemu: str | None = None,
        defects: Defects = (),
        ahead: bool = False,
        back_end: BackEnd | None = None,
    ) -> None:
        """Prepare the target; `qemu` is a path (None: search PATH).

        `defects` are planted between driver and device. With `ahead` the next QEMU starts while the
        present one is in use, if the board allows hot-plugging. `back_end` is for a variant with
        vhost-user; by default it is a qemu-storage-daemon.
        """
        self.name = name
        self.variant = VARIANTS[name]
        self.description = self.variant.description
        self.traits = self.variant.traits
        self._path = qemu
        self._defects = defects
        self._qemu: Qemu | None = None
        ahead = ahead and self.variant.board == "pc"
        self._ahead = Prefetch(self._start, Machine.stop) if ahead else None
        self._disks: list[QtestDisk] = []
        self._daemon: BackEnd = back_end or Daemon()
        self.made_to_order = self._daemon.made_to_order

    def _found(self) -> Qemu:
        if self._qemu is None:
            try:
                self._qemu = find_qemu(self._path)
            except MachineError as error:
                raise TargetError(str(error)) from None
        return self._qemu

    def _make(self, board: Board | None = None) -> Machine:
        board = board or self.variant.board
        above = ABOVE_4_GIB if board == "pc" else 0
        return Machine(
            MachineConfig(
                self._found(),
                memory=MEMORY + above,
                above_4_gib=above,
                name="qtest",
                parked=True,
                board=board,
                interface=self.variant.interface,
            )
        )

    def _start(self) -> Machine:
        machine = self._make()
        machine.start()
        return machine

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """Return a disk that tests may write, in a QEMU of its own."""
        for defect in self._defects:
            spec = defect.spec(spec)
        express = spec.express and self.name in EXPRESS
        if express:
            spec = replace(spec, express=None)
        spec = self.variant.completed(spec)
        if self.variant.disk.get("iothreads") and self._found().version < IOTHREADS_SINCE:
            spec = replace(spec, iothreads=1)
        check_board(self.variant.board, spec, "legacy" in self.traits)
        try:
            take = self._ahead.take if self._ahead else self._make
            take = partial(self._make, "q35") if express else take
            disk = (
                QtestExport(
                    take, self._end, self.variant, spec, self._defects, self._daemon, writes
                )
                if self.variant.vhost_user
                else QtestDisk(take, self._end, self.variant, spec, self._defects)
            )
        except (MachineError, DriverError, OSError) as error:
            raise translated(error) from None
        self._disks.append(disk)
        self.made_to_order = self._daemon.made_to_order  # the first disk may have shown it
        return disk

    def _end(self, machine: Machine) -> None:
        """Stop the QEMU of a disk that is removed."""
        self._disks = [disk for disk in self._disks if disk.machine is not machine]
        # A back-end outside can remove its export only once its QEMU has ended.
        if self._ahead and not self.variant.vhost_user:
            self._ahead.give_back(machine)
        else:
            machine.stop()

    def close(self) -> None:
        """Stop every QEMU that a test left, and the back-end."""
        for disk in self._disks:
            disk.machine.stop()
        if self._ahead:
            self._ahead.close()
        self._daemon.stop()

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Return QEMU and its version, and the back-end's if there is one."""
        parts = qemu_parts(self.variant.board, self.variant.vhost_user)
        qemu = DeviceIdentity("qemu", self._found().version, parts)
        return (qemu, self._daemon.identity()) if self.variant.vhost_user else (qemu,)

    def facts(self) -> dict[str, str]:
        """Return QEMU's version and the accelerator.

        There is no guest, and the parked CPU needs no KVM.
        """
        facts = {"qemu": self._found().version_text, "accelerator": "tcg (the CPU is parked)"}
        return facts | (self._daemon.facts() if self.variant.vhost_user else {})

    def evidence(self) -> dict[str, str]:
        """Return the end of each QEMU's stderr."""
        return {
            f"QEMU of disk {number}, last words": disk.machine.last_words()
            for number, disk in enumerate(self._disks)
        } | self._daemon.evidence()

    def logs(self) -> dict[str, str]:
        """Return each QEMU's stderr and command line, and the back-end's."""
        return {
            f"disk{number}-{name}": text
            for number, disk in enumerate(self._disks)
            for name, text in disk.machine.logs().items()
        } | self._daemon.logs()

    def check(self) -> None:
        """Raise TargetError if a QEMU has ended that should run."""
        for disk in self._disks:
            try:
                disk.machine.check()
            except MachineError as error:
                raise TargetError(str(error)) from None
        if self.variant.vhost_user:
            try:
                self._daemon.check()
            except MachineError as error:
                raise translated(error) from None
