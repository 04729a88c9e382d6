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
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from harness.diskspec import SECTOR
from harness.inputs import (
    Check,
    InputError,
    WrongValueError,
    build,
    line_in_toml,
    matching,
    read_text,
    shown,
    toml_of,
)
from harness.targets.base import DeviceIdentity, TargetError

COMMAND_TIMEOUT = 30.0
"""Longest time for a user's command, in seconds."""

MOST_TARGETS = 1000
"""Tables in a file."""

NAME = matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "")
"""Names of targets: they are parts of test ids, file names and `--target NAME+DEFECT`."""

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{\w*\}|[{}]")


def _is_command(text: str) -> bool:
    """Return whether a command can be split into words and has known placeholders only."""
    try:
        shlex.split(text)
    except ValueError:
        return False
    known = {"{{", "}}", "{bytes}", "{sectors}"}
    return "\0" not in text and known.issuperset(PLACEHOLDER.findall(text))


Text = Annotated[str, matching(r"[^\0-\x1f\x7f]*", "text in one line")]
Version = Annotated[
    str, matching(r"(\d{1,9}(\.\d{1,9}){0,7})?", 'numbers with dots between them, like "1.4.2"')
]
Command = Annotated[
    str, Check("a command with balanced quotes, and {bytes} or {sectors} in it", _is_command)
]


@dataclass(frozen=True)
class UserTarget:
    """One table of the file, as it is written there."""

    device: Text
    destructive: bool = False
    implementation: Text = "unknown"
    version: Version = ""
    backing: Text = ""
    resize: Command = ""

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
    values = {"{sectors}": capacity, "{bytes}": capacity * SECTOR, "{{": "{", "}}": "}"}
    line = [
        PLACEHOLDER.sub(lambda match: str(values[match[0]]), word) for word in shlex.split(command)
    ]
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"{shlex.join(line)}: {error}") from None
    if done.returncode:
        output = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise TargetError(f"{shlex.join(line)} ended with {done.returncode}: {output[-1]}")


def load(path: Path, taken: Collection[str] = ()) -> dict[str, UserTarget]:
    """Return the targets of a file by name. Raise TargetError, with file and line, for a bad one.

    `taken` are names that a target must not have.
    """
    try:
        text = read_text(path)
        document = toml_of(path, text)
    except InputError as error:
        raise TargetError(str(error)) from None
    try:
        return _targets(document, taken)
    except WrongValueError as error:
        raise TargetError(f"{path}:{line_in_toml(text, error.at)}: {error}") from None


def _targets(document: dict[str, Any], taken: Collection[str]) -> dict[str, UserTarget]:
    tables = document.pop("target", {})
    if document or not isinstance(tables, dict) or not tables:
        key = next(iter(document), "target")
        raise WrongValueError((key,), "only tables [target.NAME] are allowed here")
    if len(tables) > MOST_TARGETS:
        raise WrongValueError((), f"{len(tables)} targets; {MOST_TARGETS} is the limit")
    for name in tables:
        if not NAME.holds(name):
            words = "up to 64 letters, digits, dots, - and _"
            raise WrongValueError(
                ("target", name), f"{shown(name)} is not a valid name; use {words}"
            )
        if name in taken:
            raise WrongValueError(("target", name), "this suite already has a target of that name")
    return {name: build(UserTarget, table, ("target", name)) for name, table in tables.items()}
