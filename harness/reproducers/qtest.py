"""A shell script that repeats a trace on QEMU alone, through qtest on its standard input."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterator
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
reader=
trap 'kill $qemu $reader 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
trap '' PIPE  # QEMU may end early

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
sent=0
status=0

send() {{  # number of commands, which are on standard input; each has one line of answer
  cat >&4 2>/dev/null
  sent=$((sent + $1))
}}

answer() {{  # command; its answer is in $seen then
  echo "$1" >&4 2>/dev/null
  sent=$((sent + 1))
  seen="no answer"
  turns=0
  while [ $turns -lt 200 ]; do
    if [ "$(wc -l <"$dir/answers")" -ge $sent ]; then
      seen=$(sed -n "${{sent}}p" "$dir/answers")
      return
    fi
    kill -0 $qemu 2>/dev/null || return
    sleep 0.05
    turns=$((turns + 1))
  done
}}

await() {{  # command, expected answer: ask for some seconds, until it is that
  tries=0
  while [ $tries -lt 60 ]; do
    answer "$1"
    [ "$seen" = "$2" ] && return
    [ $status -eq 0 ] || return  # it is not reproduced anyway
    sleep 0.1
    tries=$((tries + 1))
  done
}}

check() {{  # command, expected answer, what it is
  await "$1" "$2"
  if [ "$seen" = "$2" ]; then
    echo "as in the test: $3"
  else
    echo "not as in the test: $3: $seen, not $2"
    status=1
  fi
}}

answer endianness
if [ "$seen" != "OK little" ]; then
  echo "QEMU does not run: $seen"
  exit 2
fi

{commands}{end}
if [ $status -eq 0 ]; then
  echo "reproduced: "{seen}
else
  echo "not reproduced"
fi
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
        if plan.parts["machine"]["board"] == "q35":
            raise NotPossibleError("a disk behind a PCI Express port cannot be exported")
        self._plan = plan

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
            end=DIES if plan.dies else "",
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
        """Yield documents of commands, and lines of the shell between them."""
        lines: list[str] = []
        for line in (*self._set_up(), *self._lines()):
            if line.startswith("\0"):
                yield _document(lines)
                yield f"{line[1:]}\n"
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
            yield (f"outl {CONFIG_ADDRESS:#x} {1 << 31 | slot | BAR_0 + 4 * place.bar:#x}")
            yield f"outl {CONFIG_DATA:#x} {place.base:#x}"
        yield f"outl {CONFIG_ADDRESS:#x} {1 << 31 | slot | COMMAND:#x}"
        yield f"outw {CONFIG_DATA:#x} {ENABLED:#x}"

    def _lines(self) -> Iterator[str]:
        """Yield a line for each command; a line of the shell begins with a null character."""
        for step in self._plan.steps:
            yield from self._step(step)

    def _step(self, step: Step) -> Iterator[str]:
        match step:
            case Write():
                for address, data in runs(step.address, step.data):
                    if len(data) >= RUN and len(set(data)) == 1:
                        yield f"memset {address:#x} {len(data):#x} {data[0]:#x}"
                    else:
                        yield f"write {address:#x} {len(data):#x} 0x{data.hex()}"
            case Fill():
                yield f"memset {step.address:#x} {step.length:#x} {step.byte:#x}"
            case Check() | Until():
                command = f"read {step.address:#x} {len(step.data):#x}"
                yield from self._compared(command, f"OK 0x{step.data.hex()}", step)
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
            yield f"outl {CONFIG_ADDRESS:#x} {where:#x}"
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
            yield f"{verb}{letter} {address:#x} {step.value:#x}"
            return
        verb, digits = ("in", 4) if ports else ("read", 16)
        command = f"{verb}{letter} {address:#x}"
        if step.marked:
            yield from self._compared(command, f"OK 0x{step.value:0{digits}x}", step)
        else:
            yield command

    @staticmethod
    def _compared(command: str, answer: str, step: Access | Check | Until) -> Iterator[str]:
        """Yield a line of the shell that compares an answer, or waits for it."""
        if isinstance(step, Until):
            yield f"\0await {shlex.quote(command)} {shlex.quote(answer)}"
        elif step.marked:
            words = (command, answer, step.words)
            yield f"\0check {' '.join(map(shlex.quote, words))}"


DIES = """\
turns=0
while kill -0 $qemu 2>/dev/null && [ $turns -lt 50 ]; do
  sleep 0.1
  turns=$((turns + 1))
done
if kill -0 $qemu 2>/dev/null; then
  echo "not as in the test: QEMU has not ended"
  status=1
else
  wait $qemu
  ended=$?
  if [ $ended -le 128 ]; then
    echo "not as in the test: no signal ended QEMU; its exit status is $ended"
    status=1
  fi
fi
"""

OPENED = """\
# The answers to QMP are of no interest, but have to be read.
cat <>"$dir/qmp.out" >/dev/null &
reader=$!
exec 3<>"$dir/qmp.in"
printf '%s\\n' '{"execute": "qmp_capabilities"}' >&3
"""


def _document(lines: list[str]) -> str:
    text = "\n".join(lines)
    return f"send {len(lines)} <<'END'\n{text}\nEND\n" if lines else ""


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
