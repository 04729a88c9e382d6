"""The model's process: it adds, resizes and removes disks on commands of the control channel.

The channel is a socket. Each line is a JSON object `{"do": "add" | "resize" |
"remove", "name": ..., ...}`, answered by one with `error` in it or without.
`{"do": "wait", "within": SECONDS}` is answered when the process has nothing to do, with `idle`
true, or false after that time. No other command may be sent before this answer. The process ends
when the channel does.

With `--socket` it serves one disk over a raw file instead, as a back-end that somebody else runs:

    python -m harness.model --socket /tmp/disk.sock --file disk.raw --whim signals-twice

`--option NAME=VALUE` sets a field of `DiskSpec`. `--resize BYTES` tells a process that serves this
socket, over the channel at PATH.control, to change the capacity.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from harness.diskspec import SECTOR, DiskSpec, Fault
from harness.model.block import Block
from harness.model.loop import Loop
from harness.model.observer import Lines, Observer
from harness.model.pci.member import Member
from harness.model.pci.server import MemberConnection, OwnerConnection
from harness.model.storage import Storage
from harness.model.vhost import Connection as VhostUserConnection
from harness.model.zoned import ZonedBlock

CONTROL_TIMEOUT = 10.0
"""Seconds that a resize may take."""

Connection = VhostUserConnection | OwnerConnection | MemberConnection
Accept = Callable[[socket.socket, Block, Loop, Callable[[], None]], Connection]


class Connect(Protocol):
    """A way to reach a disk: it makes the connection of a peer that has just connected."""

    def __call__(
        self,
        link: socket.socket,
        block: Block,
        loop: Loop,
        closed: Callable[[], None],
        *,
        observer: Observer | None,
    ) -> Connection:
        """Return the connection. `closed` is called at its end."""


CONNECT: dict[str, Connect] = {
    "vhost-user": VhostUserConnection,
    "pci": partial(OwnerConnection, layout="modern"),
    "pci-transitional": partial(OwnerConnection, layout="transitional"),
}
"""Ways to reach a disk: a vhost-user back-end, or a PCI function over vfio-user."""


def accept(way: str, lines: Lines | None, label: str = "") -> Accept:
    """Return the function for new peers of a disk.

    `lines` records what each of them does, with the `label` of the disk.
    """

    def connect(
        link: socket.socket, block: Block, loop: Loop, closed: Callable[[], None]
    ) -> Connection:
        observer = lines.connection(label) if lines else None
        return CONNECT[way](link, block, loop, closed, observer=observer)

    return connect


class DoneError(Exception):
    """The only connection has ended."""


class Listener(ABC):
    """A UNIX socket for one front-end or client at a time."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._path = Path(path)
        self._connection: Connection | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        loop.watch(self._listener.fileno(), self._accept)

    @abstractmethod
    def _connected(self, link: socket.socket) -> Connection | None:
        """Return the connection of a new peer, None for a peer that gets none."""

    def _accept(self) -> None:
        link, _ = self._listener.accept()
        self._connection = self._connected(link)
        if self._connection:
            self._loop.forget(self._listener.fileno())
        else:
            link.close()

    def _wait(self) -> None:
        """Wait for the next peer."""
        self._connection = None
        self._loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Disconnect the peer, if there is one, and remove the socket."""
        if self._connection:
            self._connection.close()
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        with suppress(FileNotFoundError):
            self._path.unlink()


class Export(Listener):
    """A disk on a UNIX socket of its own.

    A disk with members has a socket for each of them, at PATH.member1, PATH.member2 and so on.
    """

    def __init__(
        self, loop: Loop, path: str, block: Block, connect: Accept, once: bool = False
    ) -> None:
        """`once` ends the loop with the first connection."""
        self._once = once
        self._block = block
        self._connect = connect
        super().__init__(loop, path)
        members = range(1, (block.spec.members or 0) + 1)
        self._members = [MemberExport(loop, self, path, number) for number in members]

    def _connected(self, link: socket.socket) -> Connection:
        return self._connect(link, self._block, self._loop, self._wait)

    def _wait(self) -> None:
        super()._wait()
        if self._once:
            raise DoneError

    def member(self, number: int) -> Member | None:
        """Return a member, None while it is not enabled."""
        owner = self._connection
        return owner.function.member(number) if isinstance(owner, OwnerConnection) else None

    def resize(self, capacity: int) -> None:
        """Set the capacity in sectors and announce it. Raise OSError if that is impossible."""
        self._block.resize(capacity)
        if self._connection:
            self._connection.device.config_changed()

    def close(self) -> None:
        """Disconnect the front-end, if there is one, and remove the sockets."""
        self._once = False
        super().close()
        for member in self._members:
            member.close()
        self._block.storage.close()


class MemberExport(Listener):
    """A member of a group on a UNIX socket of its own, while its owner has enabled it."""

    def __init__(self, loop: Loop, owner: Export, path: str, number: int) -> None:
        self._owner = owner
        self._number = number
        super().__init__(loop, f"{path}.member{number}")

    def _connected(self, link: socket.socket) -> Connection | None:
        member = self._owner.member(self._number)
        return MemberConnection(link, member, self._loop, self._wait) if member else None


class Control:
    """Control channel: receives commands and executes them."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        exports: dict[str, Export] | None = None,
        lines: Lines | None = None,
    ) -> None:
        """`exports` are disks that somebody else serves, None for those made here.

        `lines` records what the drivers of disks that are made here do.
        """
        self._observed = lines
        self._loop = loop
        self._link = socket.socket(fileno=fd)
        self._exports: dict[str, Export] = exports if exports is not None else {}
        self._owner = exports is None
        self._lines = b""
        loop.watch(fd, self._readable)

    def _readable(self) -> None:
        piece = self._link.recv(65536)
        if not piece:
            self._end()
            return
        *lines, self._lines = (self._lines + piece).split(b"\n")
        for line in lines:
            command = json.loads(line)
            if command["do"] == "wait":
                until = time.monotonic() + command["within"]
                self._loop.when_idle(until, lambda idle: self._answer({"idle": idle}))
            else:
                self._answer(self._obey(command))

    def _answer(self, answer: dict[str, Any]) -> None:
        self._link.sendall(json.dumps(answer).encode() + b"\n")

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        name = command["name"]
        try:
            match command["do"]:
                case "add":
                    self._exports[name] = self._add(command)
                case "resize":
                    self._exports[name].resize(command["capacity"])
                case "remove":
                    self._exports.pop(name).close()
                case other:
                    raise ValueError(f"unknown command {other!r}; known: 'add', 'resize', 'remove'")
        except (OSError, ValueError) as error:
            return {"error": str(error)}
        except KeyError:
            return {"error": f"there is no disk {name}"}
        return {}

    def _add(self, command: dict[str, Any]) -> Export:
        words = dict(command["spec"])
        for name in words.keys() & {"zones_read_only", "zones_offline"}:
            words[name] = tuple(words[name])
        words["faults"] = tuple(Fault(**fault) for fault in words.get("faults", ()))
        spec = DiskSpec(**words)
        # The file is made for a test and deleted after it: nobody reads it after a crash.
        storage = Storage(command["file"], spec.read_only, spec.faults, spec.unmap, syncs=False)
        try:
            block = make_block(spec, storage)
            connect = accept(command["way"], self._observed, command.get("label", ""))
            return Export(self._loop, command["socket"], block, connect)
        except BaseException:
            storage.close()
            raise

    def _end(self) -> None:
        if self._owner:
            for export in self._exports.values():
                export.close()
        self._loop.forget(self._link.fileno())
        if not self._owner:
            self._link.close()


