"""Drivers that a user defines in a TOML file, for `--drivers FILE`.

    [driver.my-kernel]
    device = "vhost-user"             # or "vfio-user", or "vfio-user-transitional"
    start = "qemu-system-x86_64 -m 256 {memory} -kernel my-kernel {device}"
    done = "all tests passed"         # a line of its output when its work is done
    failed = "panic"                  # a regular expression in its output: the driver failed
    implementation = "my-kernel"      # name under which its deviations are filed
    version = "1.4.2"

    [driver.my-library]
    device = "vhost-user"
    start = "my-server {socket}"      # without `done`, its end with status 0 is the end of the work
    work = "my-client {work}"         # a command for each piece of work: use, discard, resize ...
    works = ["use", "discard"]        # the pieces of work that it can do
    end = "my-client stop"
    packed = false                    # the driver cannot have a packed virtqueue

{device} are QEMU's options for the disk, {memory} those for memory that it shares, {socket} is
the socket of the device, {capacity} the size in sectors. Only `device` and `start` are required.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from harness.drivers.base import (
    DEADLINE,
    USE,
    Launcher,
    Place,
    Scenario,
    StuckError,
    wait_for,
)
from harness.inputs import (
    Check,
    InputError,
    WrongValueError,
    build,
    line_in_toml,
    matching,
    read_text,
    toml_of,
    within,
)
from harness.machine.errors import MachineError
from harness.machine.foreign import ForeignDaemon, run
from harness.targets.userfile import NAME, PLACEHOLDER, Text, Version

PLACES = frozenset({"device", "memory", "socket", "capacity"})
WORK_PLACES = PLACES | {"work"}

WAYS = {
    "vhost-user": "vhost-user",
    "vfio-user": "pci",
    "vfio-user-transitional": "pci-transitional",
}
"""Value of `device` -> how the model serves the disk."""


class DriverFileError(Exception):
    """A file of drivers cannot be used; one line with the file and the line in it."""


def _is_command(text: str, places: Collection[str]) -> bool:
    try:
        shlex.split(text)
    except ValueError:
        return False
    known = {"{{", "}}", *(f"{{{name}}}" for name in places)}
    return "\0" not in text and known.issuperset(PLACEHOLDER.findall(text))


def _command(places: Collection[str]) -> Check:
    listed = ", ".join(f"{{{name}}}" for name in sorted(places))
    return Check(
        f"a command with balanced quotes, and no placeholders but {listed}",
        lambda text: _is_command(text, places),
    )


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


Command = Annotated[str, _command(PLACES)]
WorkCommand = Annotated[str, _command(WORK_PLACES)]
Expression = Annotated[str, Check("a regular expression", _is_expression)]
Work = Annotated[str, matching(r"[a-z-]{1,32}", "lowercase letters and hyphens")]


@dataclass(frozen=True)
class UserDriver:
    """One table of the file, as it is written there."""

    device: Literal["vhost-user", "vfio-user", "vfio-user-transitional"]
    start: Command
    work: WorkCommand = ""
    end: Command = ""
    done: Text = ""
    failed: Expression = ""
    timeout: Annotated[float, within(0.1, 3600)] = DEADLINE
    works: tuple[Work, ...] = (USE,)
    packed: bool = True
    implementation: Text = "unknown"
    version: Version = ""


def load(path: Path) -> dict[str, Callable[[], Launcher]]:
    """Return the drivers of a file by name. DriverFileError, with file and line, for a bad one."""
    try:
        text = read_text(path)
        document = toml_of(path, text)
    except InputError as error:
        raise DriverFileError(str(error)) from None
    try:
        return {
            name: partial(OwnDriver, name, table, path.absolute().parent)
            for name, table in _tables(document).items()
        }
    except WrongValueError as error:
        raise DriverFileError(f"{path}:{line_in_toml(text, error.at)}: {error}") from None


def _tables(document: dict[str, Any]) -> dict[str, UserDriver]:
    tables = document.pop("driver", {})
    if document or not isinstance(tables, dict) or not tables:
        key = next(iter(document), "driver")
        raise WrongValueError((key,), "only tables [driver.NAME] are allowed here")
    for name in tables:
        if not NAME.holds(name):
            words = "up to 64 letters, digits, dots, - and _"
            raise WrongValueError(("driver", name), f"not a valid name; use {words}")
    return {name: build(UserDriver, table, ("driver", name)) for name, table in tables.items()}


def device_words(device: str, socket: Path, queues: int = 1) -> list[str]:
    """Return QEMU's options for the disk on a socket; `device` is a key of WAYS."""
    if device == "vhost-user":
        return [
            *("-chardev", f"socket,id=vblk,path={str(socket).replace(',', ',,')}"),
            *("-device", f"vhost-user-blk-pci,chardev=vblk,num-queues={queues}"),
        ]
    options = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(socket)}}
    return ["-device", json.dumps(options)]


