"""A QEMU process under our control."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from harness import interrupt
from harness.diskspec import SECTOR, DiskSpec, ImageFormat
from harness.machine.blockgraph import BlockGraph, build, build_vfio_user, build_vhost_user
from harness.machine.command import (
    DISK_SLOTS,
    MachineConfig,
    Paths,
    Saved,
    attachment,
    command_line,
    parked_firmware,
    pci_address,
    reconnect,
)
from harness.machine.drive import Drive, IoError, make_image
from harness.machine.errors import MachineError, UnsupportedError
from harness.machine.logs import end_of, tail
from harness.machine.monitor import Event
from harness.machine.process import Process
from harness.machine.ramfile import private_copy
from harness.machine.supervisor import QmpSupervised

START_DEADLINE = 30.0
CONSOLE_KEPT = 80  # lines: the text of a panic has about 50
LOG_KEPT = 4 << 20  # bytes
UNPLUG_DEADLINE = 15.0
VFIO_USER_SINCE = (10, 1)

IOTHREADS_SINCE = (9, 0)
"""First version of QEMU whose virtio-blk can have more than one iothread."""

FILE_MIGRATION_SINCE = (9, 1)
STATE_DEADLINE = 30.0
"""Seconds that QEMU may take to write or read the state of all devices."""

# Without the first, QEMU would copy RAM into the state; the second sends events.
_CAPABILITIES = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]

QUIET_ANSWERS = 3
"""Answers in a row without a buffer in use, after which a disk is at rest.