def make_block(spec: DiskSpec, storage: Storage) -> Block:
    """Return the device for a disk. ValueError for a `spec` that no device can be."""
    return ZonedBlock(spec, storage) if spec.zoned else Block(spec, storage)


def main(arguments: list[str] | None = None) -> None:
    """Serve disks until the control channel ends."""
    parser = argparse.ArgumentParser(prog="harness.model", description=__doc__)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--control", type=int, help="descriptor of the control channel")
    way.add_argument("--socket", metavar="PATH", help="serve one disk on this UNIX socket")
    parser.add_argument("--file", metavar="PATH", type=Path, help="the raw file behind that disk")
    parser.add_argument(
        "--way", choices=[*CONNECT], default="vhost-user", help="what is served on --socket"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="a property of the disk on --socket; repeatable",
    )
    parser.add_argument(
        "--once", action="store_true", help="end with the first connection to --socket"
    )
    parser.add_argument(
        "--resize", type=int, metavar="BYTES", help="resize the disk that is served on --socket"
    )
    parser.add_argument(
        "--defect",
        action="append",
        default=[],
        metavar="NAME",
        help="plant this defect; repeatable",
    )
    parser.add_argument(
        "--whim", action="append", default=[], metavar="NAME", help="activate this whim; repeatable"
    )
    parser.add_argument(
        "--illegal",
        action="append",
        default=[],
        metavar="NAME",
        help="behave like this, which no device may; repeatable",
    )
    parser.add_argument(
        "--observe", metavar="PATH", type=Path, help="write what drivers do to this file"
    )
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        change_behaviour(options.defect, options.whim, options.illegal)
    except UnknownNameError as error:
        parser.error(str(error))
    if options.resize is not None and options.socket is not None:
        resize(options.socket, options.resize)
        return
    if options.socket is not None and options.file is None:
        parser.error("--socket needs --file")
    try:
        lines = Lines(options.observe) if options.observe else None
    except OSError as error:
        raise SystemExit(f"harness.model: {error}") from None
    loop = Loop()
    try:
        if options.socket is None:
            Control(loop, options.control, lines=lines)
            loop.run()
            return
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        serve(
            loop,
            options.socket,
            options.file,
            options.whim,
            dict(options.option),
            accept(options.way, lines),
            options.once,
        )
    finally:
        if lines:
            lines.close()


