"""A shell script that repeats a trace on QEMU alone, through qtest on its standard input."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from harness.reproducers.commands import Commands, Compared, Line, Sent, Slept, Told, comments
from harness.reproducers.steps import Plan

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
    commands = Commands(plan)
    lines = list(commands.lines())
    qmp = any(isinstance(line, Told) for line in lines)
    return SCRIPT.format(
        head=comments(plan),
        name=name,
        disk="".join(_disk(commands.size(), plan.contents)),
        fifos=' "$dir/qmp.in" "$dir/qmp.out"' if qmp else "",
        monitor=MONITOR if qmp else "",
        opened=OPENED if qmp else "",
        machine=commands.machine(),
        devices="".join(f"  {name} {_quoted(part)} \\\n" for name, part in commands.devices()),
        commands="".join(_commands(lines)),
        end=DIES if plan.dies else "",
        seen=shlex.quote(plan.failed.seen),
    )


def _disk(size: int, contents: list[tuple[int, bytes]]) -> Iterator[str]:
    """Yield the lines that make the file of the disk."""
    if not size:
        return
    yield f'truncate -s {size} "$dir/disk.raw"\n'
    for sector, data in contents:
        escaped = "".join(f"\\{byte:03o}" for byte in data)
        yield (
            f"printf '{escaped}' | dd of=\"$dir/disk.raw\" bs=512 seek={sector} conv=notrunc"
            " status=none\n"
        )


def _commands(lines: list[Line]) -> Iterator[str]:
    """Yield documents of commands, and lines of the shell between them."""
    sent: list[str] = []
    for line in lines:
        if isinstance(line, Sent):
            sent.append(line.command)
        else:
            yield _document(sent)
            yield f"{_shell(line)}\n"
            sent = []
    yield _document(sent)


def _shell(line: Compared | Slept | Told) -> str:
    match line:
        case Compared():
            words = (line.command, line.answer, *((line.words,) if line.words else ()))
            return f"{'check' if line.words else 'await'} {' '.join(map(shlex.quote, words))}"
        case Slept():
            return f"sleep {line.seconds:.1f}"
        case Told():
            return f"printf '%s\\n' {shlex.quote(line.text)} >&3"


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

MONITOR = ' \\\n  -chardev "pipe,id=qmp,path=$dir/qmp" -mon chardev=qmp,mode=control'

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
