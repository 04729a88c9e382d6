"""The commands of qtest that repeat a trace on QEMU, for every form of a reproducer of QEMU."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from harness.reproducers.steps import (
    Access,
    Check,
    Command,
    Fill,
    NotPossibleError,
    Pause,
    Plan,
    Step,
    Until,
    Write,
)

RUN = 32
"""Equal bytes in a row from which on they are a `memset`."""

LINE = 1024
"""Bytes of a `write` at most."""

LETTER = {1: "b", 2: "w", 4: "l"}

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC

BAR_0, COMMAND, ENABLED = 0x10, 0x04, 0x07


@dataclass(frozen=True)
class Sent:
    """A command of qtest. `words` is what it does, "" for memory."""

    command: str
    words: str = ""


@dataclass(frozen=True)
class Compared:
    """A command that is repeated for some seconds, until its answer is the one of the test.

    `words` is what is compared. Without it another answer is no difference to the test.
    """

    command: str
    answer: str
    words: str


@dataclass(frozen=True)
class Slept:
    """A pause in seconds."""

    seconds: float


@dataclass(frozen=True)
class Told:
    """A QMP command, as JSON."""

    text: str


Line = Sent | Compared | Slept | Told


def nodes(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the options of a disk's block nodes.

    The harness has flushes of a file that it deletes ignored. A reproducer leaves QEMU's cache as
    it is: whoever reads it would ask for that first.
    """
    for options in part["nodes"]:
        yield {key: value for key, value in options.items() if key != "cache"}


class Commands:
    """The command line of QEMU, and what is sent to it. NotPossibleError for other devices."""

    def __init__(self, plan: Plan) -> None:
        if "machine" not in plan.parts or "disk" not in plan.parts:
            raise NotPossibleError(
                f"{plan.about.target} is no QEMU that runs without a guest; try --as python"
            )
        if plan.parts["machine"]["board"] == "q35":
            raise NotPossibleError("a disk behind a PCI Express port cannot be exported")
        self._plan = plan

    def machine(self) -> str:
        """Return the options for the machine."""
        options = self._plan.parts["machine"]
        words = f"-machine {options['board']} -m {options['memory']}"
        if options["board"] == "microvm":
            legacy = "off" if options["interface"] == "modern" else "on"
            words = words.replace("microvm", "microvm,ioapic2=off")
            words += f" -global virtio-mmio.force-legacy={legacy}"
        return words

    def size(self) -> int:
        """Return the bytes of the file of the disk, 0 if the disk has none."""
        part = self._plan.parts["disk"]
        return part["size"] if any("filename" in node for node in part["nodes"]) else 0

    def devices(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the options for the disk, each with its object."""
        part = self._plan.parts["disk"]
        yield from (("-object", options) for options in part["objects"])
        yield from (("-blockdev", options) for options in nodes(part))
        yield "-device", part["device"]

    def lines(self) -> Iterator[Line]:
        """Yield what is sent to QEMU, in order."""
        yield from self._set_up()
        for step in self._plan.steps:
            yield from self._step(step)

    def _set_up(self) -> Iterator[Line]:
        """Yield the commands that place the BARs, as the test had them."""
        address = self._plan.parts["disk"]["device"].get("addr")
        if address is None:
            return
        slot = int(address, 0) << 11
        for place in self._plan.places.values():
            if place.bar < 0 or place.base < 0 or not place.area.startswith(("bar ", "legacy")):
                continue
            yield Sent(f"outl {CONFIG_ADDRESS:#x} {1 << 31 | slot | BAR_0 + 4 * place.bar:#x}")
            yield Sent(f"outl {CONFIG_DATA:#x} {place.base:#x}", f"place BAR {place.bar}")
        yield Sent(f"outl {CONFIG_ADDRESS:#x} {1 << 31 | slot | COMMAND:#x}")
        yield Sent(f"outw {CONFIG_DATA:#x} {ENABLED:#x}", "enable the device")

    def _step(self, step: Step) -> Iterator[Line]:
        match step:
            case Write():
                for address, data in runs(step.address, step.data):
                    if len(data) >= RUN and len(set(data)) == 1:
                        yield Sent(f"memset {address:#x} {len(data):#x} {data[0]:#x}")
                    else:
                        yield Sent(f"write {address:#x} {len(data):#x} 0x{data.hex()}")
            case Fill():
                yield Sent(f"memset {step.address:#x} {step.length:#x} {step.byte:#x}")
            case Until():
                command = f"read {step.address:#x} {len(step.data):#x}"
                yield Compared(command, f"OK 0x{step.data.hex()}", "")
            case Check():
                if step.marked:
                    command = f"read {step.address:#x} {len(step.data):#x}"
                    yield Compared(command, f"OK 0x{step.data.hex()}", step.words)
            case Access():
                yield from self._access(step)
            case Pause():
                yield Slept(step.seconds)
            case Command():
                yield Slept(0.1)
                yield Told(json.dumps({"execute": step.command, "arguments": step.arguments}))
                yield Slept(0.2)
            case _:
                raise NotPossibleError("a trace of vhost-user has no commands for qtest")

    def _access(self, step: Access) -> Iterator[Line]:
        if step.area == "pci":
            slot = int(self._plan.parts["disk"]["device"]["addr"], 0) << 11
            where = 1 << 31 | slot | step.offset & 0xFC
            yield Sent(f"outl {CONFIG_ADDRESS:#x} {where:#x}")
            address, ports = CONFIG_DATA + (step.offset & 3), True
        else:
            place = self._plan.places.get(step.area)
            if place is None or place.base < 0:
                raise NotPossibleError(f"the trace has no address for the registers {step.area}")
            address, ports = place.base + step.offset, place.ports
        letter = LETTER.get(step.width)
        if letter is None:
            raise NotPossibleError(f"no command of qtest accesses {step.width} bytes")
        if step.write:
            verb = "out" if ports else "write"
            yield Sent(f"{verb}{letter} {address:#x} {step.value:#x}", step.words)
            return
        verb, digits = ("in", 4) if ports else ("read", 16)
        command = f"{verb}{letter} {address:#x}"
        if step.marked:
            yield Compared(command, f"OK 0x{step.value:0{digits}x}", step.words)
        else:
            yield Sent(command, step.words)


def head(plan: Plan) -> Iterator[str]:
    """Yield lines about the test: statement, versions, what was expected and seen."""
    for statement in plan.about.statement.splitlines():
        yield from _wrapped(statement)
    yield ""
    yield from _wrapped(f"Seen with {plan.about.versions or 'an unknown version'}.")
    if plan.failed.expected:
        yield from _wrapped(f"Expected: {plan.failed.expected}")
    yield from _wrapped(f"Seen: {plan.failed.seen}")
    yield from _wrapped(f"Test: {plan.about.test}, target {plan.about.target}")


def comments(plan: Plan) -> str:
    """Return the lines of `head` as comments that begin with #."""
    return "\n".join(f"# {line}".rstrip() for line in head(plan))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 96) or [""]


def runs(address: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield pieces of data with their addresses: long runs of one byte are pieces of their own."""
    piece = b""
    for byte, group in groupby(data):
        run = bytes([byte]) * sum(1 for _ in group)
        if len(run) < RUN and len(piece) + len(run) <= LINE:
            piece += run
            continue
        if piece:
            yield address, piece
            address += len(piece)
        piece = b""
        if len(run) >= RUN:
            yield address, run
            address += len(run)
        else:
            piece = run
    if piece:
        yield address, piece
