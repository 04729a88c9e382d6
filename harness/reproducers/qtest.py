"""A shell script that repeats a trace on QEMU alone, through qtest on its standard input."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterable, Iterator
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
    Write,
)

RUN = 32
"""Equal bytes in a row from which on they are a `memset`."""

LINE = 1024
"""Bytes of a `write` at most."""

LETTER = {1: "b", 2: "w", 4: "l"}

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC

BAR_0, COMMAND, ENABLED = 0x10, 0x04, 0x07

SCRIPT = """\
#!/bin/sh
{head}
#
# Needs nothing but QEMU:
#     sh {name}   (or QEMU=/path/to/qemu-system-x86_64 sh {name})
# Exit status: 0 if the device does what the test saw, 1 if it does not.

QEMU=${{QEMU:-qemu-system-x86_64}}
dir=$(mktemp -d) || exit 2
qemu=
trap '[ -n "$qemu" ] && kill "$qemu" 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

# Firmware that halts the CPU: only the commands below touch the device.
truncate -s 65536 "$dir/bios"
printf '\\372\\364\\353\\375' |
  dd of="$dir/bios" bs=1 seek=65520 conv=notrunc status=none
{disk}mkfifo "$dir/in"{fifos}

"$QEMU" {machine} \\
  -bios "$dir/bios" -nodefaults -no-user-config -display none -vga none{monitor} \\
{devices}  -qtest stdio -qtest-log none <"$dir/in" >"$dir/answers" &
qemu=$!
exec 4>"$dir/in"
{opened}
# Each command has one line of answer.
commands() {{
{commands}}}
commands >&4

waited=0
until [ "$(grep -c '^OK' "$dir/answers")" -ge {count} ] || [ $waited -ge 100 ]; do
  kill -0 $qemu 2>/dev/null || {{ echo "QEMU has ended"; break; }}
  sleep 0.1
  waited=$((waited + 1))
done

