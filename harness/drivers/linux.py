"""Linux as a driver: User-mode Linux, which speaks vhost-user itself, and kernels in a QEMU."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.drivers import userland
from harness.drivers.base import Launcher, NotHereError, Place, Scenario, StuckError, wait_for
from harness.machine.foreign import ForeignDaemon
from harness.machine.monitor import LoopThread
from harness.machine.rundir import RunDir
from images import ImageError

UML_MODULES = Path("/usr/lib/uml/modules")
DRIVERS = ("virtio_blk",)


def follow(
    work: Sequence[str], place: Place, output: Callable[[], str], check: Callable[[], None]
) -> None:
    """Wait until a Linux has done its work, and resize the disk when it asks for that.

    StuckError if it does not end, or if one of its works fails.
    """
    resized = 0

    def over() -> bool:
        nonlocal resized
        text = output()
        while text.count(userland.ASK_FOR_RESIZE) > resized:
            resized += 1
            place.resize((1 + resized) * place.spec.capacity)
        if userland.END in text:
            return True
        check()
        return False

    wait_for(over, "the end of the work", output)
    text = output()
    for name in work:
        if f"{userland.PROMPT}{name} done" not in text:
            raise StuckError(f"the work {name!r} failed", text)
    if found := re.search(r"(BUG:|Oops|I/O error|KASAN|WARNING: CPU).*", text):
        raise StuckError(f"the kernel reports: {found[0]}", text)


class UserModeLinux(Launcher):
    """User-mode Linux of the package user-mode-linux."""

    way = "vhost-user"
    name = "uml"
    description = "User-mode Linux, which is a vhost-user front-end itself"
    implementation = "uml"
    works = frozenset(userland.WORKS) - {"rebind"}
    """It does not stop a virtqueue at an unbind, so the base that it sets later has no effect."""
    traits = frozenset({"modern", "vhost-user"})
    disk: Mapping[str, Any] = MappingProxyType({"packed": False})
    """It sends 0 as the base of a packed virtqueue, which stands for a wrap counter of 0."""

    def __init__(self) -> None:
        self._program = ""
        self._dir: RunDir | None = None

    def prepare(self) -> None:
        """Find User-mode Linux and make its initramfs. NotHereError without the package."""
        if self._dir:
            return
        program = shutil.which("linux.uml")
        found = {
            str(path): path.read_bytes()
            for path in UML_MODULES.glob("*/kernel/drivers/block/virtio_blk.ko")
        }
        if program is None or not found:
            raise NotHereError("User-mode Linux is missing: apt-get install user-mode-linux")
        self._release = Path(next(iter(found))).parts[len(UML_MODULES.parts)]
        self._program = program
        self._dir = RunDir()
        try:
            userland.write(self._dir.path / "initrd", userland.needed_modules(found, DRIVERS))
        except ImageError as error:
            self.close()
            raise NotHereError(f"User-mode Linux needs busybox: {error}") from None

    def version(self) -> str:
        """Return the kernel's version."""
        return self._release.partition("-")[0]

    def drive(self, scenario: Scenario, place: Place) -> str:
        """Boot, and let the initramfs do the work."""
        assert self._dir
        log = self._dir.path / f"{scenario.name}.log"
        work = self.work_of(scenario)
        line = [
            self._program,
            "mem=64M",
            f"initrd={self._dir.path / 'initrd'}",
            f"virtio_uml.device={place.socket}:2",
            "con0=null,fd:1",
            "con=null",
            "quiet",
            "panic=1",
            f"vblk.work={','.join(work)}",
        ]
        with ExitStack() as stack:
            thread = LoopThread("uml")
            stack.callback(thread.close)
            process = ForeignDaemon("User-mode Linux", line, log, thread)
            stack.callback(process.stop)
            # SIGTERM does not end it, and it has processes of its own.
            stack.callback(process.kill)

            def check() -> None:
                if not process.alive() and userland.END not in process.output():
                    raise StuckError(process.fate(), process.output())

            follow(work, place, process.output, check)
            process.wait(5.0)
            return process.output()

    def close(self) -> None:
        """Remove the initramfs."""
        if self._dir:
            self._dir.remove()
            self._dir = None
