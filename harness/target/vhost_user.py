"""The targets `vhost-user` and `vhost-user:PATH`: a back-end on a UNIX socket, driven from here."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from harness.disks import DiskSpec
from harness.driver.block import BlockDriver
from harness.driver.errors import DriverError
from harness.driver.transport.base import Transport
from harness.driver.transport.vhost_user import QUEUE_SIZE, VhostUser
from harness.machine.errors import MachineError
from harness.machine.qemu import Qemu
from harness.machine.storage_daemon import (
    Export,
    StorageDaemon,
    find_storage_daemon,
    unhonoured,
)

from .base import Backing, DeviceIdentity, LacksError, Plugged, Target, TargetError
from .owned import HostSide, OwnedTarget


class DaemonDisk(Plugged):
    """An export of our qemu-storage-daemon, with a driver on it."""

    def __init__(self, daemon: StorageDaemon, spec: DiskSpec) -> None:
        self._daemon = daemon
        self.spec = spec
        # The largest queue is the front-end's to choose, so it is no affair of the daemon's.
        self._export: Export = daemon.add_export(replace(spec, queue_size=None))
        try:
            self.driver = BlockDriver(
                VhostUser(str(self._export.path), spec.queue_size or QUEUE_SIZE)
            )
        except BaseException:
            with suppress(MachineError):
                daemon.remove_export(self._export)
            raise

    @property
    def backing(self) -> Backing:
        """The raw file behind the disk. TargetError for a null disk."""
        try:
            return self._export.backing
        except MachineError as error:
            raise TargetError(str(error)) from None

    def resize(self, capacity: int) -> None:
        """`block_resize`, live."""
        try:
            self._export.resize(capacity)
        except MachineError as error:
            raise _translated(error) from None

    def unplug(self) -> None:
        """Hang up, and remove the export."""
        try:
            self.driver.close()
            self._daemon.remove_export(self._export)
        except MachineError as error:
            raise _translated(error) from None


class VhostUserDaemon(Target):
    """The block export of a qemu-storage-daemon that we start; one daemon serves the run."""

    name = "vhost-user"
    description = "qemu-storage-daemon's vhost-user-blk export, driven from the host"
    traits = frozenset({"vhost-user", "modern"})

    def __init__(self, program: str | None = None) -> None:
        """`program` is the daemon's path (None: the one on PATH)."""
        self._program = program
        self._found: Qemu | None = None
        self._daemon: StorageDaemon | None = None

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """An export and a driver on it. LacksError for what an export has no option for."""
        odd = unhonoured(replace(spec, queue_size=None))
        if odd:
            raise LacksError(f"qemu-storage-daemon has no option for a disk's {', '.join(odd)}")
        try:
            return DaemonDisk(self._working_daemon(), spec)
        except (MachineError, DriverError) as error:
            raise _translated(error) from None

    def close(self) -> None:
        """End the daemon."""
        if self._daemon:
            self._daemon.stop()

    def identity(self) -> DeviceIdentity:
        """The daemon and its version."""
        return DeviceIdentity("qemu-storage-daemon", self._known().version)

    def facts(self) -> dict[str, str]:
        """The daemon's version."""
        return {"qemu-storage-daemon": self._known().version_text}

    def evidence(self) -> dict[str, str]:
        """How the daemon fares, and the end of its stderr."""
        return (
            {"qemu-storage-daemon, last words": self._daemon.last_words()} if self._daemon else {}
        )

    def check(self) -> None:
        """Raise TargetError if the daemon is gone."""
        if self._daemon:
            try:
                self._daemon.check()
            except MachineError as error:
                raise _translated(error) from None

    def _known(self) -> Qemu:
        if self._found is None:
            self._found = find_storage_daemon(self._program)
        return self._found

    def _working_daemon(self) -> StorageDaemon:
        if self._daemon and not self._daemon.alive():
            self._daemon.stop()
            self._daemon = None
        if self._daemon is None:
            self._daemon = StorageDaemon(self._known())
            self._daemon.start()
        return self._daemon


class VhostUserSocket(OwnedTarget):
    """A back-end that somebody else runs on the socket `path`."""

    description = "whatever listens on the UNIX socket PATH, driven from the host"
    traits = frozenset({"vhost-user", "modern"})
    owner = "somebody else's back-end"

    def __init__(
        self,
        path: str,
        destructive: bool = False,
        host: HostSide = HostSide(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(f"vhost-user:{path}", destructive, host)
        self._path = path

    def _reach(self, spec: DiskSpec) -> Transport:
        return VhostUser(self._path, spec.queue_size or QUEUE_SIZE)

    def facts(self) -> dict[str, str]:
        """The socket, and the protocol features that are in use."""
        if not self._disk:
            return {"socket": self._path}
        features = self._disk.driver.description()["protocol_features"]
        return {"socket": self._path, "protocol-features": ", ".join(features)}


def _translated(error: Exception) -> TargetError:
    """A target's error for one of the packages below it, with what that knew."""
    translated = TargetError(str(error))
    if details := getattr(error, "details", ""):
        translated.add_note(details)
    return translated
