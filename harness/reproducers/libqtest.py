"""A C program that repeats a trace on QEMU alone, with the functions of QEMU's libqtest."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from harness.reproducers.commands import Commands, Compared, Line, Sent, Slept, Told, head
from harness.reproducers.steps import Plan

ROW = 16
"""Bytes of memory on a line."""

CRASHED = 'compared(qtest_crashed(s), "a signal ended QEMU");'


def script(plan: Plan, name: str) -> str:
    """Return the program. NotPossibleError for a trace of another kind of device."""
    commands = Commands(plan)
    arguments = list(_arguments(commands))
    text = files(__package__).joinpath("libqtest.c.txt").read_text(encoding="utf-8")
    size = commands.size()
    values = {
        "HEAD": "\n".join(f" * {_comment(line)}".rstrip() for line in head(plan)),
        "NAME": name,
        "FILES": "    int firmware = new_file(65536);"
        + (f"\n    int disk = new_file({size});" if size else ""),
        "CONTENTS": "\n".join(f"    {line}" for line in _contents(plan, size)),
        "CRASHES": str(plan.dies).lower(),
        "SIZE": str(sum(map(len, arguments)) + 64),
        "ARGUMENTS": "\n".join(arguments) + (", firmware, disk" if size else ", firmware"),
        "STEPS": "\n".join(f"    {line}" for line in _lines(commands)),
        "END": CRASHED if plan.dies else "qtest_quit(s);",
        "SEEN": _text(plan.failed.seen),
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _contents(plan: Plan, size: int) -> Iterator[str]:
    """Yield the statements that write the files."""
    yield "/* Firmware that halts the CPU: only the calls below touch the device. */"
    yield 'put(firmware, 65520, "\\xfa\\xf4\\xeb\\xfd", 4);'
    for sector, data in plan.contents if size else ():
        yield from _with_data(f"put(disk, 512 * {sector}LL,", data, "")


def _arguments(commands: Commands) -> Iterator[str]:
    """Yield literals with the options of QEMU, a format for the numbers of the files."""
    words = [
        f"{commands.machine()} -accel tcg -bios /proc/self/fd/%d",
        "-nodefaults -no-user-config -display none -vga none",
        *(f"{name} {_quoted(part)}" for name, part in commands.devices()),
    ]
    for word in words:
        yield f"        {_format(f'{word} ')}"


def _lines(commands: Commands) -> Iterator[str]:
    for line in commands.lines():
        yield from _statement(line)


def _statement(line: Line) -> Iterator[str]:
    """Yield the lines of a statement."""
    match line:
        case Sent():
            verb, address, *values = line.command.split()
            comment = f" /* {_comment(line.words)} */" if line.words else ""
            if verb == "write":
                data = bytes.fromhex(values[1][2:])
                yield from _with_data(f"qtest_memwrite(s, {address},", data, "")
            elif verb == "memset":
                yield f"qtest_memset(s, {address}, {values[1]}, {values[0]});"
            else:
                yield f"qtest_{verb}({', '.join(('s', address, *values))});{comment}"
        case Compared():
            verb, address, *values = line.command.split()
            answer = line.answer.removeprefix("OK ")
            if verb != "read":
                read = f"qtest_{verb}(s, {address})"
                yield f"CHECK({read}, {answer}, {_text(line.words)});"
                return
            data = bytes.fromhex(answer[2:])
            name = "check_memory" if line.words else "await_memory"
            words = f", {_text(line.words)}" if line.words else ""
            yield from _with_data(f"{name}(s, {address},", data, words)
        case Slept():
            yield f"g_usleep({int(1e6 * line.seconds)});"
        case Told():
            yield f"qtest_qmp_send(s, {_format(line.text)});"


def _with_data(begin: str, data: bytes, end: str) -> Iterator[str]:
    """Yield the lines of a call: its first arguments, bytes, their number, and the last ones."""
    rows = [
        '"' + "".join(f"\\x{byte:02x}" for byte in data[at : at + ROW]) + '"'
        for at in range(0, len(data) or 1, ROW)
    ]
    last = f", {len(data)}{end});"
    if len(rows) == 1 and not end:
        yield f"{begin} {rows[0]}{last}"
        return
    yield begin
    yield from (f"    {row}" for row in rows[:-1])
    yield f"    {rows[-1]}{last}"


def _text(text: str) -> str:
    """Return a literal of a text."""
    escaped = "".join(
        f"\\{character}"
        if character in '"\\'
        else character
        if character.isprintable() and character.isascii() and character != "?"
        else "".join(f"\\{byte:03o}" for byte in character.encode())
        for character in text
    )
    return f'"{escaped}"'


def _format(text: str) -> str:
    """Return a literal of a format that gives this text; %d stays as it is."""
    return _text(text.replace("%", "%%").replace("fd/%%d", "fd/%d"))


def _quoted(options: dict[str, Any]) -> str:
    """Return options as JSON for the shell; the file of the disk is one that QEMU inherits."""
    if "filename" in options:
        options = {**options, "filename": "/proc/self/fd/%d"}
    return shlex.quote(json.dumps(options))


def _comment(text: str) -> str:
    """Return a text that can be in a comment."""
    return text.replace("*/", "* /").replace("/*", "/ *")
