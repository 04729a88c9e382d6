"""Linux as a driver: User-mode Linux, which speaks vhost-user itself, and kernels in a QEMU."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from types import MappingProxyType
from typing import Any, Literal

import images
from harness.drivers import kernels, userland
from harness.drivers.base import (
    AT_ONCE,
    DEADLINE,
    CrashedError,
    Launcher,
    NotHereError,
    Place,
    Scenario,
    StuckError,
    WrongDataError,
    wait_for,
)
from harness.drivers.kernels import Kernel
from harness.machine import Machine, MachineConfig, Qemu
from harness.machine.command import Board, Saved
from harness.machine.errors import MachineError
from harness.machine.foreign import ForeignDaemon
from harness.machine.rundir import RunDir
from harness.targets.prefetch import Prefetch
from harness.witness import trace
from harness.witness.events import Event
from images import ImageError

UML_MODULES = Path("/usr/lib/uml/modules")
DRIVERS = ("virtio_blk",)

QUICK = ("initcall_blacklist=raid6_select_algo,calibrate_xor_blocks", "pty.legacy_count=0")
"""Words for a kernel that leave out what a boot spends most of its time with: a choice of checksum
functions, which are measured for a second, and 256 terminals of an old kind."""

CRASH = re.compile(r"(Kernel panic|BUG:|Oops|KASAN|general protection fault).*")
"""Reports of a kernel that it has crashed, or that its memory is corrupt."""


def follow(
    work: Sequence[str], place: Place, output: Callable[[], str], check: Callable[[], None]
) -> None:
    """Wait until a Linux has done its work, and resize the disk when it asks for that.

    StuckError if it does not end, if its kernel crashes, or if one of its works fails.
    """
    resized = 0

    def over() -> bool:
        nonlocal resized
        text = output()
        if found := CRASH.search(text):
            raise CrashedError(f"the kernel reports: {found[0]}", text)
        while text.count(userland.ASK_FOR_RESIZE) > resized:
            resized += 1
            place.resize((1 + resized) * place.spec.capacity)
        if userland.END in text:
            return True
        check()
        return False

    place.wait_for(over, "the end of the work", output)
    text = output()
    if userland.NO_DISK in text:
        raise StuckError("the driver made no disk of the device", text)
    if userland.WRONG_DATA in text:
        raise WrongDataError("other data was read than written", text)
    for name in work:
        if f"{userland.PREFIX}{name} done" not in text:
            raise StuckError(f"the work {name!r} failed", text)
    if found := re.search(r"(I/O error|WARNING: CPU).*", text):
        raise StuckError(f"the kernel reports: {found[0]}", text)


def _kill(process: ForeignDaemon) -> None:
    """Send SIGKILL to the group: User-mode Linux has several processes, and ignores SIGTERM."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class UserModeLinux(Launcher):
    """User-mode Linux of the package user-mode-linux."""

    way = "vhost-user"
    name = "uml"
    description = "User-mode Linux, which is a vhost-user front-end itself"
    implementation = "uml"
    at_once = AT_ONCE
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
            needed = userland.needed_modules(found, DRIVERS)
            userland.write(self._dir.path / "initrd", needed, userland.busybox())
        except ImageError as error:
            self.close()
            raise NotHereError(f"User-mode Linux needs busybox: {error}") from None

    def version(self) -> str:
        """Return the kernel's version."""
        return self._release.partition("-")[0]

    def drive(self, scenario: Scenario, place: Place) -> str:
        """Boot, and let the initramfs do the work."""
        assert self._dir
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
            *QUICK,
            f"vblk.work={','.join(work)}",
        ]
        with ExitStack() as stack:
            process = ForeignDaemon("User-mode Linux", line)
            stack.callback(process.stop)
            stack.callback(_kill, process)

            def check() -> None:
                if not process.alive() and userland.END not in process.output():
                    raise CrashedError(process.fate(), process.output())

            follow(work, place, process.output, check)
            process.wait(5.0)
            return process.output()

    def close(self) -> None:
        """Remove the initramfs."""
        if self._dir:
            self._dir.remove()
            self._dir = None