QEMU's main loop answers a command before or after what else it has to do in the same turn. With the
second answer, that has been done, and what it started with the third.
"""

LOOK_DEADLINE = 1.0
"""Seconds that QEMU may take for one of these answers."""

LOOK_PAUSE = 0.001
"""Seconds between two looks at a disk that has requests in flight."""

T = TypeVar("T")


class _Qemu(Process):
    @staticmethod
    def channel_options(fd: int) -> list[str]:
        return ["-chardev", f"socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"]


class Machine(QmpSupervised):
    """A guest, or a machine with a halted CPU, from `start` to `stop`. It is started only once.

    Use it as a context manager. Every method raises MachineError if QEMU refuses
    the command, is not running, or ends during the call.
    """

    process_name = "QEMU"
    subject = "the machine"
    process_type = _Qemu

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        self.ssh_port: int | None = None
        super().__init__()
        self._paths = Paths(self._dir.path)
        self._drives: list[Drive] = []
        self._drives_made = 0
        self._ram = -1
        self._console = ""

    @property
    def console_path(self) -> Path:
        """UNIX socket of the guest's ttyS0. QEMU also logs it: see `console_tail`.

        A process that connects must read: a few hundred unread bytes block the guest's
        next message. Without a connection the guest never blocks.
        """
        return self._paths.console

    @property
    def stream_path(self) -> Path:
        """UNIX socket of the guest's ttyS1."""
        return self._paths.stream

    @property
    def qtest_path(self) -> Path:
        """UNIX socket that speaks QEMU's qtest protocol, if the machine is parked."""
        return self._paths.qtest

    @property
    def ram_path(self) -> Path:
        """The file of guest RAM, as a path for this process only, while a parked machine runs."""
        return Path(f"/proc/self/fd/{self._ram}")

    @property
    def qmp_path(self) -> Path:
        """UNIX socket with QMP for other processes, one at a time; our session is separate."""
        return self._paths.qmp

    @property
    def drives(self) -> tuple[Drive, ...]:
        """The current disks."""
        return tuple(self._drives)

    def start(self) -> None:
        """Start QEMU. On return it runs and its sockets exist. Takes at most 30 s."""
        if self._process or self._stopped:
            raise MachineError("a machine can be started only once")
        try:
            if self.config.parked:
                # Not in the run directory: what is written where a file system is full is SIGBUS.
                with interrupt.shielded():
                    self._ram = os.memfd_create("ram")
                os.ftruncate(self._ram, self.config.memory << 20)
                self._paths.firmware.write_bytes(parked_firmware())
            with ExitStack() as opened:
                state, ram = self._open_saved(opened) if self.config.saved else (None, None)
                if self.config.parked:
                    ram = self._ram
                self._spawn([descriptor for descriptor in (state, ram) if descriptor], ram)
                if self.config.ssh:
                    self.ssh_port = self._forwarded_port()
                if state:
                    self._load(state)
            self.resume()
        except BaseException:
            self.stop()
            raise

    def save(self, state: Path) -> None:
        """Stop the machine and write the state of its devices to a file.

        The machine needs a `ram_file`, which has guest RAM. It cannot continue afterwards.
        Raises MachineError if QEMU cannot save it.
        """
        self.qmp("stop")
        self.qmp("migrate-set-capabilities", capabilities=_CAPABILITIES)
        self.qmp("migrate", uri=f"exec:cat > {quote(str(state))}")
        self._await_migration("save")

    def move(self) -> None:
        """Save the state of a parked machine, and continue from it in another QEMU process.

        The RAM is the same memory, so mappings of it stay valid. The qtest socket is a new one at
        the same path, and so are the sockets of the disks' back-ends. What was in flight when the
        machine was stopped is completed, or continues, as QEMU does it for a migration.
        """
        process = self._process
        if not self.config.parked or process is None:
            raise MachineError("only a parked machine that runs can be moved")
        state = self._paths.state
        self.save(state)
        self._request_end(process)
        process.end()
        self._close_session()
        if self._loop:
            self._loop.close()
        self._monitor = self._loop = None
        self.config = replace(self.config, saved=Saved(self.ram_path, state))
        with state.open("rb") as file:
            self._spawn([file.fileno(), self._ram], self._ram)
            self._load(file.fileno())
        self.resume()

    def pause(self) -> None:
        """Stop the machine; QEMU completes what its disks have in flight."""
        self.qmp("stop")

    def resume(self) -> None:
        """Let the machine run. On return it runs."""
        self.qmp("cont")
        self.wait_event("RESUME")

    def _load(self, state: int) -> None:
        """Load the state in an open file into the machine, which has not run yet."""
        self.qmp("migrate-set-capabilities", capabilities=_CAPABILITIES)
        # A descriptor of a file is what newer versions do not take.
        files = self.config.qemu.version >= FILE_MIGRATION_SINCE
        uri = f"file:/proc/self/fd/{state}" if files else f"fd:{state}"
        self.qmp("migrate-incoming", uri=uri)
        self._await_migration("load")

    def _await_migration(self, verb: str) -> None:
        def ended(event: Event) -> bool:
            return event["data"]["status"] in ("completed", "failed")

        event = self.wait_event("MIGRATION", ended, STATE_DEADLINE)
        if event["data"]["status"] == "failed":
            reason = self.qmp("query-migrate").get("error-desc", "it does not say why")
            raise MachineError(f"QEMU does not {verb} the machine's state: {reason}")

    def _open_saved(self, opened: ExitStack) -> tuple[int, int | None]:
        """Return descriptors of the saved state, and of a copy of RAM if one is needed."""
        saved = self.config.saved
        assert saved
        try:
            state = opened.enter_context(saved.state.open("rb")).fileno()
            if not self.config.shared_memory:
                return state, None
            ram = private_copy(saved.ram)
        except OSError as error:
            raise MachineError(f"no machine goes on from {saved.state.parent}: {error}") from error
        opened.callback(os.close, ram)
        return state, ram

    def _spawn(self, inherited: list[int], ram: int | None) -> None:
        """Start the process and its QMP session; `ram` is an open file for RAM, if not None."""
        path = Path(f"/proc/self/fd/{ram}") if ram else None
        graphs = [drive.graph for drive in self._drives]
        line = command_line(self.config, self._paths, graphs, path)
        self._launch(line, inherited)
        self._open_monitor(START_DEADLINE)

    def _keep(self) -> None:
        super()._keep()
        self._console = self.console_tail(CONSOLE_KEPT)

    def _stop(self) -> None:
        try:
            super()._stop()
        finally:
            if self._ram >= 0:
                os.close(self._ram)
                self._ram = -1

    def console_tail(self, lines: int = 40) -> str:
        """Return the last lines of the guest's console (after `stop`, at most 80)."""
        if self._stopped:
            return "\n".join(self._console.splitlines()[-lines:])
        return tail(self._paths.console_log, lines)

    def logs(self) -> dict[str, str]:
        """Return file name -> console, QEMU's stderr and its command line; at most 4 MiB each.

        After `stop` it is only the end of them.
        """
        command = {"qemu.command": self._process.command} if self._process else {}
        if self._stopped:
            return command | {"console.log": self._console, "qemu.log": self._last_words}
        console = end_of(self._paths.console_log, LOG_KEPT)
        stderr = f"{end_of(self._stderr, LOG_KEPT)}{self.fate()}\n" if self._process else ""
        return command | {"console.log": console, "qemu.log": stderr}

    def wait_event(
        self, name: str, match: Callable[[Event], bool] | None = None, timeout: float = 10.0
    ) -> Event:
        """Return the oldest QMP event of that name (that `match` accepts); wait if there is none.

        Events since `start` count, even from before this call. Each is returned once.
        """
        return self._ask(lambda monitor: monitor.wait_event(name, match, timeout))

    def wait_io_error(self, drive: Drive, timeout: float = 10.0) -> IoError:
        """Return the oldest report of an error of a disk's backing store; wait if there is none.

        If it stops the machine, the machine has stopped on return. Newer versions of QEMU report
        at most one error in a second.
        """
        event = self.wait_event(
            "BLOCK_IO_ERROR", lambda event: event["data"]["node-name"] == drive.name, timeout
        )
        data = event["data"]
        if data["action"] == "stop":
            self.wait_event("STOP", timeout=timeout)
        return IoError(data["operation"], data["action"], data.get("nospace", False))

    def at_rest(self, drive: Drive, within: float) -> bool:
        """Wait until no buffer of a disk is in use, and QEMU has done what it was asked before.

        Return False after `within` seconds, and LOOK_DEADLINE for an answer that is late. Return
        False at once for a disk that iothreads or a vhost-user back-end serve, of which QEMU's main
        loop knows nothing, and while a virtqueue is not set up: a reset sets QEMU's count of
        buffers to 0, also if a request is still in flight.
        """
        if drive.graph.socket or drive.spec.iothreads:
            return False
        path = f"/machine/peripheral/{drive.name}"
        if drive.graph.device["driver"] != "virtio-blk-device":
            path += "/virtio-backend"
        # QEMU's default is a queue for each CPU, here one. Not asked of QEMU: 11.1 aborts at
        # x-query-virtio-status.
        queues = range(drive.spec.queues or 1)
        deadline, quiet = time.monotonic() + within, 0
        while quiet < QUIET_ANSWERS:
            quiet += 1
            for queue in queues:
                if time.monotonic() > deadline:
                    return False
                state = self.qmp(
                    "x-query-virtio-queue-status", LOOK_DEADLINE, path=path, queue=queue
                )
                if not state["vring-desc"]:
                    return False
                if state["inuse"]:
                    quiet = 0
                    time.sleep(LOOK_PAUSE)
                    break
        return True

    def add_disk(self, spec: DiskSpec) -> Drive:
        """Add a disk. Before `start` it is there at boot; after it, it is hot-plugged.

        UnsupportedError for more than one iothread before QEMU 9.0.
        """
        # Without this check, older versions ignore the option when a disk is hot-plugged.
        if (spec.iothreads or 0) > 1 and self.config.qemu.version < IOTHREADS_SINCE:
            raise UnsupportedError(
                f"{self.config.qemu.version_text} has one iothread for a disk: 9.0 has more"
            )
        return self._add(
            spec,
            lambda name, where, path: build(name, spec, where, path, scratch=True),
            None if spec.backing == "null" else f".{spec.image}",
        )

    def add_image(
        self,
        path: Path,
        fmt: ImageFormat = "raw",
        writable: bool = False,
        spec: DiskSpec | None = None,
    ) -> Drive:
        """Add an existing image file as a disk, read-only unless `writable`.

        The file is never created, probed or removed. `capacity`, `backing`,
        `read_only` and `image` of `spec` are ignored.
        """
        if not path.is_file():
            raise MachineError(f"there is no disk image {path}")
        if fmt == "raw" and path.stat().st_size % SECTOR:
            raise MachineError(f"{path} is not whole sectors of {SECTOR} bytes")
        spec = replace(spec or DiskSpec(), read_only=not writable, backing="file", image=fmt)
        image = path.absolute()
        return self._add(spec, lambda name, where, _: build(name, spec, where, image), None)

    def add_vhost_user(self, socket: Path, spec: DiskSpec) -> Drive:
        """Add a vhost-user-blk-pci device whose back-end listens on a socket.

        The machine needs `shared_memory` or `parked`. The machine does not use the
        back-end's storage and size.
        """
        return self._add(
            spec, lambda name, where, path: build_vhost_user(name, spec, where, socket), None
        )

    def add_vfio_user(self, socket: Path, spec: DiskSpec) -> Drive:
        """Add the PCI function that a vfio-user server on a socket serves (QEMU 10.1 or newer).

        The machine needs `shared_memory`. MachineError for an older QEMU.
        """
        if self.config.qemu.version < VFIO_USER_SINCE:
            raise MachineError(
                f"{self.config.qemu.version_text} has no vfio-user-pci: 10.1 or newer has"
            )
        return self._add(
            spec, lambda name, where, path: build_vfio_user(name, _place(where), socket), None
        )

    def remove_disk(self, drive: Drive) -> None:
        """Remove a disk and its file. A running guest must release it (ACPI) within 15 s."""
        if drive not in self._drives:
            raise MachineError(f"{drive.name} is not a disk of this machine")
        if self._process:
            self.qmp("device_del", id=drive.name)
            self._await_unplug(drive.name)
            self._remove_drive(drive, len(drive.graph.objects), len(drive.graph.nodes))
        self._drives.remove(drive)
        if drive.own_file:
            drive.own_file.unlink()

    def _add(
        self,
        spec: DiskSpec,
        graph_of: Callable[[str, dict[str, Any], Path | None], BlockGraph],
        suffix: str | None,
    ) -> Drive:
        """Add a disk; with a `suffix`, create a file for it, and pass that to `graph_of`."""
        if self._stopped:
            raise MachineError("the machine has stopped")
        taken = {drive.slot for drive in self._drives}
        slots = DISK_SLOTS[self.config.board]
        slot = next((slot for slot in slots if slot not in taken), None)
        if slot is None:
            raise MachineError(f"no slot is left: at most {len(slots)} disks")
        name = f"disk{self._drives_made}"
        own_file = self._dir.path / f"{name}{suffix}" if suffix else None
        graph = graph_of(name, attachment(self.config, slot), own_file)
        if own_file:
            make_image(own_file, spec)
        address = pci_address(self.config, slot)
        drive = Drive(name, spec, slot, address, graph, own_file, self._resize)
        self._drives_made += 1
        if self._process:
            try:
                self._plug(drive)
            except MachineError as error:
                if own_file:
                    own_file.unlink(missing_ok=True)
                raise MachineError(f"{name} was not added: {error}", error.details) from error
        self._drives.append(drive)
        return drive

    def _plug(self, drive: Drive) -> None:
        objects = nodes = 0
        try:
            if drive.graph.socket:
                self._add_chardev(drive.name, drive.graph.socket)
            for options in drive.graph.objects:
                self.qmp("object-add", **options)
                objects += 1
            for options in drive.graph.nodes:
                self.qmp("blockdev-add", **options)
                nodes += 1
            self.qmp("device_add", **drive.graph.device)
        except MachineError:
            if self.alive():
                self._remove_drive(drive, objects, nodes)
            raise

    def _add_chardev(self, name: str, path: Path) -> None:
        address = {"type": "unix", "data": {"path": str(path)}}
        data = {"addr": address, "server": False, **reconnect(self.config.qemu)}
        backend = {"type": "socket", "data": data}
        arguments: dict[str, Any] = {"id": name, "backend": backend}
        self.qmp("chardev-add", **arguments)

    def _remove_drive(self, drive: Drive, objects: int, nodes: int) -> None:
        if drive.graph.socket:
            self.qmp("chardev-remove", id=drive.name)
        self._remove_nodes(drive.graph, objects, nodes)

    def _await_unplug(self, name: str) -> None:
        try:
            self.wait_event(
                "DEVICE_DELETED", lambda event: event["data"].get("device") == name, UNPLUG_DEADLINE
            )
        except MachineError as error:
            if not self.alive():
                raise
            raise MachineError(
                f"the guest did not let go of {name} within {UNPLUG_DEADLINE:g} s", self._details()
            ) from error

    def fate(self) -> str:
        """Return in words if QEMU runs, or how it ended, with the reason that it or Linux gave."""
        panic = re.findall(r"Kernel panic - not syncing: *(.*)", tail(self._paths.console_log, 400))
        if panic:
            return f"the guest's kernel panicked ({panic[-1]}); {super().fate()}"
        reason = self._monitor.shutdown_reason if self._monitor else None
        return super().fate() + (f" on {reason}" if reason else "")

    def _details(self) -> str:
        command = self._process.command if self._process else "(none)"
        return (
            f"--- QEMU's command line\n{command}\n"
            f"--- QEMU's last words\n{self.last_words()}\n"
            f"--- the console's tail\n{self.console_tail(CONSOLE_KEPT)}"
        )

    def _forwarded_port(self) -> int:
        arguments: dict[str, Any] = {"command-line": "info usernet"}
        answer = self.qmp("human-monitor-command", **arguments)
        match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s", answer)
        if match is None:
            raise MachineError(f"QEMU named no forwarded port: {answer!r}")
        return int(match[1])


def _place(attachment: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a disk's attachment that says where on the PCI bus it lies."""
    return {name: attachment[name] for name in ("bus", "addr") if name in attachment}
