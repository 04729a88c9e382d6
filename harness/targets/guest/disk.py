"""Disks of guests: hot-plugged, or present from the guest's start."""

from __future__ import annotations

from contextlib import suppress

from harness import interrupt
from harness.diskspec import SECTOR, DiskSpec
from harness.driver.trace import Recorded
from harness.machine import Drive, MachineError
from harness.robustness.device_process import DeviceProcess
from harness.targets.backing_sides import DriveSide, ExportSide, machine_process
from harness.targets.base import Plugged, TargetError, translated
from harness.targets.daemon import BY_QEMU, BackEnd, as_exported
from harness.targets.guest.guest import Guest, Trouble
from harness.targets.qtest import MMIO_BASE, MMIO_STRIDE


class GuestDisk(DriveSide, Plugged):
    """A disk of a guest, with the guest's driver on it."""

    def __init__(self, guest: Guest, spec: DiskSpec) -> None:
        self._guest = guest
        self._guest.used = True
        self.spec = spec
        self._drive = self._add()
        try:
            self.driver = guest.agent.attach(guest.kind, self._drive.pci_address)
        except Trouble:
            guest.retired = True  # the state of the disk in the guest is unknown
            raise

    def _add(self) -> Drive:
        return self._guest.machine.add_disk(self.spec)

    def messages(self) -> list[Recorded]:
        """Return the last QMP commands of the guest's QEMU."""
        return list(self._guest.machine.messages)

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the guest's QEMU."""
        return machine_process(self._guest.machine)

    def leave(self) -> None:
        """Unplug the disk if the guest may serve another test, else leave it to the guest's end."""
        if not self._guest.cloned or self.killed:
            self.unplug()
        elif not self._given_back():
            self._stay()

    def _given_back(self) -> bool:
        """Unplug the disk for the next test. Return False if the guest serves no other test."""
        if not self._guest.reusable or interrupt.received() is not None:
            return False
        try:
            self._unplug_device()
        except TargetError:
            # Not the test's error: nothing asks for a disk that can be unplugged in this state.
            return False
        return True

    def _stay(self) -> None:
        """Leave the disk until the guest ends."""
        _check(self._guest)

    def unplug(self) -> None:
        """Detach the driver, send `device_del`, and wait until the guest has released the disk."""
        if self.killed:
            self._guest.retired = True
            return
        self._unplug_device()

    def _unplug_device(self) -> None:
        try:
            self.driver.close()
            self._guest.machine.remove_disk(self._drive)
        except Trouble as error:
            self._guest.retired = True
            raise translated(error) from None


class GuestExport(ExportSide, GuestDisk):
    """A disk of a guest whose device has a back-end outside QEMU."""

    def __init__(self, guest: Guest, spec: DiskSpec, daemon: BackEnd, writes: bool = True) -> None:
        self._daemon = daemon
        self.export = daemon.export(spec, BY_QEMU, writes)
        self.resizable, self.storage_known = daemon.resizes, daemon.made_to_order
        try:
            super().__init__(guest, as_exported(spec, self.export))
        except BaseException:
            with suppress(MachineError, TargetError):
                daemon.remove(self.export)
            raise

    def _add(self) -> Drive:
        return self._guest.machine.add_vhost_user(self.export.path, self.spec)

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the guest's QEMU, and the back-end."""
        return (*super().processes(), *self._daemon.processes())

    def _given_back(self) -> bool:
        """Same as `GuestDisk._given_back`; also remove the export."""
        given_back = super()._given_back()
        if given_back:
            self._remove_export()
        return given_back

    def _stay(self) -> None:
        """Same as `GuestDisk._stay`; the export is removed once nobody uses it."""
        self._guest.at_end(self._remove_export)
        super()._stay()

    def unplug(self) -> None:
        """Same as `GuestDisk.unplug`; also remove the export."""
        try:
            super().unplug()
        finally:
            self._remove_export()


class StartedDisk(DriveSide, Plugged):
    """A disk that its guest was started with, on a board without hot-plugging."""

    def __init__(self, guest: Guest, spec: DiskSpec) -> None:
        self.guest = guest
        self.spec = spec
        (self._drive,) = guest.machine.drives
        self.driver = guest.agent.attach(guest.kind, window(self._drive.slot))
        self.in_use = True

    def messages(self) -> list[Recorded]:
        """Return the last QMP commands of the guest's QEMU."""
        return list(self.guest.machine.messages)

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the guest's QEMU."""
        return machine_process(self.guest.machine)

    def leave(self) -> None:
        """Leave the disk until the guest ends, if the guest belongs to this test alone."""
        if self.guest.cloned and not self.killed:
            self.in_use = False
            _check(self.guest)
        else:
            self.unplug()

    def unplug(self) -> None:
        """Detach the driver. The guest stays, for a test that asks for the same disk."""
        self.in_use = False
        if self.killed:
            self.guest.retired = True
            return
        try:
            self.driver.close()
        except Trouble as error:
            self.guest.retired = True
            raise translated(error) from None

    def serves(self, spec: DiskSpec) -> bool:
        """Empty this disk and return True if it can then serve as a new disk with this `spec`."""
        if self.spec != spec or spec.faults or self.guest.cloned or not self.guest.works():
            return False
        if spec.backing == "null":
            return True
        file = self._drive.backing.path
        if file.stat().st_size != spec.capacity * SECTOR:
            return False
        # Holes read as zeroes, and QEMU keeps no data of a device that was reset.
        with file.open("r+b") as contents:
            contents.truncate(0)
            contents.truncate(spec.capacity * SECTOR)
        return True


def window(slot: int) -> str:
    """Return the address of a virtio-mmio device's registers, from its slot on the board."""
    return f"{MMIO_BASE + MMIO_STRIDE * slot:#x}"


def _check(guest: Guest) -> None:
    """Raise TargetError if the guest did not survive the test."""
    try:
        guest.agent.ping()
    except Trouble as error:
        raise translated(error) from None
