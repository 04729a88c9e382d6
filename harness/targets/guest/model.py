"""The target `guest-model-pci`: the model as a PCI function of a guest, through QEMU's client."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from harness.diskspec import DiskSpec
from harness.machine import Drive, MachineError
from harness.machine.machine import VFIO_USER_SINCE
from harness.robustness.device_process import DeviceProcess
from harness.targets.base import DeviceIdentity, LacksError, Plugged, translated
from harness.targets.guest.disk import GuestDisk
from harness.targets.guest.guest import Guest, Trouble
from harness.targets.guest.target import GuestTarget
from harness.targets.model import VERSION, ModelProcess, ModelSide, check_fields

WAY = "pci"


class GuestModelDisk(ModelSide, GuestDisk):
    """A disk of the model in a guest, with the guest's driver on it."""

    def __init__(self, guest: Guest, spec: DiskSpec, process: ModelProcess) -> None:
        self._process = process
        self._name, self._socket, self._file = process.add(spec, WAY)
        try:
            super().__init__(guest, spec)
        except BaseException:
            with suppress(MachineError):
                process.remove(self._name)
            raise

    def _add(self) -> Drive:
        return self._guest.machine.add_vfio_user(self._socket, self.spec)

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the guest's QEMU."""
        return super().processes()

    def leave(self) -> None:
        """Leave the disk to the end of the guest; the model's disk is removed then."""
        if self._guest.cloned and not self.killed:
            self._guest.at_end(self._remove)
        super().leave()

    def unplug(self) -> None:
        """Retire the guest: QEMU 11.1 aborts when a function with MSI-X is unplugged."""
        try:
            self.driver.close()
        except Trouble as error:
            raise translated(error) from None
        finally:
            self._guest.retired = True
            self._guest.at_end(self._remove)


class GuestModel(GuestTarget):
    """The model in guests. One model process serves the run."""

    def __init__(
        self, defects: Sequence[str], whims: Sequence[str], *arguments: Any, **options: Any
    ) -> None:
        """`defects` and `whims` are those of the model, by name.

        The other arguments are those of `GuestTarget`.
        """
        super().__init__(*arguments, **options)
        self._defects = defects
        self._whims = whims
        self._process: ModelProcess | None = None

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """Plug a disk of the model into the guest. LacksError if this QEMU is too old."""
        check_fields(spec)
        qemu = self._found().qemu
        if qemu.version < VFIO_USER_SINCE:
            raise LacksError(
                f"{self.name} needs QEMU 10.1 or newer, not {'.'.join(map(str, qemu.version))}:"
                ' --qemu "$(vblk image foreign qemu-11)/bin/qemu-system-x86_64"'
            )
        try:
            if self._process is None or not self._process.alive():
                self._end_process()
                self._process = ModelProcess(self._defects, self._whims)
            return GuestModelDisk(self._working_guest(), spec, self._process)
        except Trouble as error:
            raise translated(error) from None

    def close(self) -> None:
        """End the guests, and the model."""
        super().close()
        self._end_process()

    def _end_process(self) -> None:
        if self._process:
            self._process.stop()
            self._process = None

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Return the model: QEMU hands accesses on, and has no part in the answers."""
        return (DeviceIdentity("model", VERSION),)

    def facts(self) -> dict[str, str]:
        """Return QEMU, guest and the model's version."""
        return super().facts() | {"model": ".".join(map(str, VERSION))}

    def evidence(self) -> dict[str, str]:
        """Return the end of the console, of QEMU's and of the model's stderr."""
        found = super().evidence()
        return found | ({"model, last words": self._process.last_words()} if self._process else {})
