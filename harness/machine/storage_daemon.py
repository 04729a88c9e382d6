"""A qemu-storage-daemon as child process: disks as vhost-user-blk back-ends on UNIX sockets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from harness.diskspec import DiskSpec, unsupported
from harness.machine.blockgraph import BlockGraph, build
from harness.machine.drive import Volume, make_image
from harness.machine.errors import MachineError
from harness.machine.logs import end_of
from harness.machine.process import Process
from harness.machine.qemu import Qemu, version_of
from harness.machine.supervisor import QmpSupervised

PROGRAM = "qemu-storage-daemon"
INSTALL = "apt-get install qemu-system-common"
START_DEADLINE = 20.0
ANSWER_DEADLINE = 10.0
LOG_KEPT = 4 << 20  # bytes

HONOURED = frozenset(
    {
        *("capacity", "backing", "image", "read_only", "logical_block_size", "queues"),
        *("unmap", "iops", "faults"),
    }
)
"""Fields of `DiskSpec` that an export supports."""

T = TypeVar("T")


def find_storage_daemon(path: str | None = None) -> Qemu:
    """Return the daemon at `path`, or the one on PATH. MachineError if none runs."""
    found = shutil.which(path or PROGRAM)
    if found is None:
        raise MachineError(f"{path or PROGRAM} is no program on this machine; {INSTALL}")
    return version_of(found, PROGRAM, f"{PROGRAM} version")


class _Daemon(Process):
    @staticmethod
    def channel_options(fd: int) -> list[str]:
        return ["--chardev", f"socket,id=qmp,fd={fd}", "--monitor", "chardev=qmp"]


class Export(Volume):
    """A disk that the daemon serves on a UNIX socket, from `StorageDaemon.add_export`."""

    def __init__(
        self,
        name: str,
        spec: DiskSpec,
        path: Path,
        graph: BlockGraph,
        own_file: Path | None,
        resize: Callable[[str, int], None],
    ) -> None:
        super().__init__(name, spec, graph, own_file, resize)
        self.path = path


class StorageDaemon(QmpSupervised):
    """A qemu-storage-daemon, from `start` to `stop`. It is started only once.

    Use it as a context manager. Every method raises MachineError if the daemon
    refuses the command, is not running, or ends during the call.
    """

    process_name = PROGRAM
    subject = PROGRAM
    process_type = _Daemon

    def __init__(self, program: Qemu) -> None:
        super().__init__()
        self.program = program
        self._exports: list[Export] = []
        self._made = 0

    def start(self) -> None:
        """Start the daemon. On return it accepts exports. Takes at most 20 s."""
        if self._process or self._stopped:
            raise MachineError(f"a {PROGRAM} can be started only once")
        try:
            self._launch([str(self.program.path)])
            self._open_monitor(START_DEADLINE)
        except BaseException:
            self.stop()
            raise

    def logs(self) -> dict[str, str]:
        """Return file name -> stderr and command line; after `stop`, the end of stderr only."""
        if self._stopped or self._process is None:
            return {f"{PROGRAM}.log": self._last_words}
        return {
            f"{PROGRAM}.command": self._process.command,
            f"{PROGRAM}.log": f"{end_of(self._stderr, LOG_KEPT)}{self._process.fate()}\n",
        }

    def add_export(self, spec: DiskSpec) -> Export:
        """Create a disk, and serve it on a socket of its own.

        Raises MachineError for a field that exports do not support (see `HONOURED`).
        """
        refused = unsupported(spec, HONOURED)
        if refused:
            raise MachineError(f"{PROGRAM} has no option for a disk's {', '.join(refused)}")
        name = f"disk{self._made}"
        self._made += 1
        own_file = None if spec.backing == "null" else self._dir.path / f"{name}.{spec.image}"
        graph = build(name, spec, {}, own_file, scratch=True)
        export = Export(name, spec, self._dir.path / name, graph, own_file, self._resize)
        if own_file:
            make_image(own_file, spec)
        try:
            self._serve(export)
        except MachineError as error:
            if own_file:
                own_file.unlink(missing_ok=True)
            raise MachineError(f"{name} was not exported: {error}", error.details) from error
        self._exports.append(export)
        return export

    def remove_export(self, export: Export) -> None:
        """Close the connection to the front-end, if any, and remove disk, file and socket."""
        if export not in self._exports:
            raise MachineError(f"{export.name} is not an export of this daemon")
        self.qmp("block-export-del", id=export.name, mode="hard")
        self._ask(
            lambda monitor: monitor.wait_event(
                "BLOCK_EXPORT_DELETED",
                lambda event: event["data"]["id"] == export.name,
                ANSWER_DEADLINE,
            )
        )
        self._remove_nodes(export.graph, len(export.graph.objects), len(export.graph.nodes))
        self._exports.remove(export)
        if export.own_file:
            export.own_file.unlink()

    def _serve(self, export: Export) -> None:
        objects = nodes = 0
        try:
            for options in export.graph.objects:
                self.qmp("object-add", **options)
                objects += 1
            for options in export.graph.nodes:
                self.qmp("blockdev-add", **options)
                nodes += 1
            self.qmp("block-export-add", **export_options(export))
        except MachineError:
            if self.alive():
                self._remove_nodes(export.graph, objects, nodes)
            raise


def export_options(export: Export) -> dict[str, Any]:
    """Return the arguments of block-export-add."""
    options: dict[str, Any] = {
        "type": "vhost-user-blk",
        "id": export.name,
        "node-name": export.name,
        "addr": {"type": "unix", "path": str(export.path)},
        "writable": not export.spec.read_only,
    }
    if export.spec.queues is not None:
        options["num-queues"] = export.spec.queues
    if export.spec.logical_block_size is not None:
        options["logical-block-size"] = export.spec.logical_block_size
    return options
