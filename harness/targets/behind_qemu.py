"""A user's vhost-user back-end behind QEMU's vhost-user-blk-pci (`through` in a targets file)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from harness.diskspec import DiskSpec
from harness.machine.drive import Backing as FileBacking
from harness.robustness.device_process import DeviceProcess
from harness.targets.base import (
    Backing,
    CommandRefusedError,
    DeviceIdentity,
    LacksError,
    Plugged,
    Target,
    TargetError,
)
from harness.targets.daemon import Exported, without


class LentDisk(Plugged):
    """A disk of a vhost-user back-end that another front-end can take over.

    `file` is the file with its bytes, None if that is not known.
    """

    file: Path | None = None
    lent: bool = False
    """True once our own front-end has hung up: the driver here must not be used."""


def resize_by_command(
    command: Callable[[int], None], before: int, capacity: int, check: Callable[[], None]
) -> None:
    """Run the user's command for a capacity in sectors. TargetError if it fails.

    LacksError if it refuses to make the disk smaller: not every device can. The device has to be
    well then, which `check` says, and the command has to accept the capacity of `before`.
    """
    try:
        command(capacity)
    except CommandRefusedError as error:
        if capacity >= before:
            raise
        check()
        command(before)
        check()
        raise LacksError(
            f"the resize command failed, which may mean that this device cannot shrink: {error}"
        ) from None


class LendingTarget(Target):
    """A target whose vhost-user devices another front-end can take over."""

    @property
    @abstractmethod
    def resizes(self) -> bool:
        """True if the targets file says how to resize a disk."""

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return our processes that serve the disk; none for somebody else's."""
        return ()

    @abstractmethod
    def plug(self, spec: DiskSpec, writes: bool = True) -> LentDisk:
        """Return a disk, as `Target.plug` does."""

    @abstractmethod
    def lend(self, disk: LentDisk) -> Path:
        """Hang up, and return the socket on which the device waits for its next front-end.

        DriverError or MachineError if the device cannot be reached again.
        """


class UserExport:
    """A disk of the user's back-end, on a socket that waits for QEMU."""

    def __init__(self, disk: LentDisk, path: Path) -> None:
        self.disk = disk
        self.path = path
        self.spec = disk.spec

    @property
    def backing(self) -> Backing:
        """Return the file behind the disk. LacksError if it is not known."""
        if self.disk.file is None:
            raise LacksError("the targets file names no file with the bytes of this disk")
        return FileBacking(self.disk.file)

    def resize(self, capacity: int) -> None:
        """Resize by the user's command. LacksError if the targets file has none."""
        self.disk.resize(capacity)


class UserBackEnd:
    """The back-end of a target that the targets file defines, as a `daemon.BackEnd`.

    Each disk is looked at by our own front-end first, so that a test that needs another disk is
    skipped with the same reason as without QEMU. Then QEMU takes the device over.
    """

    def __init__(self, target: LendingTarget) -> None:
        self._target = target

    @property
    def resizes(self) -> bool:
        """True if the targets file says how to resize a disk."""
        return self._target.resizes

    @property
    def made_to_order(self) -> bool:
        """False if each disk is the same device, as it is."""
        return self._target.made_to_order

    def export(
        self, spec: DiskSpec, elsewhere: frozenset[str] = frozenset(), writes: bool = True
    ) -> UserExport:
        """Return a disk for QEMU. LacksError if the back-end has no such disk.

        Fields in `elsewhere` are QEMU's, and are not asked of the back-end.
        """
        disk = self._target.plug(without(spec, elsewhere), writes)
        try:
            path = self._target.lend(disk)
        except BaseException:
            with suppress(TargetError):
                disk.unplug()
            raise
        return UserExport(disk, path)

    def remove(self, export: Exported, killed: bool = False) -> None:
        """Take a disk back. TargetError if its process has died, unless it was `killed`."""
        assert isinstance(export, UserExport)
        export.disk.killed = killed
        export.disk.unplug()

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the process of the back-end, if it is ours."""
        return self._target.processes()

    def stop(self) -> None:
        """End what was started."""
        self._target.close()

    def identity(self) -> DeviceIdentity:
        """Return the name and version that the targets file gives."""
        return self._target.identities()[0]

    def facts(self) -> dict[str, str]:
        """Return what the target says of itself."""
        return self._target.facts()

    def evidence(self) -> dict[str, str]:
        """Return the state of the back-end, if it is ours."""
        return self._target.evidence()

    def logs(self) -> dict[str, str]:
        """Return the output of the back-end, if it is ours."""
        return self._target.logs()

    def check(self) -> None:
        """Raise TargetError if the back-end has died."""
        self._target.check()
