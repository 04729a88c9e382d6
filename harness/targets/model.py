"""The target `model`: our own device in a separate process, driven from this process."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.diskspec import PLAIN, DiskSpec, unsupported
from harness.driver.block import BlockDriver
from harness.driver.bus.vfio_user import VfioUser
from harness.driver.errors import DriverError
from harness.driver.interface import Driver
from harness.driver.transport.base import Transport
from harness.driver.transport.pci import PciModern
from harness.driver.transport.pci_legacy import PciLegacy
from harness.driver.transport.vhost_user import QUEUE_SIZE, VhostUser
from harness.machine.drive import MAX_CAPACITY, make_raw
from harness.machine.drive import Backing as FileBacking
from harness.machine.errors import MachineError
from harness.machine.process import Process
from harness.machine.supervisor import QUIT_DEADLINE, Supervised
from harness.robustness.device_process import stop
from harness.targets.base import (
    Backing,
    DeviceIdentity,
    LacksError,
    Plugged,
    Target,
    TargetError,
    translated,
)

ANSWER_DEADLINE = 30.0
"""Longest time for an answer of the model, in seconds, counted from its start on."""

MAX_ANSWER = 1 << 20
"""Bytes of an answer; those of the model have some hundred."""

VERSION = (1, 0)

CURRENT_TEST = "PYTEST_CURRENT_TEST"
"""Environment variable of pytest with the test that runs; it labels the disks of a record."""

HONOURED = frozenset(
    {
        *("capacity", "backing", "read_only", "logical_block_size", "physical_block_size"),
        *("geometry", "min_io_size", "opt_io_size", "serial", "queues", "queue_size"),
        *("seg_max_adjust", "write_cache", "config_wce", "discard", "write_zeroes"),
        *("max_discard_sectors", "max_write_zeroes_sectors", "event_idx", "indirect_desc"),
        *("packed", "in_order", "unmap", "iops", "faults", "zoned", "zone_sectors"),
        *("zone_capacity", "conventional_zones", "max_open_zones", "max_active_zones"),
        *("max_append_sectors", "write_granularity", "zones_read_only", "zones_offline"),
        *("secure_erase", "lifetime", "fua"),
    }
)
"""Fields of `DiskSpec` that the model supports."""

HONOURED_BY_OWNER = HONOURED | {"members"}
"""Fields that a modern PCI function supports, whose SR-IOV capability a driver can reach."""


def check_fields(spec: DiskSpec, honoured: Set[str] = HONOURED) -> None:
    """Raise LacksError for a disk that the model has no option for."""
    if refused := unsupported(spec, honoured):
        raise LacksError(f"the model has no option for a disk's {', '.join(refused)}")


class _Child(Process):
    @staticmethod
    def channel_options(fd: int) -> list[str]:
        return ["--control", str(fd)]


class ModelProcess(Supervised):
    """The model's process, for the lifetime of all its disks.

    Every method raises MachineError when the model refuses, is gone, or does not answer.
    """

    process_name = subject = "the model"
    process_type = _Child

    def __init__(
        self,
        defects: Sequence[str] = (),
        whims: Sequence[str] = (),
        observe: Path | None = None,
        illegal: Sequence[str] = (),
    ) -> None:
        """Start it. `defects` are planted in it, and it has these `whims`, both by name.

        `illegal` are names of behaviour in `harness.model.illegal`.
        The model writes what drivers do to the file `observe`, for `vblk witness judge`.
        """
        super().__init__()
        self._observed = observe is not None
        self._answers = b""
        self._made = 0
        self._disks: dict[str, dict[str, Any]] = {}
        try:
            line = [sys.executable, "-m", "harness.model"]
            line += [word for name in defects for word in ("--defect", name)]
            line += [word for name in whims for word in ("--whim", name)]
            line += [word for name in illegal for word in ("--illegal", name)]
            line += ["--observe", str(observe)] if observe else []
            self._line = line
            self._launch(line)
        except BaseException:
            self.stop()
            raise

    def restart(self) -> None:
        """Kill the process with SIGKILL, and start another with the same disks."""
        if self._process is None or self._loop is None or self._stopped:
            raise self._ended("the model is gone")
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(QUIT_DEADLINE)
        self._process.end()
        self._loop.close()
        self._answers = b""
        self._launch(self._line)
        for name, words in self._disks.items():
            members = range(1, (words["spec"].get("members") or 0) + 1)
            for path in [words["socket"], *(f"{words['socket']}.member{n}" for n in members)]:
                Path(path).unlink(missing_ok=True)
            self.tell("add", name, **words)

    def pause(self) -> None:
        """Stop the process until `resume`. None of its threads runs on return."""
        try:
            stop(self._pid)
        except ProcessLookupError:
            raise self._ended("the model is gone") from None
        except TimeoutError as error:
            raise MachineError(str(error)) from None

    def resume(self) -> None:
        """Let the process go on after `pause`."""
        try:
            os.kill(self._pid, signal.SIGCONT)
        except ProcessLookupError:
            raise self._ended("the model is gone") from None

    @property
    def _pid(self) -> int:
        if self._process is None or self._stopped:
            raise self._ended("the model is gone")
        return self._process.pid

    def _request_end(self, process: Process) -> None:
        process.channel.close()
        process.wait(QUIT_DEADLINE)

    def add(self, spec: DiskSpec, way: str = "vhost-user") -> tuple[str, Path, Path | None]:
        """Add a disk. Return its name, its socket, and the raw file made for it, if any."""
        name = f"disk{self._made}"
        self._made += 1
        link = self._dir.path / name
        file = None if spec.backing == "null" else self._dir.path / f"{name}.raw"
        if file:
            make_raw(file, spec.capacity)
        try:
            where = {"socket": str(link), "file": str(file) if file else None}
            if self._observed:
                where["label"] = os.environ.get(CURRENT_TEST, "")
            chosen = {field: value for field, value in vars(spec).items() if value != PLAIN[field]}
            words = {"spec": chosen, "way": way, **where}
            self.tell("add", name, **words)
            self._disks[name] = words
        except MachineError:
            if file:
                file.unlink(missing_ok=True)
            raise
        return name, link, file

    def remove(self, name: str) -> None:
        """Disconnect the front-end, if any, and remove the disk with its file and socket."""
        self.tell("remove", name)
        self._disks.pop(name, None)
        (self._dir.path / f"{name}.raw").unlink(missing_ok=True)

    def resize(self, name: str, capacity: int) -> None:
        """Change the capacity of a disk, in sectors, while it runs."""
        if not 0 <= capacity <= MAX_CAPACITY:
            raise MachineError(
                f"{capacity} sectors is not a possible capacity; the range is 0 to {MAX_CAPACITY}"
            )
        self.tell("resize", name, capacity=capacity)

    def idle(self, within: float) -> bool:
        """Wait until the process has nothing to do. Return False after `within` seconds.

        `within` is at most half of ANSWER_DEADLINE, so that an answer comes before that.
        """
        return bool(self.tell("wait", "", within=min(within, ANSWER_DEADLINE / 2))["idle"])

    def tell(self, do: str, name: str, **more: Any) -> dict[str, Any]:
        """Send one command, wait until the model has done it, and return the answer."""
        if self._process is None or self._stopped:
            raise self._ended("the model is gone")
        line = json.dumps({"do": do, "name": name, **more}, default=asdict).encode() + b"\n"
        channel = self._process.channel
        try:
            channel.settimeout(ANSWER_DEADLINE)
            channel.sendall(line)
            answer = self._answer(channel)
        except TimeoutError:
            self._process.end()
            raise MachineError(f"the model did not answer within {ANSWER_DEADLINE:g} s") from None
        except OSError:
            raise self._ended("the model is gone") from None
        except (ValueError, TypeError, RecursionError) as wrong:
            self._process.end()
            raise MachineError(f"the model's answer is not one JSON object: {wrong}") from None
        except BaseException:  # Ctrl-C too: its answer would be taken for the next command's
            self._process.end()
            raise
        if error := answer.get("error"):
            raise MachineError(f"{name}: {error}")
        return answer

    def _answer(self, channel: socket.socket) -> dict[str, Any]:
        """Return the next answer. TimeoutError for an answer that is too late or too long."""
        deadline = time.monotonic() + ANSWER_DEADLINE
        while b"\n" not in self._answers:
            left = deadline - time.monotonic()
            if left <= 0 or len(self._answers) > MAX_ANSWER:
                raise TimeoutError
            channel.settimeout(left)
            piece = channel.recv(65536)
            if not piece:
                raise ConnectionError
            self._answers += piece
        line, _, self._answers = self._answers.partition(b"\n")
        return dict(json.loads(line))


@dataclass(frozen=True)
class Variant:
    """A way to the model: `way` as the model's process names it, and the driver's transport.

    `honoured` are the fields of `DiskSpec` that it supports.
    """

    description: str
    traits: frozenset[str]
    way: str
    attach: Callable[[Path, DiskSpec], Transport]
    honoured: frozenset[str] = HONOURED


VARIANTS: dict[str, Variant] = {
    "model": Variant(
        "our own device in Python, over vhost-user, driven from the host",
        frozenset({"vhost-user", "modern"}),
        "vhost-user",
        lambda path, spec: VhostUser(str(path), spec.queue_size or QUEUE_SIZE),
    ),
    "model-pci": Variant(
        "our own device in Python, a PCI function over vfio-user, driven from the host",
        frozenset({"pci", "modern"}),
        "pci",
        lambda path, spec: PciModern(VfioUser(str(path))),
        HONOURED_BY_OWNER | {"notify_port"},
    ),
    "model-pci-transitional": Variant(
        "our own device in Python, a transitional PCI function through its modern interface",
        frozenset({"pci", "modern"}),
        "pci-transitional",
        lambda path, spec: PciModern(VfioUser(str(path))),
        HONOURED | {"notify_port"},
    ),
    "model-pci-legacy": Variant(
        "our own device in Python, a transitional PCI function through its legacy interface",
        frozenset({"pci", "legacy"}),
        "pci-transitional",
        lambda path, spec: PciLegacy(VfioUser(str(path))),
        HONOURED | {"scsi"},
    ),
}


class ModelSide:
    """The host's side of a disk whose blocks are the model's."""

    _process: ModelProcess
    _name: str
    _file: Path | None

    @property
    def backing(self) -> Backing:
        """Return the raw file behind the disk. Raise TargetError for a null disk."""
        if self._file is None:
            raise TargetError(f"{self._name} has no backing file")
        return FileBacking(self._file)

    def resize(self, capacity: int) -> None:
        """Change the capacity (sectors of 512 bytes) live; the model notifies the driver."""
        try:
            self._process.resize(self._name, capacity)
        except MachineError as error:
            raise translated(error) from None

    def _remove(self) -> None:
        """Remove the disk from the model, which hangs up on whoever is connected."""
        try:
            self._process.remove(self._name)
        except MachineError as error:
            raise translated(error) from None


class ModelDisk(ModelSide, Plugged):
    """A disk of the model, with a driver on it."""

    def __init__(self, process: ModelProcess, spec: DiskSpec, variant: Variant) -> None:
        self._process = process
        self.spec = spec
        self._name, self._link, self._file = process.add(spec, variant.way)
        self._members: list[BlockDriver] = []
        try:
            self.driver: BlockDriver = BlockDriver(variant.attach(self._link, spec))
        except BaseException:
            with suppress(MachineError):
                process.remove(self._name)
            raise

    def idle(self, within: float) -> bool:
        """Return True when the model's process has nothing to do, False after `within` seconds."""
        try:
            return self._process.idle(within)
        except MachineError as error:
            raise translated(error) from None

    def restart(self) -> None:
        """Kill the process, and start another that serves the same disks."""
        self._do(self._process.restart)

    def pause(self) -> None:
        """Stop the model's process for a while."""
        self._do(self._process.pause)

    def resume(self) -> None:
        """Let the model's process go on."""
        self._do(self._process.resume)

    @staticmethod
    def _do(act: Callable[[], None]) -> None:
        try:
            act()
        except MachineError as error:
            raise translated(error) from None

    def bus_reset(self) -> None:
        """Reset the function. LacksError over vhost-user, which has no bus."""
        bus = getattr(self.driver.transport, "bus", None)
        if not isinstance(bus, VfioUser):
            raise LacksError("vhost-user has no bus")
        bus.reset()

    def member(self, number: int) -> Driver:
        """Return a driver for a member, over a socket of its own."""
        if not self.spec.members:
            return super().member(number)
        try:
            driver = BlockDriver(PciModern(VfioUser(f"{self._link}.member{number}")))
        except DriverError as error:
            raise translated(error) from None
        self._members.append(driver)
        return driver

    def unplug(self) -> None:
        """Disconnect, and remove the disk."""
        for driver in [*self._members, self.driver]:
            driver.close()
        self._remove()


