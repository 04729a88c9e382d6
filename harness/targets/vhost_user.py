"""The targets `vhost-user` and `vhost-user:PATH`: a back-end on a UNIX socket."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from harness.diskspec import DiskSpec
from harness.driver.block import BlockDriver
from harness.driver.errors import DriverError
from harness.driver.trace import Recorded
from harness.driver.transport.base import Transport
from harness.driver.transport.vhost_user import QUEUE_SIZE, VhostUser
from harness.machine.errors import MachineError
from harness.machine.storage_daemon import Export, export_options
from harness.robustness.device_process import DeviceProcess
from harness.targets.backing_sides import ExportSide
from harness.targets.base import DeviceIdentity, Plugged, Target, translated
from harness.targets.behind_qemu import LendingTarget, LentDisk
from harness.targets.daemon import Daemon
from harness.targets.external import SocketTarget

FRONT_END = frozenset({"queue_size"})
"""Fields of a disk that the front-end decides; here that is the driver."""


class DaemonDisk(ExportSide, Plugged):
    """An export of our qemu-storage-daemon, with a driver on it."""

    export: Export
    _daemon: Daemon

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

    def messages(self) -> list[Recorded]:
        """Return how the export is made, and the daemon's last QMP commands."""
        graph = self.export.graph
        options = export_options(self.export)
        objects, nodes = list(graph.objects), list(graph.nodes)
        part = (0.0, "export", objects, nodes, options, self.spec.capacity)
        return [part, *self._daemon.messages()]

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the daemon's process."""
        return self._daemon.processes()

    def pause(self) -> None:
        """Stop the daemon's process for a while."""
        for process in self.processes():
            process.pause()

    def resume(self) -> None:
        """Let the daemon's process go on."""
        for process in self.processes():
            process.resume()

    def unplug(self) -> None:
        """Disconnect, and remove the export."""
        self.driver.close()
        self._remove_export()


class VhostUserDaemon(Target):
    """The block export of a qemu-storage-daemon that we start; one daemon serves the whole run."""

    name = "vhost-user"
    description = "qemu-storage-daemon's vhost-user-blk export, driven from the host"
    traits = frozenset({"vhost-user", "modern"})

    def __init__(self, program: str | None = None) -> None:
        """Store `program`, the path of the daemon (None: search PATH)."""
        self._daemon = Daemon(program)

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """Return an export with a driver on it.

        Raise LacksError if an export cannot be as `spec` asks.
        """
        try:
            return DaemonDisk(self._daemon, spec)
        except (MachineError, DriverError) as error:
            raise translated(error) from None

    def close(self) -> None:
        """Stop the daemon."""
        self._daemon.stop()

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Return the daemon and its version."""
        return (self._daemon.identity(),)

    def facts(self) -> dict[str, str]:
        """Return the daemon's version."""
        return self._daemon.facts()

    def evidence(self) -> dict[str, str]:
        """Return the daemon's state and the end of its stderr."""
        return self._daemon.evidence()

    def logs(self) -> dict[str, str]:
        """Return the daemon's stderr and command line."""
        return self._daemon.logs()

    def check(self) -> None:
        """Raise TargetError if the daemon is gone."""
        try:
            self._daemon.check()
        except MachineError as error:
            raise translated(error) from None


class VhostUserSocket(SocketTarget, LendingTarget):
    """A back-end that somebody else runs on the socket `path`."""

    description = "the back-end that listens on the UNIX socket PATH, driven from the host"
    alike = "vhost-user"
    traits = frozenset({"vhost-user", "modern"})
    protocol = "vhost-user"
    owner = "the external back-end"

    def _reach(self, spec: DiskSpec) -> Transport:
        size = spec.queue_size or QUEUE_SIZE
        return VhostUser(self._path, size, without=self._host.refused)

    @property
    def resizes(self) -> bool:
        """True if the targets file has a `resize` command."""
        return self._host.resize is not None

    def lend(self, disk: LentDisk) -> Path:
        """Hang up, and return the socket."""
        disk.driver.close()
        disk.lent = True
        return Path(self._path)

    def facts(self) -> dict[str, str]:
        """Return the socket, and the protocol features in use."""
        if not self._disk:
            return {"socket": self._path}
        features = self._disk.driver.description()["protocol_features"]
        return {
            "socket": self._path,
            "protocol-features": ", ".join(features),
            **self._queues,
        }
