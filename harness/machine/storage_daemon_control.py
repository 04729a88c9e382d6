"""Commands to a qemu-storage-daemon over its QMP socket: add, remove or resize an export.

    python -m harness.machine.storage_daemon_control QMP add NAME FILE SOCKET --queues 2
    python -m harness.machine.storage_daemon_control QMP remove NAME
    python -m harness.machine.storage_daemon_control QMP resize NAME BYTES

It stands for the control program that other daemons come with. Each call is a connection.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.diskspec import DiskSpec, Fault
from harness.machine.blockgraph import build

TIMEOUT = 10.0
"""Seconds that an answer may take."""

PARTS = ("throttle", "quorum", "blkdebug", "raw", "file")
"""Drivers of the nodes below an export, from the top; a disk may have some of them only."""


class Qmp:
    """A QMP session. SystemExit with one line if the daemon refuses a command or is silent."""

    def __init__(self, path: str) -> None:
        self._link = socket.socket(socket.AF_UNIX)
        self._link.settimeout(TIMEOUT)
        try:
            self._link.connect(path)
        except OSError as error:
            raise SystemExit(f"{path}: {error.strerror}") from None
        self._events: set[str] = set()
        self._lines = self._answers()
        next(self._lines)
        self.run("qmp_capabilities")

    def _answers(self) -> Iterator[dict[str, Any]]:
        with self._link.makefile() as lines:
            try:
                for line in lines:
                    yield json.loads(line)
            except OSError as error:
                raise SystemExit(f"the daemon did not answer: {error}") from None
        raise SystemExit("the daemon closed the connection")

    def run(self, command: str, **arguments: Any) -> None:
        """Execute a command."""
        text = json.dumps({"execute": command, "arguments": arguments})
        self._link.sendall(text.encode() + b"\n")
        for answer in self._lines:
            if "error" in answer:
                raise SystemExit(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return
            self._events.add(answer.get("event", ""))

    def wait(self, event: str) -> None:
        """Wait for an event, which may have come before the answer to a command."""
        while event not in self._events:
            self._events.add(next(self._lines).get("event", ""))


def add(qmp: Qmp, options: argparse.Namespace) -> None:
    """Serve a file on a socket."""
    spec = DiskSpec(
        read_only=options.read_only,
        logical_block_size=options.logical_block_size,
        queues=options.queues,
        unmap=options.unmap == "on",
        iops=options.iops,
        faults=tuple(Fault(**fault) for fault in json.loads(options.faults)),
    )
    graph = build(options.name, spec, {}, options.file)
    for part in graph.objects:
        qmp.run("object-add", **part)
    for node in graph.nodes:
        qmp.run("blockdev-add", **node)
    limits = {"num-queues": spec.queues, "logical-block-size": spec.logical_block_size}
    qmp.run(
        "block-export-add",
        type="vhost-user-blk",
        id=options.name,
        **{"node-name": options.name},
        addr={"type": "unix", "path": options.socket},
        writable=not spec.read_only,
        **{key: value for key, value in limits.items() if value is not None},
    )


def remove(qmp: Qmp, options: argparse.Namespace) -> None:
    """End an export, and remove its nodes."""
    qmp.run("block-export-del", id=options.name, mode="hard")
    qmp.wait("BLOCK_EXPORT_DELETED")
    for node in (options.name, *(f"{options.name}-{part}" for part in PARTS)):
        with suppress(SystemExit):  # not every disk has each of them
            qmp.run("blockdev-del", **{"node-name": node})
    with suppress(SystemExit):
        qmp.run("object-del", id=f"{options.name}-limit")


def main(arguments: list[str]) -> None:
    """Execute one command."""
    parser = argparse.ArgumentParser(prog="storage_daemon_control")
    parser.add_argument("qmp", metavar="QMP")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("add")
    command.add_argument("name")
    command.add_argument("file", type=Path)
    command.add_argument("socket")
    command.add_argument("--read-only", action="store_true")
    command.add_argument("--queues", type=int)
    command.add_argument("--logical-block-size", type=int)
    command.add_argument("--unmap", choices=["on", "off"], default="on")
    command.add_argument("--iops", type=int)
    command.add_argument("--faults", default="[]", help="JSON")
    command = commands.add_parser("remove")
    command.add_argument("name")
    command = commands.add_parser("resize")
    command.add_argument("name")
    command.add_argument("size", type=int)
    options = parser.parse_args(arguments)
    qmp = Qmp(options.qmp)
    if options.command == "resize":
        qmp.run("block_resize", **{"node-name": options.name, "size": options.size})
    else:
        {"add": add, "remove": remove}[options.command](qmp, options)


if __name__ == "__main__":
    main(sys.argv[1:])
