"""The targets `vhost-user` and `vhost-user:PATH`: a back-end on a UNIX socket, driven from here."""

from __future__ import annotations

from contextlib import suppress

from harness.diskspec import DiskSpec
from harness.driver.block import BlockDriver
from harness.driver.errors import DriverError
from harness.driver.transport.base import Transport
from harness.driver.transport.vhost_user import QUEUE_SIZE, VhostUser
from harness.machine.errors import MachineError
from harness.robustness.device_process import DeviceProcess
from harness.targets.backing_sides import ExportSide
from harness.targets.base import DeviceIdentity, Plugged, Target, translated
from harness.targets.daemon import Daemon
from harness.targets.external import HostSide, OwnedTarget

FRONT_END = frozenset({"queue_size"})
"""What of a disk is the front-end's to choose: here the driver's."""


class DaemonDisk(ExportSide, Plugged):
    """An export of our qemu-storage-daemon, with a driver on it."""

    def __init__(self, daemon: Daemon, spec: DiskSpec) -> None:
        self._daemon = daemon
        self.spec = spec
        self.export = daemon.export(spec, FRONT_END)
        try:
            self.driver = BlockDriver(
                VhostUser(str(self.export.path), spec.queue_size or QUEUE_SIZE)
            )
        except BaseException:
            with suppress(MachineError):
                daemon.remove(self.export)
            raise

    def processes(self) -> tuple[DeviceProcess, ...]:
        """The daemon."""
        return self._daemon.processes()

    def unplug(self) -> None:
        """Hang up, and remove the export."""
        self.driver.close()
        self._remove_export()


class VhostUserDaemon(Target):
    """The block export of a qemu-storage-daemon that we start; one daemon serves the run."""

    name = "vhost-user"
    description = "qemu-storage-daemon's vhost-user-blk export, driven from the host"
    traits = frozenset({"vhost-user", "modern"})

    def __init__(self, program: str | None = None) -> None:
        """`program` is the daemon's path (None: the one on PATH)."""
        self._daemon = Daemon(program)

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """An export and a driver on it. LacksError for what an export has no option for."""
        try:
            return DaemonDisk(self._daemon, spec)
        except (MachineError, DriverError) as error:
            raise translated(error) from None

    def close(self) -> None:
        """End the daemon."""
        self._daemon.stop()

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """The daemon and its version."""
        return (self._daemon.identity(),)

    def facts(self) -> dict[str, str]:
        """The daemon's version."""
        return self._daemon.facts()

    def evidence(self) -> dict[str, str]:
        """How the daemon fares, and the end of its stderr."""
        return self._daemon.evidence()

    def logs(self) -> dict[str, str]:
        """The daemon's stderr and command line."""
        return self._daemon.logs()

    def check(self) -> None:
        """Raise TargetError if the daemon is gone."""
        try:
            self._daemon.check()
        except MachineError as error:
            raise translated(error) from None


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
        return {
            "socket": self._path,
            "protocol-features": ", ".join(features),
            **self._queues,
        }