def memory_words(size: int) -> list[str]:
    """Return QEMU's options for memory of `size` MiB that it shares with the device."""
    return [
        *("-object", f"memory-backend-memfd,id=vblk-ram,size={size}M,share=on"),
        *("-machine", "memory-backend=vblk-ram"),
    ]


MEMORY = re.compile(r"-m\s+(?:size=)?(\d+)([GM]?)")
"""Memory in a command of QEMU; the object behind it has to have the same size."""


def words_of(command: str, values: Mapping[str, list[str]]) -> list[str]:
    """Split a command into words. A placeholder that is a whole word can become several words."""
    words: list[str] = []
    for word in shlex.split(command):
        if word[1:-1] in values and word == f"{{{word[1:-1]}}}":
            words += values[word[1:-1]]
        else:
            words.append(PLACEHOLDER.sub(lambda found: _value(found[0], values), word))
    return words


def _value(found: str, values: Mapping[str, list[str]]) -> str:
    return found[0] if found in ("{{", "}}") else shlex.join(values[found[1:-1]])


class OwnDriver(Launcher):
    """A driver of the user's file."""

    def __init__(self, name: str, table: UserDriver, directory: Path) -> None:
        """Commands run in the present directory; `directory` is that of the file."""
        self.name = name
        self.description = f"a driver of yours in {directory}, {table.device}"
        self.implementation = table.implementation
        self.way = WAYS[table.device]
        self.works = frozenset(table.works)
        self.traits = frozenset({"modern", "vhost-user" if self.way == "vhost-user" else "pci"})
        self.disk = {} if table.packed else {"packed": False}
        self._table = table

    def prepare(self) -> None:
        """Nothing is needed that the user does not bring."""

    def version(self) -> str:
        """Return the version that the file says."""
        return self._table.version.removeprefix("v")

    def drive(self, scenario: Scenario, place: Place) -> str:
        """Start the driver, run its work, and end it. MachineError if there is no such program."""
        table = self._table
        size = MEMORY.search(table.start)
        mebibytes = int(size[1]) << (10 if size[2] == "G" else 0) if size else 128
        values = {
            "device": device_words(table.device, place.socket, place.spec.queues or 1),
            "memory": memory_words(mebibytes),
            "socket": [str(place.socket)],
            "capacity": [str(place.spec.capacity)],
        }
        with ExitStack() as stack:
            line = words_of(table.start, values)
            if not line or shutil.which(line[0]) is None:
                raise MachineError(f"{self.name}: `start` names no program that is here: {line}")
            process = ForeignDaemon(self.name, line)
            stack.callback(process.stop)
            try:
                if table.work:
                    for work in self.work_of(scenario):
                        run(words_of(table.work, {**values, "work": [work]}), table.timeout)
                else:
                    self._await(process)
                if table.end:
                    run(words_of(table.end, values), table.timeout)
            except MachineError as error:
                raise StuckError(str(error), process.output()) from None
            text = process.output()
            if table.failed and (found := re.search(table.failed, text)):
                raise StuckError(f"its output says {found[0]!r}", text)
            return text

    def _await(self, process: ForeignDaemon) -> None:
        """Wait for the line that ends its work, or for its end."""
        done = self._table.done

        def over() -> bool:
            return bool(done and done in process.output()) or not process.alive()

        awaited = f"the line {done!r}" if done else "its end"
        wait_for(over, awaited, process.output, self._table.timeout)
        if done and done not in process.output():
            raise StuckError(f"{process.fate()} before its output had {awaited}", process.output())
        if not done and not process.ended_well():
            raise StuckError(process.fate(), process.output())
