"""Search for QEMU, and its version."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from harness.machine.errors import MachineError

MINIMUM = (7, 2, 0)
PROGRAM = "qemu-system-x86_64"
VERSION_DEADLINE = 20.0
"""Seconds that a program may take for its `--version`."""
VERSION_LIMIT = 65536
"""Bytes that it may write."""
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
    than 20 s, writes more than 64 KiB, or is another program.
    """
    status, output, errors = _ask(path)
    if status != 0:
        raise MachineError(f"{path} --version failed with status {status}", errors.strip())
    text = output.strip().partition("\n")[0]
    match = re.match(rf"{re.escape(prefix)} (\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        raise MachineError(f"{path} is not {name}: its --version says {text!r}")
    return Qemu(Path(path), (int(match[1]), int(match[2]), int(match[3] or 0)), text)


def _ask(path: str) -> tuple[int, str, str]:
    """Return exit status, output and errors of a program's `--version`. MachineError as above."""
    try:
        child = subprocess.Popen(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise MachineError(f"{path} does not run: {error.strerror}") from error
    with child, selectors.DefaultSelector() as selector:
        assert child.stdout and child.stderr
        texts = {child.stdout: b"", child.stderr: b""}
        for stream in texts:
            selector.register(stream, selectors.EVENT_READ)
        deadline = time.monotonic() + VERSION_DEADLINE
        try:
            while selector.get_map():
                ready = selector.select(max(deadline - time.monotonic(), 0))
                if not ready:
                    raise subprocess.TimeoutExpired(path, VERSION_DEADLINE)
                for stream in (
                    stream for stream in texts if stream in {k.fileobj for k, _ in ready}
                ):
                    piece = os.read(stream.fileno(), VERSION_LIMIT)
                    texts[stream] += piece
                    if not piece:
                        selector.unregister(stream)
                    if len(texts[stream]) > VERSION_LIMIT:
                        raise MachineError(
                            f"{path} --version writes more than {VERSION_LIMIT} bytes"
                        )
            child.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            message = f"{path} did not answer --version within {VERSION_DEADLINE:g} s"
            raise MachineError(message) from None
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)  # a wrapper's children too
    output, errors = (text.decode(errors="replace") for text in texts.values())
    return child.returncode, output, errors


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
