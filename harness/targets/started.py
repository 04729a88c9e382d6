"""A daemon of somebody else that the harness starts, as a table of the targets file says."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from harness import interrupt
from harness.diskspec import SECTOR, DiskSpec, unsupported
from harness.driver.block import BlockDriver
from harness.driver.bus.vfio_user import VfioUser
from harness.driver.errors import DriverError, NoDeviceError
from harness.driver.interface import Driver, Request
from harness.driver.transport.base import Transport
from harness.driver.transport.pci import PciModern
from harness.driver.transport.vhost_user import QUEUE_SIZE, VhostUser
from harness.machine import cleanup
from harness.machine.drive import Backing as FileBacking
from harness.machine.drive import make_raw
from harness.machine.errors import MachineError
from harness.machine.foreign import LAST_OUTPUT, ForeignDaemon, alone_serves, listens, run
from harness.machine.rundir import RunDir
from harness.machine.served_files import FAULTY, ServedFiles
from harness.machine.served_files import HONOURED as SERVED_FIELDS
from harness.machine.served_files import lacking as fuse_lacking
from harness.robustness.device_process import DeviceProcess
from harness.targets.base import (
    Backing,
    DeviceIdentity,
    LacksError,
    StartError,
    TargetError,
    translated,
)
from harness.targets.behind_qemu import LendingTarget, LentDisk, resize_by_command
from harness.targets.found import Found, unreadable
from harness.targets.through_device import ThroughDevice, unnamed
from harness.targets.userfile import PLACES, VMM_PLACES, UserTarget, rendered, words_of
from harness.virtio.blk import RequestType, Status

STARTS = 3
"""Starts in a row that may fail before the run ends."""

END_DEADLINE = 2.0
"""Seconds that a daemon may take to end after its only connection was closed."""

AFTERMATH = 0.02
"""Seconds in which a daemon that crashes when its front-end hangs up has ended."""

AFTERMATH_AT_MOST = 5.0
"""Seconds in which it has ended on a busy machine."""

CORE_WRITTEN = 60.0
"""Seconds in which the core file of a daemon that has crashed is written."""

CLOSING = 0.2
"""Seconds in which a daemon that has closed its connection has ended, on an idle machine."""

PROBE = 4096
"""Bytes at the start of the file by which the first disk shows if the device serves this file."""

IDLE = 0.3
POLLING = 0.75
"""A daemon with a thread that uses, or waits for, a CPU for more than this part of IDLE seconds,
with nothing to do, is polling."""

LOOKS = 5
"""Most looks at that. A look during which the whole machine stood still says nothing."""

VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){1,7}")
"""A version in the output of `version_command`."""

VERSION_DEADLINE = 10.0
"""Seconds that `version_command` may take."""

TROUBLE = (MachineError, DriverError, OSError)


class StartedDisk(LentDisk):
    """A disk of a daemon that we started, with a driver on it."""

    def __init__(
        self, target: StartedTarget, name: str, spec: DiskSpec, driver: Driver, file: Path
    ) -> None:
        self._target = target
        self._name = name
        self.file = file if target.serves_file else None
        self.spec = spec
        self.driver = driver
        self.resizable = target.resizes
        self.storage_known = target.serves_file
        self._capacity = spec.capacity

    @property
    def backing(self) -> Backing:
        """Return the file, or the view through the device if that does not serve the file."""
        if self.file is None:
            self.through_device = True
            return ThroughDevice(self.driver, unnamed("a disk that the daemon has"))
        return FileBacking(self.file)

    def resize(self, capacity: int) -> None:
        """Resize the disk by the user's command. LacksError if none was named.

        Also LacksError if the command refuses to make the disk smaller, see `resize_by_command`.
        """
        command = partial(self._target.resize, self._name)
        resize_by_command(command, self._capacity, capacity, self._target.check)
        self._capacity = capacity

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the daemon."""
        return self._target.processes()

    def pause(self) -> None:
        """Stop the daemon's process for a while. LacksError if the device may be another one."""
        if not isinstance(self.driver, BlockDriver):  # it would stop as well
            super().pause()
        self._target.pause(self._name)

    def resume(self) -> None:
        """Let the daemon's process go on."""
        for process in self.processes():
            process.resume()

    def unplug(self) -> None:
        """Hang up, and end the daemon or remove the disk."""
        self._target.unplug(self)

    @property
    def name(self) -> str:
        """Return the disk's name, as {name} has it."""
        return self._name


