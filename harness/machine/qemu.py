"""Search for QEMU, and its version."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.machine.errors import MachineError

MINIMUM = (7, 2, 0)
PROGRAM = "qemu-system-x86_64"
INSTALL = "apt-get install qemu-system-x86"


@dataclass(frozen=True)
class Qemu:
    """A QEMU program: `version_text` is the first line of its `--version`."""

    path: Path
    version: tuple[int, int, int]
    version_text: str


def find_qemu(path: str | None = None) -> Qemu:
    """Return the QEMU at `path`, or the one on PATH.

    Raises MachineError if there is none, if it cannot run, if it is not QEMU, or
    if it is older than 7.2.
    """
    program = shutil.which(PROGRAM if path is None else path)
    if program is None:
        raise MachineError(_why_not_found(path))
    found = version_of(program, "QEMU", "QEMU emulator version")
    if found.version < MINIMUM:
        raise MachineError(
            f"{found.path} is QEMU {'.'.join(map(str, found.version))}; {MINIMUM[0]}.{MINIMUM[1]}"
            f" or newer is needed ({INSTALL}, or name another with --qemu PATH)"
        )
    return found


def version_of(path: str, name: str, prefix: str) -> Qemu:
    """Run a program with `--version`, whose first line must be `prefix` and a version.

    `name` is that of the program in messages. Raises MachineError if it does not run, takes more
    than 20 s, or is another program.
    """
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=20
        )
    except subprocess.TimeoutExpired:
        raise MachineError(f"{path} did not answer --version within 20 s") from None
    except OSError as error:
        raise MachineError(f"{path} does not run: {error.strerror}") from error
    if answer.returncode != 0:
        raise MachineError(
            f"{path} --version failed with status {answer.returncode}", answer.stderr.strip()
        )
    text = answer.stdout.strip().partition("\n")[0]
    match = re.match(rf"{re.escape(prefix)} (\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        raise MachineError(f"{path} is not {name}: its --version says {text!r}")
    return Qemu(Path(path), (int(match[1]), int(match[2]), int(match[3] or 0)), text)


def _why_not_found(path: str | None) -> str:
    if path is None:
        return f"{PROGRAM} is not on PATH; install it: {INSTALL}"
    if not path:
        return "an empty path names no QEMU; leave --qemu out for the one on PATH"
    if Path(path).is_dir():
        return f"{path} is a directory, not a QEMU program"
    if Path(path).exists():
        return f"{path} is not executable; chmod +x it, or name another QEMU"
    return f"there is no QEMU at {path}; install it: {INSTALL}"
