"""Targets that a user defines in a TOML file, for `--targets FILE`.

    [target.my-daemon]
    device = "vhost-user:/run/my-daemon.sock"   # or "pci:0000:00:05.0"
    destructive = true                # the suite may overwrite the disk (as --destructive)
    implementation = "my-daemon"      # name under which its deviations are filed
    version = "1.4.2"
    backing = "/srv/my-disk.raw"      # the disk's bytes, for tests that read them
    resize = "my-ctl resize {bytes}"  # sets the size while it runs; or {sectors}

Only `device` is required. Tests that need a missing key are skipped.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness.diskspec import SECTOR
from harness.targets.base import DeviceIdentity, TargetError

COMMAND_TIMEOUT = 30.0
"""Longest time for a user's command, in seconds."""


@dataclass(frozen=True)
class UserTarget:
    """One table of the file, as it is written there."""

    device: str
    destructive: bool = False
    implementation: str = "unknown"
    version: str = ""
    backing: str = ""
    resize: str = ""

    @property
    def identity(self) -> DeviceIdentity:
        """Return the name and version for the device's deviations."""
        numbers = tuple(int(part) for part in self.version.split(".")) if self.version else ()
        return DeviceIdentity(self.implementation, numbers)

    @property
    def resizer(self) -> Callable[[int], None] | None:
        """Return a function that runs the user's resize command, or None if there is none.

        Its argument is the capacity in sectors.
        """
        if not self.resize:
            return None
        return lambda capacity: _run(self.resize, capacity)


def _run(command: str, capacity: int) -> None:
    """Run a command without a shell. Raise TargetError, with its last line, if it fails."""
    line = [word.format(sectors=capacity, bytes=capacity * SECTOR) for word in shlex.split(command)]
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"{shlex.join(line)}: {error}") from None
    if done.returncode:
        output = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise TargetError(f"{shlex.join(line)} ended with {done.returncode}: {output[-1]}")


def load(path: Path) -> dict[str, UserTarget]:
    """Return the targets of a file by name.

    Raise TargetError, with file and line, for a bad one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"{path}: {error}") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise TargetError(f"{path}:{line[1] if line else 1}: {error}") from None
    tables = document.pop("target", {})
    if document or not isinstance(tables, dict) or not tables:
        unknown = next(iter(document), "target")
        raise TargetError(
            f"{path}:{_line(text, unknown)}: only tables [target.NAME] are allowed here"
        )
    return {name: _target(path, text, name, table) for name, table in tables.items()}


def _target(path: Path, text: str, name: str, table: Any) -> UserTarget:
    where = f"{path}:{_line(text, name)}: target {name}"
    if not isinstance(table, dict) or "device" not in table:
        raise TargetError(f'{where} needs device = "vhost-user:PATH" or "pci:ADDRESS"')
    known = {field.name: field.type for field in fields(UserTarget)}
    for key, value in table.items():
        if key not in known:
            line = _line(text, key, name)
            raise TargetError(f"{path}:{line}: unknown key {key!r}; known: {', '.join(known)}")
        if type(value).__name__ != known[key]:
            line = _line(text, key, name)
            raise TargetError(f"{path}:{line}: {key} must be {known[key]}, not {value!r}")
    target = UserTarget(**table)
    if not re.fullmatch(r"(\d+(\.\d+)*)?", target.version):
        line = _line(text, "version", name)
        raise TargetError(
            f"{path}:{line}: version must be numbers separated by dots, not {target.version!r}"
        )
    try:
        target.resize.format(sectors=0, bytes=0)
        shlex.split(target.resize)
    except (ValueError, LookupError) as error:
        line = _line(text, "resize", name)
        raise TargetError(
            f"{path}:{line}: resize may contain only {{sectors}} and {{bytes}}: {error}"
        ) from None
    return target


def _line(text: str, word: str, table: str = "") -> int:
    """Return the line number of a key or a table, searched after the header of `table` if given."""
    inside = not table
    for number, line in enumerate(text.splitlines(), 1):
        header = line.strip().startswith("[")
        if header and table:
            inside = table in line
        if inside and re.search(rf"\b{re.escape(word)}\b", line.split("#")[0]):
            return number
    return 1