status=0
check() {{  # number of the command, expected answer, what it is
  seen=$(grep '^\\(OK\\|FAIL\\|ERR\\)' "$dir/answers" | sed -n "$1p")
  if [ "$seen" = "$2" ]; then
    echo "as in the test: $3"
  else
    echo "not as in the test: $3: $seen, not $2"
    status=1
  fi
}}
{checks}
[ $status -eq 0 ] && echo "reproduced: "{seen} || echo "not reproduced"
exit $status
"""


def script(plan: Plan, name: str) -> str:
    """Return the script. NotPossibleError for a trace of another kind of device."""
    return _Script(plan).text(name)


class _Script:
    def __init__(self, plan: Plan) -> None:
        if "machine" not in plan.parts or "disk" not in plan.parts:
            raise NotPossibleError(
                f"{plan.about.target} is no QEMU that runs without a guest; try --as python"
            )
        self._plan = plan
        self._checks: list[str] = []
        self._sent = 0

    def text(self, name: str) -> str:
        plan = self._plan
        commands = "".join(self._commands())
        qmp = any(isinstance(step, Command) for step in plan.steps)
        return SCRIPT.format(
            head=head(plan),
            name=name,
            disk="".join(self._disk()),
            fifos=' "$dir/qmp.in" "$dir/qmp.out"' if qmp else "",
            monitor=(
                ' \\\n  -chardev "pipe,id=qmp,path=$dir/qmp" -mon chardev=qmp,mode=control'
                if qmp
                else ""
            ),
            opened=OPENED if qmp else "",
            machine=self._machine(),
            devices="".join(f"  {words} \\\n" for words in self._devices()),
            commands=commands,
            count=self._sent,
            checks="\n".join(self._checks),
            seen=shlex.quote(plan.failed.seen),
        )

    def _machine(self) -> str:
        options = self._plan.parts["machine"]
        words = f"-machine {options['board']} -m {options['memory']}"
        if options["board"] == "microvm":
            legacy = "off" if options["interface"] == "modern" else "on"
            words = words.replace("microvm", "microvm,ioapic2=off")
            words += f" -global virtio-mmio.force-legacy={legacy}"
        return words

    def _disk(self) -> Iterator[str]:
        """Yield the lines that make the file of the disk."""
        part = self._plan.parts["disk"]
        if not any("filename" in node for node in part["nodes"]):
            return
        yield f'truncate -s {part["size"]} "$dir/disk.raw"\n'
        for sector, data in self._plan.contents:
            escaped = "".join(f"\\{byte:03o}" for byte in data)
            yield (
                f"printf '{escaped}' | dd of=\"$dir/disk.raw\" bs=512 seek={sector} conv=notrunc"
                " status=none\n"
            )

    def _devices(self) -> Iterator[str]:
        part = self._plan.parts["disk"]
        for options in part["objects"]:
            yield f"-object {_quoted(options)}"
        for options in part["nodes"]:
            yield f"-blockdev {_quoted(options)}"
        yield f"-device {_quoted(part['device'])}"

    def _commands(self) -> Iterator[str]:
        """Yield the body of the function: documents of commands, and pauses."""
        lines: list[str] = []
        for line in (*self._set_up(), *self._lines()):
            if line.startswith("\0"):
                yield _document(lines)
                yield f"  {line[1:]}\n"
                lines = []
            else:
                lines.append(line)
        yield _document(lines)

    def _set_up(self) -> Iterator[str]:
        """Yield the commands that place the BARs, as the test had them."""
        address = self._plan.parts["disk"]["device"].get("addr")
        if address is None:
            return
        slot = int(address, 0) << 11
        for place in self._plan.places.values():
            if place.bar < 0 or place.base < 0 or not place.area.startswith(("bar ", "legacy")):
                continue
            yield self._command(
                f"outl {CONFIG_ADDRESS:#x} {1 << 31 | slot | BAR_0 + 4 * place.bar:#x}"
            )
            yield self._command(f"outl {CONFIG_DATA:#x} {place.base:#x}")
        yield self._command(f"outl {CONFIG_ADDRESS:#x} {1 << 31 | slot | COMMAND:#x}")
        yield self._command(f"outw {CONFIG_DATA:#x} {ENABLED:#x}")

    def _command(self, line: str) -> str:
        self._sent += 1
        return line

    def _lines(self) -> Iterator[str]:
        """Yield a line for each command; a line of the shell begins with a null character."""
        for step in self._plan.steps:
            yield from self._step(step)

    def _step(self, step: Step) -> Iterator[str]:
        match step:
            case Write():
                for address, data in runs(step.address, step.data):
                    if len(data) >= RUN and len(set(data)) == 1:
                        yield self._command(f"memset {address:#x} {len(data):#x} {data[0]:#x}")
                    else:
                        yield self._command(f"write {address:#x} {len(data):#x} 0x{data.hex()}")
            case Fill():
                yield self._command(f"memset {step.address:#x} {step.length:#x} {step.byte:#x}")
            case Check():
                yield self._command(f"read {step.address:#x} {len(step.data):#x}")
                self._check(step.marked, f"OK 0x{step.data.hex()}", step.words)
            case Access():
                yield from self._access(step)
            case Pause():
                yield f"\0sleep {step.seconds:.1f}"
            case Command():
                line = json.dumps({"execute": step.command, "arguments": step.arguments})
                yield "\0sleep 0.1"
                yield f"\0printf '%s\\n' {shlex.quote(line)} >&3"
                yield "\0sleep 0.2"
            case _:
                raise NotPossibleError("a trace of vhost-user has no commands for qtest")

    def _access(self, step: Access) -> Iterator[str]:
        if step.area == "pci":
            slot = int(self._plan.parts["disk"]["device"]["addr"], 0) << 11
            where = 1 << 31 | slot | step.offset & 0xFC
            yield self._command(f"outl {CONFIG_ADDRESS:#x} {where:#x}")
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
            yield self._command(f"{verb}{letter} {address:#x} {step.value:#x}")
            return
        verb, digits = ("in", 4) if ports else ("read", 16)
        yield self._command(f"{verb}{letter} {address:#x}")
        self._check(step.marked, f"OK 0x{step.value:0{digits}x}", step.words)

    def _check(self, wanted: bool, answer: str, words: str) -> None:
        if wanted:
            self._checks.append(f"check {self._sent} {shlex.quote(answer)} {shlex.quote(words)}")


OPENED = """\
# The answers to QMP are of no interest, but have to be read.
cat "$dir/qmp.out" >/dev/null &
exec 3>"$dir/qmp.in"
printf '%s\\n' '{"execute": "qmp_capabilities"}' >&3
"""


def _document(lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    return f"cat <<'END'\n{text}\nEND\n" if text else ""


def _quoted(options: dict[str, Any]) -> str:
    """Return options as JSON for the shell; the file of the disk is the one in $dir."""
    if "filename" in options:
        options = {**options, "filename": "@"}
    return shlex.quote(json.dumps(options)).replace('"@"', '"\'"$dir/disk.raw"\'"')


def head(plan: Plan) -> str:
    """Return comments about the test: statement, versions, what was expected and seen."""
    return "\n".join(f"# {line}".rstrip() for line in _head(plan))


def _head(plan: Plan) -> Iterator[str]:
    for statement in plan.about.statement.splitlines():
        yield from _wrapped(statement)
    yield ""
    yield from _wrapped(f"Seen with {plan.about.versions or 'an unknown version'}.")
    if plan.failed.expected:
        yield from _wrapped(f"Expected: {plan.failed.expected}")
    yield from _wrapped(f"Seen: {plan.failed.seen}")
    yield from _wrapped(f"Test: {plan.about.test}, target {plan.about.target}")


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