class UnknownNameError(Exception):
    """There is no defect, whim or illegal behaviour of this name; the message is one line."""


def change_behaviour(defects: Sequence[str], whims: Sequence[str], illegal: Sequence[str]) -> None:
    """Put defects, whims and illegal behaviour into this process. UnknownNameError for others.

    Their modules are loaded only if they are needed: without them a process starts faster.
    """
    if defects:
        from harness.model.defects import DEFECTS

        _apply("defect", DEFECTS, defects)
    if whims:
        from harness.model.whims import WHIMS

        _apply("whim", WHIMS, whims)
    if illegal:
        from harness.model.illegal import ILLEGAL

        _apply("illegal behaviour", ILLEGAL, illegal)


class Change(Protocol):
    """A change of the model's behaviour."""

    def apply(self) -> None:
        """Put it into this process."""


def _apply(kind: str, known: Mapping[str, Change], names: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownNameError(f"unknown {kind} {name!r}")
        known[name].apply()


def _option(text: str) -> tuple[str, object]:
    """Parse NAME=VALUE into a field of `DiskSpec`: numbers with commas, on or off, JSON."""
    name, _, value = text.partition("=")
    kinds = {field.name: str(field.type) for field in fields(DiskSpec)}
    if name not in kinds or name == "capacity":
        raise argparse.ArgumentTypeError(f"no property {name!r} of a disk")
    kind = kinds[name]
    try:
        if name == "faults":
            return name, tuple(Fault(**fault) for fault in json.loads(value))
        if "tuple" in kind:
            return name, tuple(int(number) for number in value.split(",") if number)
        if "bool" in kind:
            return name, {"on": True, "off": False}[value]
        return name, int(value) if "int" in kind else value
    except (ValueError, TypeError, KeyError):
        raise argparse.ArgumentTypeError(f"{value!r} is no {name} of a disk") from None


def resize(path: str, size: int) -> None:
    """Tell the process that serves `path` to make the disk `size` bytes large."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(CONTROL_TIMEOUT)
        try:
            link.connect(f"{path}.control")
            command = {"do": "resize", "name": "disk", "capacity": size // SECTOR}
            link.sendall(json.dumps(command).encode() + b"\n")
            answer = json.loads(link.makefile().readline())
        except (OSError, ValueError) as error:
            raise SystemExit(f"harness.model: {path}.control: {error}") from None
    if "error" in answer:
        raise SystemExit(f"harness.model: {answer['error']}")


def serve(
    loop: Loop,
    path: str,
    file: Path,
    whims: list[str],
    properties: dict[str, Any],
    connect: Accept,
    once: bool,
) -> None:
    """Serve a disk over a raw file on a UNIX socket, until Ctrl-C or SIGTERM."""
    try:
        spec = DiskSpec(capacity=file.stat().st_size // SECTOR, **properties)
        if whims:
            from harness.model.whims import reshaped

            spec = reshaped(spec, whims)
        storage = Storage(str(file), spec.read_only, spec.faults, spec.unmap)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{path}.control")
        listener.listen(4)
        export = Export(loop, path, make_block(spec, storage), connect, once)
    except (OSError, ValueError) as error:
        raise SystemExit(f"harness.model: {error}") from None
    exports = {"disk": export}

    def take() -> None:
        Control(loop, listener.accept()[0].detach(), exports)

    loop.watch(listener.fileno(), take)
    try:
        loop.run()
    except (KeyboardInterrupt, DoneError):
        pass
    finally:
        export.close()
        listener.close()
        Path(f"{path}.control").unlink(missing_ok=True)
