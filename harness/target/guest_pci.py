"""The targets `guest-pci...`: virtio-blk-pci devices of QEMU, driven inside a booted guest.

One guest serves the whole run; disks are plugged in for a test and taken out
after it. A guest that died is replaced when the next disk is wanted.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import images
from harness.channel.serial import open_serial
from harness.channel.ssh import open_ssh
from harness.channel.stream import ChannelError, Stream
from harness.disks import SECTOR, DiskSpec
from harness.driver.errors import DriverError
from harness.guest.client import Agent, AgentError, payload
from harness.machine import (
    Accel,
    Drive,
    Machine,
    MachineConfig,
    MachineError,
    Qemu,
    choose_accel,
    find_qemu,
)
from harness.machine.command import Board, Interface

from .base import (
    DeviceIdentity,
    LacksError,
    Plugged,
    Progress,
    Target,
    translated,
)
from .daemon import BY_QEMU, Daemon
from .hosted import DriveSide, ExportSide, check_board
from .qtest import MMIO_BASE, MMIO_STRIDE

Channel = Literal["serial", "ssh"]
Accelerator = Literal["auto", "kvm", "tcg"]

Trouble = (MachineError, ChannelError, AgentError, DriverError, images.ImageError)

CONSOLE_LINES = 80


@dataclass(frozen=True)
class Variant:
    """One way to a device: the board it sits on, what it shows, and how it is driven.

    `kind` is what `harness.driver.attach` calls the way, `kernel_args` the
    kernel's arguments. With `vhost_user` the device has a back-end outside QEMU.
    """

    description: str
    board: Board
    interface: Interface
    kind: str
    kernel_args: str
    traits: frozenset[str]
    vhost_user: bool = False


MODERN = frozenset({"guest", "pci", "modern"})
LEGACY = frozenset({"guest", "pci", "legacy"})

VARIANTS: dict[str, Variant] = {
    "guest-pci": Variant(
        "QEMU's modern virtio-blk-pci, driven inside a booted Linux guest",
        "pc",
        "modern",
        "pci",
        images.KERNEL_ARGS,
        MODERN,
    ),
    "guest-pci-q35": Variant(
        "the same behind a PCIe root port and an IOMMU, driven through vfio",
        "q35",
        "modern",
        "pci-vfio",
        images.KERNEL_ARGS_IOMMU,
        MODERN,
    ),
    "guest-pci-transitional": Variant(
        "QEMU's transitional virtio-blk-pci, driven through its modern interface in a guest",
        "pc",
        "transitional",
        "pci",
        images.KERNEL_ARGS,
        MODERN,
    ),
    "guest-pci-legacy": Variant(
        "QEMU's transitional virtio-blk-pci, driven through its legacy interface in a guest",
        "pc",
        "transitional",
        "pci-legacy",
        images.KERNEL_ARGS,
        LEGACY,
    ),
    "guest-vhost-user": Variant(
        "QEMU's vhost-user-blk-pci with qemu-storage-daemon behind it, driven inside a guest",
        "pc",
        "modern",
        "pci",
        images.KERNEL_ARGS,
        MODERN,
        vhost_user=True,
    ),
    "guest-mmio": Variant(
        "QEMU's virtio-blk on virtio-mmio, driven inside a guest booted with the disk",
        "microvm",
        "modern",
        "mmio",
        images.KERNEL_ARGS_MICROVM,
        frozenset({"guest", "mmio", "modern"}),
    ),
}


@dataclass(frozen=True)
class Means:
    """What it takes to boot a guest, found once."""

    qemu: Qemu
    image: images.Image
    accel: Accel


class Guest:
    """One booted guest with the agent in it; made by `boot`. `kind` is how its disks are driven."""

    def __init__(self, machine: Machine, agent: Agent, hello: dict[str, Any], kind: str) -> None:
        self.kind = kind
        self.machine = machine
        self.agent = agent
        self.hello = hello
        self.retired = False

    @classmethod
    def boot(
        cls,
        means: Means,
        channel: Channel,
        timeout: float,
        variant: Variant = VARIANTS["guest-pci"],
        disk: DiskSpec | None = None,
    ) -> Guest:
        """Start QEMU and the agent within `timeout` seconds; nothing is left behind if that fails.

        With a `disk` the machine has it from the start. Raises MachineError, ChannelError or
        AgentError.
        """
        image = means.image
        machine = Machine(
            MachineConfig(
                means.qemu,
                image.kernel,
                image.initrd,
                variant.kernel_args,
                accel=means.accel.name,
                ssh=channel == "ssh",
                board=variant.board,
                interface=variant.interface,
                shared_memory=variant.vhost_user,
            )
        )
        try:
            if disk:
                machine.add_disk(disk)
            machine.start()
            agent = Agent(_open(machine, channel, image, timeout), machine.check)
            return cls(machine, agent, agent.hello(), variant.kind)
        except BaseException:
            machine.stop()
            raise

    def works(self) -> bool:
        """Whether QEMU runs, the agent answers, and no disk is stuck in it (`retired`)."""
        if self.retired:
            return False
        try:
            self.agent.hello()
        except Trouble:
            return False
        return True

    def end(self) -> None:
        """End QEMU, and with it everything in it."""
        with suppress(*Trouble):
            self.agent.close()
        self.machine.stop()


class GuestDisk(DriveSide, Plugged):
    """A disk of a guest, with the guest's driver on it."""

    def __init__(self, guest: Guest, spec: DiskSpec) -> None:
        self._guest = guest
        self.spec = spec
        self._drive = self._add()
        try:
            self.driver = guest.agent.attach(guest.kind, self._drive.pci_address)
        except Trouble:
            guest.retired = True  # nobody knows what became of the disk in it
            raise

    def _add(self) -> Drive:
        return self._guest.machine.add_disk(self.spec)

    def unplug(self) -> None:
        """Detach the driver, `device_del`, and wait for the guest to let go."""
        try:
            self.driver.close()
            self._guest.machine.remove_disk(self._drive)
        except Trouble as error:
            self._guest.retired = True
            raise translated(error) from None


