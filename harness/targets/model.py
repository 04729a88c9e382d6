"""The target `model`: our own device in a separate process, driven from this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.diskspec import DiskSpec
from harness.driver.block import BlockDriver
from harness.driver.errors import DriverError
from harness.driver.transport.vhost_user import QUEUE_SIZE, VhostUser
from harness.machine import cleanup
from harness.machine.drive import MAX_CAPACITY
from harness.machine.drive import Backing as FileBacking
from harness.machine.errors import MachineError
from harness.machine.monitor import LoopThread
from harness.machine.process import Process
from harness.machine.rundir import RunDir
from harness.machine.storage_daemon import make_raw
from harness.targets.base import Backing, DeviceIdentity, Plugged, Target, TargetError, translated

ANSWER_DEADLINE = 10.0
"""Longest time for an answer of the model, in seconds, counted from its start on."""

END_DEADLINE = 3.0
VERSION = (1, 0)


class _Child(Process):
    @staticmethod
    def channel_options(fd: int) -> list[str]:
        return ["--control", str(fd)]

    def fate(self) -> str:
        return super().fate().replace("QEMU", "the model", 1)


class ModelProcess:
    """The model's process, for the lifetime of all its disks.

    Every method raises MachineError when the model refuses, is gone, or does not answer.
    """

    def __init__(self, defects: Sequence[str] = ()) -> None:
        """Start the process with these planted defects, given by name."""
        self._dir = RunDir()
        cleanup.at_exit(self.stop)
        self._stderr = self._dir.path / "stderr.log"
        self._thread: LoopThread | None = None
        self._child: _Child | None = None
        self._answers = b""
        self._made = 0
        self._last_words = "the model was not started"
        self._stopped = False
        try:
            self._thread = LoopThread("model")
            line = [sys.executable, "-m", "harness.model"]
            line += [word for name in defects for word in ("--defect", name)]
            self._child = _Child(line, self._stderr, self._thread)
            self._child.qmp_socket.settimeout(ANSWER_DEADLINE)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int | None:
        """Return the process id, or None if the process was not started."""
        return self._child.pid if self._child else None

    def stop(self) -> None:
        """End the process: close its channel, and send a signal if that does not help.

        A second call does nothing.
        """
        if self._stopped:
            return
        try:
            if self._child:
                self._child.qmp_socket.close()
                self._child.wait(END_DEADLINE)
                self._child.end()
        finally:
            self._last_words = self.last_words()
            self._stopped = True
            self._dir.remove()
            if self._thread:
                self._thread.close()
            cleanup.forget(self.stop)

    def alive(self) -> bool:
        """Return True if the process runs."""
        return self._child is not None and not self._stopped and self._child.alive()

    def check(self) -> None:
        """Raise MachineError if the process does not run."""
        if not self.alive():
            raise MachineError(f"the model is gone: {self.last_words().splitlines()[-1]}")

    def last_words(self) -> str:
        """Return the process's state and the end of its stderr. Also works after `stop`."""
        if self._stopped or self._child is None:
            return self._last_words
        lines = self._stderr.read_text(errors="replace").splitlines()[-20:]
        return "\n".join([self._child.fate(), *lines])

    def add(self, spec: DiskSpec) -> tuple[str, Path, Path | None]:
        """Add a disk. Return its name, its socket, and the raw file made for it, if any."""
        name = f"disk{self._made}"
        self._made += 1
        link = self._dir.path / name
        file = None if spec.backing == "null" else self._dir.path / f"{name}.raw"
        if file:
            make_raw(file, spec.capacity)
        try:
            where = {"socket": str(link), "file": str(file) if file else None}
            self.tell("add", name, spec=asdict(spec), **where)
        except MachineError:
            if file:
                file.unlink(missing_ok=True)
            raise
        return name, link, file

    def remove(self, name: str) -> None:
        """Disconnect the front-end, if any, and remove the disk with its file and socket."""
        self.tell("remove", name)
        (self._dir.path / f"{name}.raw").unlink(missing_ok=True)

    def resize(self, name: str, capacity: int) -> None:
        """Change the capacity of a disk, in sectors, while it runs."""
        if not 0 <= capacity <= MAX_CAPACITY:
            raise MachineError(
                f"{capacity} sectors is not a possible capacity; the range is 0 to {MAX_CAPACITY}"
            )
        self.tell("resize", name, capacity=capacity)

    def tell(self, do: str, name: str, **more: Any) -> None:
        """Send one command, and wait until the model has done it."""
        if self._child is None or self._stopped:
            raise MachineError("the model is not running")
        line = json.dumps({"do": do, "name": name, **more}).encode() + b"\n"
        channel = self._child.qmp_socket
        try:
            channel.sendall(line)
            while b"\n" not in self._answers:
                piece = channel.recv(65536)
                if not piece:
                    raise ConnectionError
                self._answers += piece
        except TimeoutError:
            self._child.end()
            raise MachineError(f"the model did not answer within {ANSWER_DEADLINE:g} s") from None
        except OSError:
            self._child.wait(END_DEADLINE)
            raise MachineError(f"the model is gone: {self.last_words()}") from None
        answer, _, self._answers = self._answers.partition(b"\n")
        if error := json.loads(answer).get("error"):
            raise MachineError(f"{name}: {error}")


