"""Reproducers as files, each run before it is handed out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.reproducers import libqtest, qtest, vhost_user
from harness.reproducers.steps import NotPossibleError, Plan, plan
from harness.witness.events import Event

DEADLINE = 90.0
"""Seconds that a reproducer may take."""

GRACE = 2.0
"""Seconds that it may take to end when it is asked to."""

LIMIT = 1 << 20
"""Bytes of its output that are read."""


@dataclass(frozen=True)
class Form:
    """A form of reproducers: the maker of the text, the program that runs it, and the suffix.

    `devices` are the names of the variables of the environment with the program of the device, or
    with its socket. The interpreter is None if the text is compiled.
    """

    script: Callable[[Plan, str], str]
    interpreter: str | None
    suffix: str
    devices: tuple[str, ...]


FORMS = {
    "qtest": Form(qtest.script, "/bin/sh", ".sh", ("QEMU",)),
    "c": Form(libqtest.script, None, ".c", ("QEMU",)),
    "python": Form(vhost_user.script, sys.executable, ".py", ("DAEMON", "SOCKET")),
}


@dataclass(frozen=True)
class Outcome:
    """The result of a run of a reproducer: True if it has shown the same, and its output."""

    reproduced: bool
    output: str


def text_of(events: Sequence[Event], form: str, name: str) -> str:
    """Return the text of a reproducer. NotPossibleError for a trace that cannot be exported."""
    return FORMS[form].script(plan(events), name)


def compiler() -> str | None:
    """Return the path of the C compiler, None if there is none."""
    return shutil.which("cc") or shutil.which("gcc")


def run(path: Path, form: str, device: str | None = None) -> Outcome:
    """Run a reproducer. `device` is the device's program (None: the one on PATH), or its socket.

    NotPossibleError if it has to be compiled and there is no C compiler.
    """
    environment = dict(os.environ)
    if device is not None:
        if "/" in device or Path(device).is_socket():
            device = str(Path(device).absolute())  # the reproducer runs in another directory
        environment.update(dict.fromkeys(FORMS[form].devices, device))
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            _command(path.absolute(), form),
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        output.seek(0)
        text = output.read(LIMIT).decode(errors="replace")
    late = "" if status is not None else f"it did not end within {DEADLINE:g} s\n"
    return Outcome(status == 0, text + late)


def _command(path: Path, form: str) -> list[str]:
    """Return the command that runs a reproducer in a directory of its own."""
    if interpreter := FORMS[form].interpreter:
        return [interpreter, str(path)]
    if (cc := compiler()) is None:
        raise NotPossibleError("there is no C compiler (cc or gcc): the program was not run")
    build = '"$1" -O1 -Wall -o program "$2" && exec ./program'
    return ["/bin/sh", "-c", build, "sh", cc, str(path)]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a script and the device that it has started: a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