class StartedTarget(LendingTarget):
    """A daemon that is started for each disk, for each connection, or once for the run."""

    description = "a daemon that the harness starts, driven from the host"

    def __init__(self, name: str, definition: UserTarget, destructive: bool = False) -> None:
        """`definition` is the table of the file, `destructive` allows writes to its own disk."""
        self.name = name
        over_vhost_user = definition.device == "vhost-user"
        self.traits = frozenset({"vhost-user" if over_vhost_user else "pci", "modern"})
        self.alike = "vhost-user" if over_vhost_user else "model-pci"
        self._definition = definition
        (program, *_) = words_of(
            definition.command, {**dict.fromkeys(PLACES | VMM_PLACES, ""), **self._programs()}
        )
        self._program = Path(definition.program or program).name
        self._file_is_ours = "{file}" in definition.command + definition.plug
        self.made_to_order = self._file_is_ours
        self._writable = self._file_is_ours or destructive or definition.destructive
        self.serves_file = self._file_is_ours
        self._dir: RunDir | None = None
        self._daemon: ForeignDaemon | None = None
        self._ended: ForeignDaemon | None = None
        self._made = 0
        self._failed_starts = 0
        self._tried = False
        self._polls = False
        self._plug_tried = False
        self._line: list[str] = []
        self._socket = Path()
        self._disks: list[StartedDisk] = []
        self._served: ServedFiles | None = None
        self._facts: dict[str, str] = {}

    @property
    def resizes(self) -> bool:
        """True if the targets file has a `resize` command."""
        return bool(self._definition.resize)

    @property
    def _several(self) -> bool:
        """True if there may be several disks at once: one process has them, in files of ours."""
        return self._definition.per == "run" and self._file_is_ours

    # --- disks

    def plug(self, spec: DiskSpec, writes: bool = True) -> StartedDisk:
        """Make a disk with a driver on it. LacksError for what the file has no words for.

        StartError if the daemon does not start. The third in a row ends the run, but a start with
        options does not count once the daemon has worked.
        """
        if writes and not self._writable:
            raise LacksError(
                f"{self.name} is only read without --destructive: its command has no {{file}}"
            )
        if self._disks and not self._several:
            raise LacksError(f"the disk of {self.name} is in use")
        if self._disks and not self._runs():
            daemon = self._daemon or self._ended
            end = f": {daemon.last_line()}" if daemon else ""
            raise TargetError(f"{self.name}: the process of the disks in use has ended{end}")
        words, covered = self._words(spec)
        covered |= self._by_served_file(spec)
        provided = {*covered, "capacity"} if self._file_is_ours else covered
        if missing := "; ".join(unreadable(spec, provided)):
            raise LacksError(missing)
        with interrupt.shielded():
            self._prepare()
        try:
            disk = self._make(spec, words, provided)
        except TROUBLE as error:
            # A daemon that has worked may only refuse these options: that does not end the run.
            self._failed_starts += not (words and self._tried)
            raise self._failed(error) from None
        self._failed_starts = 0
        return disk

    def lend(self, disk: LentDisk) -> Path:
        """Hang up, and return the socket on which the daemon waits for another front-end.

        A daemon that has ended with the connection is started again.
        """
        assert isinstance(disk, StartedDisk)
        disk.driver.close()
        disk.lent = True
        if self._definition.per == "connection":
            self._start_for_a_connection()
        return self._socket_of(disk.name)

    def _words(self, spec: DiskSpec) -> tuple[list[str], set[str]]:
        """Return the words for what a disk has to be, and the fields that they are about."""
        words: list[str] = []
        covered: set[str] = set()
        for name in unsupported(spec, frozenset()):
            command = self._definition.options.get(name)
            value = getattr(spec, name)
            if command is None or (not value and f"{{{name}}}" not in command):
                continue
            covered.add(name)
            words += words_of(command, {name: rendered(value)})
        return words, covered

    def _by_served_file(self, spec: DiskSpec) -> set[str]:
        """Return the fields that a file of ours provides. LacksError if FUSE is missing."""
        if not self._definition.serve_file:
            return set()
        wanted = {*unsupported(spec, frozenset())} & SERVED_FIELDS - self._definition.options.keys()
        if any(fault.on not in FAULTY for fault in spec.faults):
            wanted.discard("faults")
        if wanted and (missing := fuse_lacking()):
            raise LacksError(f"cannot provide {', '.join(sorted(wanted))}: {missing}")
        return wanted

    def _prepare(self) -> None:
        if self._dir is None:
            self._dir = RunDir()
            cleanup.at_exit(self.close)

    def _make(self, spec: DiskSpec, words: list[str], provided: set[str]) -> StartedDisk:
        assert self._dir
        served = bool(self._by_served_file(spec))
        name = f"disk{self._made}"
        self._made += 1
        file, self._socket = self._dir.path / f"{name}.raw", self._socket_of(name)
        probe = b""
        if self._file_is_ours:
            make_raw(file, spec.capacity)
            if not self._tried:
                probe = os.urandom(min(PROBE, spec.capacity * SECTOR))
                file.write_bytes(probe)
                os.truncate(file, spec.capacity * SECTOR)
        values = self._values(name, spec.capacity)
        if served:
            values = {**values, "file": self._serve(file)}
        driver: BlockDriver | None = None
        try:
            if self._definition.per == "run":
                self._start_for_the_run(values)
                self._plug_command(words_of(self._definition.plug, values, words))
            else:
                self._line = words_of(self._definition.start, values, words)
                if self._definition.per == "disk":
                    self._start(self._socket)
            driver = BlockDriver(self._connect(spec))
            found = Found.of(driver)
            if differences := "; ".join(self._differences(found, spec, provided)):
                raise LacksError(differences)
            self._try(driver, found, probe)
            if served:
                assert self._served
                self._served.set(file.name, spec)
            if probe and self._file_is_ours:
                FileBacking(file).write(0, bytes(len(probe)))
        except BaseException as error:
            with suppress(*TROUBLE, TargetError):
                if driver:  # without a reset: it could hang as the start did
                    driver.transport.close()
            if not isinstance(error, LacksError):
                if isinstance(error, Exception):  # after Ctrl-C nothing says that it will end
                    self._await_end(CLOSING)
                self._end()  # it may be wedged, and then does not answer `unplug` either
            with suppress(*TROUBLE, TargetError):
                self._remove(name)
            raise
        spec = replace(spec, capacity=found.config.capacity)
        if "queues" not in provided and found.transport_queues > 1:
            spec = replace(spec, queues=found.transport_queues)
        disk = StartedDisk(self, name, spec, driver, file)
        self._disks.append(disk)
        return disk

    def _socket_of(self, name: str) -> Path:
        assert self._dir
        return self._dir.path / f"{name}.sock"

    def _values(self, name: str, capacity: int) -> Mapping[str, object]:
        assert self._dir
        return {
            **self._programs(),
            "name": name,
            "file": self._dir.path / f"{name}.raw",
            "socket": self._socket_of(name),
            "dir": self._dir.path,
            "bytes": capacity * SECTOR,
            "sectors": capacity,
        }

    def _serve(self, file: Path) -> Path:
        """Return the path of a file over FUSE. MachineError if it cannot be served."""
        assert self._dir
        if self._served is None:
            log = self._dir.path / "served.log"
            self._served = ServedFiles(self._dir.path, self._dir.path / "served", log)
        return self._served.mountpoint / file.name

    def _programs(self) -> dict[str, object]:
        return {"program": self._definition.program, "control": self._definition.control}

    @staticmethod
    def _differences(found: Found, spec: DiskSpec, provided: set[str]) -> Iterator[str]:
        # An option may give fewer queues than it was asked for: then a test cannot use them.
        yield from found.differences(spec, provided - {"queues"})

    def unplug(self, disk: StartedDisk) -> None:
        """Hang up, and end the daemon or remove the disk. TargetError if the daemon has died."""
        self._disks = [other for other in self._disks if other is not disk]
        gone = "" if disk.killed else self._gone()
        try:
            disk.driver.close()
        except (DriverError, OSError) as error:
            gone = gone or str(error)
        if not disk.killed:
            gone = gone or self._died_at_the_end()
        try:
            self._remove(disk.name)
        except MachineError as error:
            gone = gone or str(error)
        if self._definition.per == "run" and not disk.killed:
            gone = gone or self._died_at_the_end()  # the removal may have killed it
        if gone:
            raise TargetError(gone)

    def _died_at_the_end(self) -> str:
        """Return in words that the daemon died when its front-end hung up, "" if it did not.

        A process for one disk may end well then.
        """
        daemon = self._daemon
        if daemon is None or not self._await_end(AFTERMATH):
            return ""
        if daemon.ended_well() and self._definition.per != "run":
            return ""
        return daemon.last_line()

    def _await_end(self, seconds: float) -> bool:
        """Wait for the end of a daemon that may be about to end; return True if it has ended.

        Its connections are closed a moment before. On a busy machine it may wait for a processor
        for longer than `seconds`.
        """
        if self._daemon is None:
            return False
        begun, process = time.monotonic(), self.processes()[0]
        ended = self._daemon.wait(seconds)
        crashed = False
        while not ended:
            crashed = crashed or process.dumps_core()
            if not crashed and (self._polls or not process.may_be_ending()):
                break
            if time.monotonic() - begun > (CORE_WRITTEN if crashed else AFTERMATH_AT_MOST):
                break
            ended = self._daemon.wait(AFTERMATH)
        return ended

    def _remove(self, name: str) -> None:
        assert self._dir
        if self._served:
            # A process that waits for a slow file cannot end before it has its answer.
            self._served.forget(f"{name}.raw")
        try:
            if self._definition.per == "run":
                if self._definition.unplug and self._daemon and self._daemon.alive():
                    run(words_of(self._definition.unplug, self._values(name, 0)))
            else:
                self._end()
        finally:
            for suffix in ("raw", "sock"):
                (self._dir.path / f"{name}.{suffix}").unlink(missing_ok=True)

    def pause(self, name: str) -> None:
        """Stop the daemon's process. LacksError if the disk may be served by another process."""
        for process in self.processes():
            if not alone_serves(process.pid, self._socket_of(name)):
                raise LacksError(f"{self._program} may serve the disk with another process")
            process.pause()

    def resize(self, name: str, capacity: int) -> None:
        """Run the user's command. LacksError if there is none, TargetError if it fails.

        CommandRefusedError if it ends by itself with another exit status than 0.
        """
        if not self._definition.resize:
            raise LacksError("cannot resize: the targets file names no `resize` command")
        try:
            run(words_of(self._definition.resize, self._values(name, capacity)))
        except MachineError as error:
            raise translated(error) from None

    # --- the daemon

    def _start(self, socket: Path | None) -> None:
        """Start the daemon with `_line`, and wait until it is ready."""
        self._end()
        if socket:
            socket.unlink(missing_ok=True)
        with interrupt.shielded():
            self._daemon = ForeignDaemon(self._program, self._line)
        self._daemon.wait_until_ready(
            socket, self._definition.ready, self._definition.start_timeout
        )

    def _runs(self) -> bool:
        """Return True if the daemon is alive. One that writes its core file is not."""
        if self._daemon is None or not self._daemon.alive():
            return False
        if not self.processes()[0].dumps_core():
            return True
        self._await_end(0)
        return False

    def _start_for_the_run(self, values: Mapping[str, object]) -> None:
        if self._runs():
            return
        self._line = words_of(self._definition.start, values)
        self._plug_tried = False
        self._start(None)

    def _plug_command(self, line: list[str]) -> None:
        """Run `plug`. The first time it may fail until the daemon takes commands."""
        deadline = time.monotonic() + self._definition.start_timeout
        while True:
            try:
                run(line, self._definition.start_timeout)
            except MachineError:
                late = self._plug_tried or self._definition.ready or time.monotonic() > deadline
                if late or not (self._daemon and self._daemon.alive()):
                    raise
                time.sleep(0.05)
            else:
                self._plug_tried = True
                return

    def _start_for_a_connection(self) -> None:
        """Start the daemon again, which has ended with its last connection or does so now."""
        if self._daemon and not self._daemon.wait(END_DEADLINE):
            self._end()
        try:
            self._start(self._socket)
        except MachineError as error:
            raise NoDeviceError(str(error)) from None

    def _connect(self, spec: DiskSpec) -> Transport:
        """Connect to the daemon, which may take a moment after its socket has appeared."""
        path = str(self._socket)
        if self._definition.per == "run":
            deadline = time.monotonic() + self._definition.start_timeout
            while time.monotonic() < deadline:
                if self._socket.is_socket() and listens(self._socket, True):
                    break
                time.sleep(0.005)
        if self._definition.device == "vfio-user":
            return PciModern(VfioUser(path))
        size = spec.queue_size or QUEUE_SIZE
        refused = self._definition.refused
        if self._definition.per == "connection":
            return VhostUser(
                path, size, before_connect=self._start_for_a_connection, without=refused
            )
        return VhostUser(path, size, without=refused)

    def _try(self, driver: Driver, found: Found, probe: bytes) -> None:
        """Use the very first disk before a test does: a daemon that fails here serves no test.

        Also see whether it serves the file, and whether its process polls.
        """
        if self._tried:
            return
        length = len(probe) or min(PROBE, found.config.capacity * SECTOR)
        if length:
            driver.start()
            completion = driver.request(Request(RequestType.IN, 0, receive=length))
            driver.reset()
            if completion.status != Status.OK:
                raise DriverError(f"the first read of sector 0 ended with {completion.status}")
            self.serves_file = self._file_is_ours and completion.data == probe
            if self._file_is_ours and not self.serves_file:
                self._facts["backing"] = "the device does not show the bytes of {file}"
                self.made_to_order = False
        if self._daemon:
            self._polls = self._observed_polling(self.processes()[0])
        self._tried = True

    @staticmethod
    def _observed_polling(process: DeviceProcess) -> bool:
        """Return True if a process that has nothing to do uses a CPU without a pause."""
        for _ in range(LOOKS):
            begun, before = time.monotonic(), process.wanted()
            time.sleep(IDLE)
            gains = (now - before.get(thread, 0.0) for thread, now in process.wanted().items())
            polls = max(gains, default=0.0) > POLLING * (time.monotonic() - begun)
            if polls or time.monotonic() - begun < 2 * IDLE:
                return polls
        return False  # the machine stood still for most of the time

    def _failed(self, error: Exception) -> TargetError:
        """Return the error for a start that failed, with the daemon's last words."""
        message = error.message if isinstance(error, DriverError) else str(error)
        daemon = self._daemon or self._ended
        if daemon and LAST_OUTPUT not in message:
            message = f"{message}. {daemon.last_line()}"
        over = self._failed_starts >= STARTS
        times = f" ({STARTS} starts in a row have failed)" if over else ""
        return StartError(f"{self.name}: {message}{times}", over)

    def _words_at_the_end(self) -> str:
        """Return how the daemon runs or ended, and the end of its output; "" before the first."""
        daemon = self._daemon or self._ended
        return daemon.last_words() if daemon else ""

    def _gone(self) -> str:
        """Return in words that the daemon has died, "" if it has not."""
        daemon = self._daemon
        if daemon is None or daemon.alive():
            return ""
        if self._definition.per == "connection" and daemon.ended_well():
            return ""
        hint = ""
        if self._definition.per == "disk" and daemon.ended_well():
            hint = '. If it ends with each connection, say per = "connection"'
        return f"{daemon.last_line()}{hint}"

    def _end(self) -> None:
        """End the daemon; its last words stay known."""
        daemon, self._daemon = self._daemon, None
        if daemon:
            self._ended = daemon
            daemon.stop()

    def processes(self) -> tuple[DeviceProcess, ...]:
        """Return the daemon's process, if it was started."""
        daemon = self._daemon
        if daemon is None:
            return ()
        ends_well = self._definition.per == "connection"
        return (
            DeviceProcess(
                self._program,
                daemon.pid,
                lambda: daemon.alive() or (ends_well and daemon.ended_well()),
                daemon.last_words,
                lambda: True,
                monitored=False,
                polls=self._polls,
            ),
        )

    # --- the run

    def close(self) -> None:
        """End all that was started."""
        with interrupt.shielded():
            disks, self._disks = self._disks, []
            for disk in disks:
                with suppress(*TROUBLE):
                    disk.driver.close()
            if self._served:
                self._served.close()
                self._served = None
            self._end()
            if self._dir:
                self._dir.remove()
                self._dir = None
                cleanup.forget(self.close)

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Return what the targets file says, with the version that `version_command` prints."""
        return (self._identity,)

    @cached_property
    def _identity(self) -> DeviceIdentity:
        identity = self._definition.identity
        if identity.version or not self._definition.version_command:
            return identity
        values = {**dict.fromkeys(PLACES, ""), **self._programs()}
        try:
            text = run(words_of(self._definition.version_command, values), VERSION_DEADLINE)
        except MachineError as error:
            self._facts["version"] = str(error)
            return identity
        found = VERSION.search(text)
        self._facts["version"] = text.partition("\n")[0] if found else "not found in the output"
        numbers = tuple(map(int, found[0].split("."))) if found else ()
        return replace(identity, version=numbers)

    def facts(self) -> dict[str, str]:
        """Return the command, and what was found out at the start."""
        return {"start": self._definition.command, **self._facts}

    def evidence(self) -> dict[str, str]:
        """Return how the daemon fares or ended, and the end of its output."""
        self._await_end(CLOSING / 2)  # it may be about to end, or write a core file
        words = self._words_at_the_end()
        found = {f"{self._program}, last words": words} if words else {}
        for disk in self._disks if self._served else ():
            with suppress(MachineError):
                assert self._served
                syncs = self._served.syncs(f"{disk.name}.raw")
                found[f"the file of {disk.name} over FUSE"] = (
                    f"committed {syncs} times (fsync, O_SYNC writes)"
                )
        return found

    def logs(self) -> dict[str, str]:
        """Return the daemon's whole output and its command line."""
        if self._daemon is None:
            return {f"{self._program}.log": self._ended.last_words()} if self._ended else {}
        return {
            f"{self._program}.command": self._daemon.command,
            f"{self._program}.log": f"{self._daemon.output()}{self._daemon.fate()}\n",
        }

    def check(self) -> None:
        """Raise TargetError, with exit status or signal, if the daemon has died."""
        self._await_end(CLOSING / 2)
        if gone := self._gone():
            raise TargetError(gone)