class GuestExport(ExportSide, GuestDisk):
    """A disk of a guest whose device has a back-end outside QEMU."""

    def __init__(self, guest: Guest, spec: DiskSpec, daemon: Daemon) -> None:
        self._daemon = daemon
        self.export = daemon.export(spec, BY_QEMU)
        try:
            super().__init__(guest, spec)
        except BaseException:
            with suppress(MachineError):
                daemon.remove(self.export)
            raise

    def _add(self) -> Drive:
        return self._guest.machine.add_vhost_user(self.export.path, self.spec)

    def unplug(self) -> None:
        """As any disk of the guest, and remove the export."""
        try:
            super().unplug()
        finally:
            self._remove_export()


class BootedDisk(DriveSide, Plugged):
    """A disk that its guest was booted with, on a board that nothing can be plugged into."""

    def __init__(self, guest: Guest, spec: DiskSpec) -> None:
        self.guest = guest
        self.spec = spec
        (self._drive,) = guest.machine.drives
        window = MMIO_BASE + MMIO_STRIDE * self._drive.slot
        self.driver = guest.agent.attach(guest.kind, f"{window:#x}")
        self.in_use = True

    def unplug(self) -> None:
        """Detach the driver. The guest stays, for a test that wants the same disk."""
        self.in_use = False
        try:
            self.driver.close()
        except Trouble as error:
            self.guest.retired = True
            raise translated(error) from None

    def serves(self, spec: DiskSpec) -> bool:
        """Whether this disk, emptied, is as good as a new one; then it is empty."""
        if self.spec != spec or spec.faults or not self.guest.works():
            return False
        if spec.backing == "null":
            return True
        file = self._drive.backing.path
        if file.stat().st_size != spec.capacity * SECTOR:
            return False
        # Holes read as zeroes, and QEMU has nothing of a device that was reset.
        with file.open("r+b") as contents:
            contents.truncate(0)
            contents.truncate(spec.capacity * SECTOR)
        return True