@dataclass(frozen=True)
class Guest:
    """A machine for a Linux: its kernel, its QEMU, and how the disk gets there.

    `way` is that of a launcher. `words` are for the kernel's command line. The disk is plugged into
    a running clone if `plug` is "hot", and is there when a clone starts if it is "cold"; "boot"
    means that the kernel boots for each scenario.
    """

    way: str
    find: Callable[[], Qemu]
    kernel: Callable[[], Kernel] = kernels.of_the_image
    board: Board = "pc"
    words: str = images.KERNEL_ARGS
    plug: Literal["hot", "cold", "boot"] = "hot"

    @property
    def mmio(self) -> bool:
        """Return whether the disk is on virtio-mmio."""
        return self.board in ("microvm", "virt-mmio")

    @property
    def traced(self) -> bool:
        """Return whether QEMU's trace shows accesses to registers that the model does not see.

        A running clone is left out: the next one starts before its log is read.
        """
        return self.way == "vhost-user" and self.plug != "hot"

    @property
    def text(self) -> str:
        """Describe the disk and the board."""
        return f"{'virtio-mmio' if self.mmio else WAYS[self.way]}, board {self.board}"


class Linux(Launcher):
    """A kernel of Debian in a QEMU: booted once, and cloned for each scenario if that is possible.

    A clone gets the disk before its driver starts, so that the record has all accesses of it.
    """

    works = frozenset(userland.WORKS)
    implementation = "linux"

    def __init__(self, name: str, guest: Guest, legacy: bool = False) -> None:
        """`legacy` makes the kernel use the legacy interface of a transitional device."""
        self.name = name
        self.way = guest.way
        interface = "legacy" if legacy else "modern"
        self.description = f"Debian's Linux in a guest: {guest.text}, {interface} interface"
        self.traits = frozenset({interface, "pci" if guest.way.startswith("pci") else "vhost-user"})
        self.traits |= {"mmio"} if guest.mmio else set()
        self.traits |= frozenset() if legacy else {"packed"}
        self._guest = guest
        self._legacy = legacy
        self._dir: RunDir | None = None
        # The scenarios of a guest with a trace share its file.
        self.at_once = 1 if guest.traced else AT_ONCE
        self._config: MachineConfig | None = None
        self._ahead: Prefetch[Machine] | None = None
        self._taking = Lock()
        self._release = ""

    def prepare(self) -> None:
        """Find QEMU and the kernel, and boot it. NotHereError if something is missing."""
        if self._config:
            return
        guest = self._guest
        qemu = guest.find()
        kernel = guest.kernel()
        transport = "virtio_mmio" if guest.mmio else "virtio_pci"
        try:
            needed = kernel.needed((transport, "virtio_blk", "ext4"))
            self._dir = RunDir()
            initrd = self._dir.path / "initrd"
            userland.write(initrd, needed, kernel.busybox)
        except ImageError as error:
            raise NotHereError(f"a module of the kernel is missing: {error}") from None
        self._release = kernel.release
        words = [guest.words]
        words += ["vblk.legacy"] if self._legacy else []
        words += ["vblk.cold"] if guest.plug == "cold" else []
        config = MachineConfig(
            qemu,
            kernel.image,
            initrd,
            " ".join(words),
            memory=MEMORY,
            name=self.name,
            shared_memory=True,
            board=guest.board,
        )
        self._config = config if guest.plug == "boot" else self._boot(config)

    def _boot(self, config: MachineConfig) -> MachineConfig:
        """Boot a machine and save it. Return the configuration of its clones."""
        assert self._dir
        saved = Saved(self._dir.path / "ram", self._dir.path / "state")
        machine = Machine(replace(config, ram_file=saved.ram))
        try:
            machine.start()
            wait_for(
                lambda: userland.READY in machine.console_tail() or not machine.alive(),
                "the boot of the kernel",
                machine.console_tail,
                BOOT_DEADLINE,
            )
            machine.save(saved.state)
        except StuckError as error:
            raise MachineError(str(error.args[0]), str(error.args[1])) from None
        finally:
            machine.stop()
        return replace(config, saved=saved)

    def version(self) -> str:
        """Return the kernel's version."""
        return self._release.partition("-")[0]

    def facts(self) -> dict[str, str]:
        """Return the kernel's release and QEMU's version."""
        qemu = {"qemu": self._config.qemu.version_text} if self._config else {}
        return {"kernel": self._release, **qemu}

    @property
    def _trace(self) -> Path | None:
        """File of QEMU's trace, if there is one."""
        return self._dir.path / "trace" if self._dir and self._guest.traced else None

    def also_seen(self) -> Iterable[Event]:
        """Return the accesses to registers in QEMU's trace."""
        return trace.seen_in(self._trace) if self._trace else ()

    def drive(self, scenario: Scenario, place: Place) -> str:
        """Let a clone with the disk, or a new machine, do the work."""
        assert self._config
        work = self.work_of(scenario)
        config = replace(self._config, trace=self._trace)
        plug = self._guest.plug
        if plug == "boot":
            config = replace(config, kernel_args=f"{config.kernel_args} vblk.work={','.join(work)}")
        with ExitStack() as stack:
            machine = self._clone(config) if plug == "hot" else Machine(config)
            stack.callback(machine.stop)
            add = machine.add_vhost_user if self.way == "vhost-user" else machine.add_vfio_user
            disk = place.front_end
            if self._guest.mmio:
                disk = replace(disk, queue_size=MMIO_QUEUE_SIZE)
            add(place.socket, disk)
            if plug != "hot":
                machine.start()
            console = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
            console.settimeout(DEADLINE)
            console.connect(str(machine.console_path))
            if plug != "boot":
                console.sendall(f"{' '.join(work)}\n".encode())
            reader = Thread(target=_drain, args=(console,), daemon=True)
            reader.start()

            def check() -> None:
                if machine.alive():
                    return
                if found := CRASH.search(output()):
                    raise CrashedError(f"the kernel reports: {found[0]}", output())
                raise MachineError(machine.last_words())

            def output() -> str:
                return machine.console_tail(CONSOLE)

            follow(work, place, output, check)
            return output()

    def _clone(self, config: MachineConfig) -> Machine:
        """Return a running clone, and let the next one start in the background."""
        with self._taking:
            self._ahead = self._ahead or Prefetch(partial(_started, config), Machine.stop)
            return self._ahead.take()

    def close(self) -> None:
        """Stop the clones and remove the saved machine."""
        if self._ahead:
            self._ahead.close()
            self._ahead = None
        if self._dir:
            self._dir.remove()
            self._dir = None
            self._config = None


def _started(config: MachineConfig) -> Machine:
    """Return a running machine."""
    machine = Machine(config)
    try:
        machine.start()
    except BaseException:
        machine.stop()
        raise
    return machine


def _drain(console: socket.socket) -> None:
    """Read the console until it ends: QEMU waits for a reader, and has the text in its log."""
    with suppress(OSError):
        while console.recv(4096):
            pass


CONSOLE = 400
"""Lines of the console that are looked at."""

MMIO_QUEUE_SIZE = 1024
"""QueueSizeMax of each virtqueue of QEMU's virtio-mmio. vhost-user-blk has to know it: otherwise
its region for requests in flight is too small."""

BOOT_DEADLINE = 180.0
"""Seconds that the boot of a kernel may take on a busy machine."""

MEMORY = 128
"""Memory of the guest in MiB."""

WAYS = {
    "pci": "a PCI function over vfio-user",
    "pci-transitional": "a transitional PCI function over vfio-user",
    "vhost-user": "vhost-user-blk-pci",
}