class ModelDisk(Plugged):
    """A disk of the model, with a driver on it."""

    def __init__(self, process: ModelProcess, spec: DiskSpec) -> None:
        self._process = process
        self.spec = spec
        self._name, link, self._file = process.add(spec)
        try:
            self.driver = BlockDriver(VhostUser(str(link), spec.queue_size or QUEUE_SIZE))
        except BaseException:
            with suppress(MachineError):
                process.remove(self._name)
            raise

    @property
    def backing(self) -> Backing:
        """Return the raw file behind the disk. Raise TargetError for a null disk."""
        if self._file is None:
            raise TargetError(f"{self._name} has no backing file")
        return FileBacking(self._file)

    def resize(self, capacity: int) -> None:
        """Change the capacity while the disk runs; the model notifies the driver."""
        try:
            self._process.resize(self._name, capacity)
        except MachineError as error:
            raise translated(error) from None

    def unplug(self) -> None:
        """Disconnect, and remove the disk."""
        self.driver.close()
        try:
            self._process.remove(self._name)
        except MachineError as error:
            raise translated(error) from None


class Model(Target):
    """The model device.

    One process serves the whole run; if it dies, the next disk starts a new one.
    """

    name = "model"
    description = "our own device in Python, over vhost-user, driven from the host"
    traits = frozenset({"vhost-user", "modern"})

    def __init__(self, defects: Sequence[str] = ()) -> None:
        """Store the names of the defects to plant in the device (`harness.model.defects`)."""
        self._defects = defects
        self._process: ModelProcess | None = None

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """Return a disk with a driver on it."""
        try:
            if self._process and not self._process.alive():
                self.close()
            if self._process is None:
                self._process = ModelProcess(self._defects)
            return ModelDisk(self._process, spec)
        except (MachineError, DriverError) as error:
            raise translated(error) from None

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.stop()
            self._process = None

    def identities(self) -> tuple[DeviceIdentity, ...]:
        """Return the model's identity."""
        return (DeviceIdentity("model", VERSION),)

    def facts(self) -> dict[str, str]:
        """Return the model's version."""
        return {"model": ".".join(map(str, VERSION))}

    def evidence(self) -> dict[str, str]:
        """Return the process's state and the end of its stderr."""
        return {"model, last words": self._process.last_words()} if self._process else {}

    def check(self) -> None:
        """Raise TargetError if the process is gone."""
        if self._process:
            try:
                self._process.check()
            except MachineError as error:
                raise translated(error) from None