class GuestPci(Target):
    """One of `VARIANTS`."""

    def __init__(
        self,
        channel: Channel = "serial",
        qemu: str | None = None,
        accel: Accelerator = "auto",
        boot_timeout: float = 60.0,
        progress: Progress = lambda line: None,
        name: str = "guest-pci",
    ) -> None:
        """`qemu` is a path (None: the one on PATH); `boot_timeout` is in seconds."""
        self.name = name
        self.variant = VARIANTS[name]
        self.description = self.variant.description
        self.traits = self.variant.traits
        self.channel: Channel = channel
        self._qemu = qemu
        self._accel: Accelerator = accel
        self._boot_timeout = boot_timeout
        self._progress = progress
        self._means: Means | None = None
        self._guest: Guest | None = None
        self._daemon = Daemon()
        self._booted: list[BootedDisk] = []

    @property
    def guest(self) -> Guest | None:
        """The guest that serves now, or the last one that did."""
        return self._guest

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """Plug a disk into the guest, booting one first if none works."""
        check_board(self.variant.board, spec)
        try:
            if self.variant.board == "microvm":
                if self.channel == "ssh":
                    raise LacksError(f"{self.name} has no network card: it takes --channel serial")
                return self._boot_with(spec)
            if self.variant.vhost_user:
                return GuestExport(self._working_guest(), spec, self._daemon)
            return GuestDisk(self._working_guest(), spec)
        except Trouble as error:
            raise translated(error) from None

    def _boot_with(self, spec: DiskSpec) -> Plugged:
        """A guest of its own for every disk; that of the last one, if that was the same."""
        spare = [disk for disk in self._booted if not disk.in_use]
        self._booted = [disk for disk in self._booted if disk.in_use]
        same = next((disk for disk in spare if disk.serves(spec)), None)
        for disk in spare:
            if disk is not same:
                disk.guest.end()
        self._guest = same.guest if same else self._boot(spec)
        try:
            self._booted.append(BootedDisk(self._guest, spec))
        except Trouble:
            self._guest.end()
            raise
        return self._booted[-1]

    def close(self) -> None:
        """End the guests, and the back-end."""
        for disk in self._booted:
            disk.guest.end()
        if self._guest:
            self._guest.end()
        self._daemon.stop()

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """QEMU and its version, and so of the back-end if there is one."""
        qemu = DeviceIdentity("qemu", self._found().qemu.version)
        return (qemu, self._daemon.identity()) if self.variant.vhost_user else (qemu,)

    def facts(self) -> dict[str, str]:
        """QEMU, kernel, accelerator and why, Python in the guest."""
        means = self._found()
        facts = {
            "qemu": means.qemu.version_text,
            "accelerator": f"{means.accel.name} ({means.accel.reason})",
            "guest-kernel": means.image.kernel_release,
        }
        if self._guest:
            facts["guest-python"] = str(self._guest.hello["python"])
        return facts

    def evidence(self) -> dict[str, str]:
        """The end of the guest's console and of QEMU's stderr."""
        if not self._guest:
            return {}
        machine = self._guest.machine
        return {
            "guest console, last lines": machine.console_tail(CONSOLE_LINES),
            "QEMU, last words": machine.last_words(),
        }

    def logs(self) -> dict[str, str]:
        """The guest's console, QEMU's stderr and its command line, and the back-end's."""
        return (self._guest.machine.logs() if self._guest else {}) | self._daemon.logs()

    def check(self) -> None:
        """Raise TargetError if QEMU is gone."""
        if self._guest:
            try:
                self._guest.machine.check()
            except MachineError as error:
                raise translated(error) from None

    def _working_guest(self) -> Guest:
        if self._guest and self._guest.works():
            return self._guest
        again = self._guest is not None
        if self._guest:
            self._guest.end()
        self._guest = self._boot(again=again)
        return self._guest

    def _boot(self, disk: DiskSpec | None = None, again: bool = False) -> Guest:
        means = self._found()
        self._progress(
            f"booting a {'new ' if again else ''}guest ({means.accel.name}, {self.channel})"
        )
        begun = time.monotonic()
        guest = Guest.boot(means, self.channel, self._boot_timeout, self.variant, disk)
        self._progress(f"the guest answers after {time.monotonic() - begun:.1f} s")
        return guest

    def _found(self) -> Means:
        if self._means is None:
            qemu = find_qemu(self._qemu)
            image = images.ensure(self._progress)
            accel = choose_accel(
                self._accel,
                qemu,
                image.kernel,
                image.initrd,
                images.cache_dir(),
                progress=self._progress,
                kernel_args=images.KERNEL_ARGS,
            )
            self._means = Means(qemu, image, accel)
        return self._means


def _open(machine: Machine, channel: Channel, image: images.Image, timeout: float) -> Stream:
    deadline = time.monotonic() + timeout
    if channel == "serial":
        return open_serial(
            machine.console_path, machine.stream_path, payload(), deadline, machine.check
        )
    assert machine.ssh_port
    return open_ssh(
        "127.0.0.1",
        machine.ssh_port,
        image.ssh_key,
        image.ssh_host_key,
        payload(),
        deadline,
        machine.check,
    )
