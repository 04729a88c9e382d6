"""The library libblkio as a driver: it speaks vhost-user itself, without QEMU."""

from __future__ import annotations

import ctypes.util
import sys
from contextlib import ExitStack
from pathlib import Path

from harness.drivers import blkio_worker
from harness.drivers.base import (
    AT_ONCE,
    USE,
    CrashedError,
    Launcher,
    NotHereError,
    Place,
    Scenario,
    StuckError,
    WrongDataError,
)
from harness.drivers.userland import END, PREFIX, WRONG_DATA
from harness.machine.foreign import ForeignDaemon
from images import ImageError, foreign

SET = "libblkio"
LIBRARY = "usr/lib/x86_64-linux-gnu/libblkio.so.1"


class Libblkio(Launcher):
    """The driver virtio-blk-vhost-user of libblkio, in a process of its own."""

    way = "vhost-user"
    name = "libblkio"
    description = "libblkio, a library that is a vhost-user front-end itself"
    implementation = "libblkio"
    works = frozenset({USE, "discard", "parallel"})
    at_once = AT_ONCE
    traits = frozenset({"modern", "vhost-user"})

    def __init__(self) -> None:
        self._library = ""

    def prepare(self) -> None:
        """Find the library. NotHereError if it is not installed, and cannot be downloaded."""
        if self._library:
            return
        installed = ctypes.util.find_library("blkio")
        try:
            self._library = installed or str(foreign.ensure(SET) / "root" / LIBRARY)
        except ImageError as error:
            raise NotHereError(
                f"libblkio is missing: apt-get install libblkio1 (Debian 13 has it), or run: "
                f"vblk image foreign {SET} ({error})"
            ) from None

    def version(self) -> str:
        """Return the version of the library, from the name of its file."""
        assert self._library
        return Path(self._library).resolve().name.rpartition(".so.")[2]

    def drive(self, scenario: Scenario, place: Place) -> str:
        """Let a process do the work."""
        work = self.work_of(scenario)
        writes = "reads" if place.spec.read_only else "writes"
        program = str(Path(blkio_worker.__file__))
        line = [sys.executable, program, self._library, str(place.socket), writes, *work]
        with ExitStack() as stack:
            process = ForeignDaemon("libblkio", line)
            stack.callback(process.stop)
            place.wait_for(lambda: not process.alive(), "the end of the work", process.output)
            text = process.output()
            if WRONG_DATA in text:
                raise WrongDataError("other data was read than written", text)
            if f"{PREFIX}no disk" in text:
                raise StuckError(f"it refuses the device: {text.strip()}", text)
            if END not in text:
                raise CrashedError(process.fate(), text)
            for name in work:
                if f"{PREFIX}{name} done" not in text:
                    raise StuckError(f"the work {name!r} failed", text)
            return text