class Model(Target):
    """The model device.

    One process serves the whole run; if it dies, the next disk starts a new one.
    """

    def __init__(
        self,
        defects: Sequence[str] = (),
        name: str = "model",
        whims: Sequence[str] = (),
        observe: Path | None = None,
        illegal: Sequence[str] = (),
    ) -> None:
        """Make a target whose device has these defects and whims; `name` is one of `VARIANTS`.

        They are named as in `harness.model.defects`, `harness.model.whims` and
        `harness.model.illegal`.
        The model writes what drivers do to the file `observe`, and each process after the first one
        to a file of its own, with a number.
        """
        self.name = name
        self._variant = VARIANTS[name]
        self.description = self._variant.description
        self.traits = self._variant.traits
        self._defects = defects
        self._whims = whims
        self._illegal = illegal
        self._observe = observe
        self._processes = 0
        self._process: ModelProcess | None = None

    def _record(self) -> Path | None:
        """Return the file for the events of a new process, if its drivers are observed."""
        self._processes += 1
        if self._observe is None or self._processes == 1:
            return self._observe
        return self._observe.with_name(f"{self._observe.name}-{self._processes}")

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        """Plug in a disk with a driver on it. LacksError for a zoned disk of a legacy interface."""
        check_fields(spec, self._variant.honoured)
        if spec.zoned and "legacy" in self.traits:
            raise LacksError("a legacy interface has no zoned disks")
        try:
            if self._process and not self._process.alive():
                self.close()
            if self._process is None:
                self._process = ModelProcess(
                    self._defects, self._whims, self._record(), self._illegal
                )
            return ModelDisk(self._process, self._reshaped(spec), self._variant)
        except (MachineError, DriverError) as error:
            raise translated(error) from None

    def _reshaped(self, spec: DiskSpec) -> DiskSpec:
        """Return the disk as the whims make it."""
        if not self._whims:
            return spec
        from harness.model.whims import reshaped  # a run without them starts sooner

        return reshaped(spec, self._whims)

    @property
    def pid(self) -> int | None:
        """Process id of the model, None if there is none at present."""
        return self._process.pid if self._process else None

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
