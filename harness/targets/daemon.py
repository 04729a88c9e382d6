"""Back-end of the vhost-user targets: exports of one qemu-storage-daemon that we start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from harness.diskspec import DiskSpec, unsupported
from harness.driver.trace import Recorded
from harness.machine.errors import MachineError
from harness.machine.qemu import Qemu
from harness.machine.storage_daemon import HONOURED, Export, StorageDaemon, find_storage_daemon
from harness.robustness.device_process import MONITOR_DEADLINE, DeviceProcess
from harness.targets.base import Backing, DeviceIdentity, LacksError

BY_QEMU = frozenset(
    {"queue_size", "config_wce", "event_idx", "indirect_desc", "packed", "in_order"}
)
"""Fields of a disk that QEMU decides even if the back-end is outside QEMU."""


def without(spec: DiskSpec, fields: frozenset[str]) -> DiskSpec:
    """Return a spec with the defaults for these fields."""
    default = DiskSpec()
    return replace(spec, **{name: getattr(default, name) for name in fields})


class Exported(Protocol):
    """A disk of a back-end, on a UNIX socket."""

    @property
    def path(self) -> Path:
        """Return the socket."""
        ...

    @property
    def spec(self) -> DiskSpec:
        """Return the disk as it is."""
        ...

    @property
    def backing(self) -> Backing:
        """Return the file behind the disk. MachineError or LacksError if there is none."""
        ...

    def resize(self, capacity: int) -> None:
        """Set the capacity in sectors of 512 bytes."""
        ...


def as_exported(spec: DiskSpec, export: Exported) -> DiskSpec:
    """Return a spec with the capacity of an export, and read-only as that is."""
    return replace(spec, capacity=export.spec.capacity, read_only=export.spec.read_only)


class BackEnd(Protocol):
    """A vhost-user back-end that QEMU can use: it makes disks, each on a socket."""

    @property
    def resizes(self) -> bool:
        """True if a disk can be resized."""
        ...

    @property
    def made_to_order(self) -> bool:
        """False if each disk is the same device, as it is."""
        ...

    def export(
        self, spec: DiskSpec, elsewhere: frozenset[str] = frozenset(), writes: bool = True
    ) -> Exported:
        """Make a disk; fields in `elsewhere` are provided by somebody else."""
        ...

    def remove(self, export: Exported, killed: bool = False) -> None:
        """Remove a disk, whose process may have been `killed`."""
        ...

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the processes of the back-end that are ours."""
        ...

    def stop(self) -> None:
        """End what was started."""
        ...

    def identity(self) -> DeviceIdentity:
        """Return the name and version for the records of deviations."""
        ...

    def facts(self) -> dict[str, str]:
        """Return name -> version of the daemon, for the report of the run."""
        ...

    def evidence(self) -> dict[str, str]:
        """Return title -> text about its present state."""
        ...

    def logs(self) -> dict[str, str]:
        """Return file name -> text of its logs and command lines."""
        ...

    def check(self) -> None:
        """Raise MachineError or TargetError if it has died."""
        ...


class Daemon:
    """A qemu-storage-daemon that starts with the first export, and again after it has died."""

    def __init__(self, program: str | None = None) -> None:
        """Store `program`, the path of the daemon (None: search PATH)."""
        self._program = program
        self._found: Qemu | None = None
        self._running: StorageDaemon | None = None

    resizes = True
    made_to_order = True

    @property
    def version(self) -> Qemu:
        """Return the program and its version. Raise MachineError if there is none."""
        if self._found is None:
            self._found = find_storage_daemon(self._program)
        return self._found

    def export(
        self, spec: DiskSpec, elsewhere: frozenset[str] = frozenset(), writes: bool = True
    ) -> Export:
        """Add an export.

        Raise LacksError for a field that the daemon cannot provide.

        Fields in `elsewhere` are provided by somebody else and are ignored here.
        """
        del writes
        spec = without(spec, elsewhere)
        lacking = unsupported(spec, HONOURED)
        if lacking:
            raise LacksError(f"qemu-storage-daemon has no option for a disk's {', '.join(lacking)}")
        if self._running and not self._running.alive():
            self.stop()
        if self._running is None:
            self._running = StorageDaemon(self.version)
            self._running.start()
        return self._running.add_export(spec)

    def remove(self, export: Exported, killed: bool = False) -> None:
        """Remove an export. Raise MachineError if the daemon does not remove it.

        If it was `killed`, all exports are gone.
        """
        if self._running and not killed:
            assert isinstance(export, Export)
            self._running.remove_export(export)

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the daemon's process, if one was started."""
        running = self._running
        if running is None or running.pid is None:
            return ()

        def answers() -> bool:
            try:
                running.qmp("query-block-exports", timeout=MONITOR_DEADLINE)
            except MachineError:
                return False
            return True

        name = "qemu-storage-daemon"
        return (DeviceProcess(name, running.pid, running.alive, running.last_words, answers),)

    def messages(self) -> list[Recorded]:
        """Return the daemon's last QMP commands, as events of a trace."""
        return list(self._running.messages) if self._running else []

    def stop(self) -> None:
        """Stop the daemon if it runs."""
        if self._running:
            self._running.stop()
            self._running = None

    def identity(self) -> DeviceIdentity:
        """Return the identity under which the daemon's deviations are filed."""
        return DeviceIdentity("qemu-storage-daemon", self.version.version)

    def facts(self) -> dict[str, str]:
        """Return the daemon's version."""
        return {"qemu-storage-daemon": self.version.version_text}

    def evidence(self) -> dict[str, str]:
        """Return the daemon's state and the end of its stderr."""
        if self._running is None:
            return {}
        return {"qemu-storage-daemon, last words": self._running.last_words()}

    def logs(self) -> dict[str, str]:
        """Return the daemon's stderr and command line."""
        return self._running.logs() if self._running else {}

    def check(self) -> None:
        """Raise MachineError if the daemon has died."""
        if self._running:
            self._running.check()
