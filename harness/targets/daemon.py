"""The back-end of the vhost-user targets: exports of one qemu-storage-daemon that we start."""

from __future__ import annotations

from dataclasses import replace

from harness.diskspec import DiskSpec, unsupported
from harness.machine.errors import MachineError
from harness.machine.qemu import Qemu
from harness.machine.storage_daemon import HONOURED, Export, StorageDaemon, find_storage_daemon
from harness.robustness.device_process import MONITOR_DEADLINE, DeviceProcess
from harness.targets.base import DeviceIdentity, LacksError

BY_QEMU = frozenset(
    {"queue_size", "config_wce", "event_idx", "indirect_desc", "packed", "in_order"}
)
"""What of a disk with a back-end outside QEMU is still QEMU's to choose."""


class Daemon:
    """A qemu-storage-daemon that starts with the first export, and anew if it has died."""

    def __init__(self, program: str | None = None) -> None:
        """`program` is the daemon's path (None: the one on PATH)."""
        self._program = program
        self._found: Qemu | None = None
        self._running: StorageDaemon | None = None

    @property
    def version(self) -> Qemu:
        """The program and its version. MachineError if there is none."""
        if self._found is None:
            self._found = find_storage_daemon(self._program)
        return self._found

    def export(self, spec: DiskSpec, elsewhere: frozenset[str] = frozenset()) -> Export:
        """A new export. LacksError for what it has no option for, but for fields `elsewhere`."""
        usual = DiskSpec()
        spec = replace(spec, **{name: getattr(usual, name) for name in elsewhere})
        odd = unsupported(spec, HONOURED)
        if odd:
            raise LacksError(f"qemu-storage-daemon has no option for a disk's {', '.join(odd)}")
        if self._running and not self._running.alive():
            self.stop()
        if self._running is None:
            self._running = StorageDaemon(self.version)
            self._running.start()
        return self._running.add_export(spec)

    def remove(self, export: Export) -> None:
        """Take an export out again. MachineError if the daemon does not let it go."""
        if self._running:
            self._running.remove_export(export)

    def processes(self) -> tuple[DeviceProcess, ...]:
        """The daemon's process, if one was started."""
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

    def stop(self) -> None:
        """End the daemon, if it runs."""
        if self._running:
            self._running.stop()
            self._running = None

    def identity(self) -> DeviceIdentity:
        """What its deviations are filed under."""
        return DeviceIdentity("qemu-storage-daemon", self.version.version)

    def facts(self) -> dict[str, str]:
        """Its version."""
        return {"qemu-storage-daemon": self.version.version_text}

    def evidence(self) -> dict[str, str]:
        """How it fares, and the end of its stderr."""
        if self._running is None:
            return {}
        return {"qemu-storage-daemon, last words": self._running.last_words()}

    def logs(self) -> dict[str, str]:
        """Its stderr and its command line."""
        return self._running.logs() if self._running else {}

    def check(self) -> None:
        """Raise MachineError if it has died."""
        if self._running:
            self._running.check()
