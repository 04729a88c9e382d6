"""The driver of U-Boot: commands on its console read and write the disk."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.diskspec import SECTOR
from harness.drivers.base import (
    AT_ONCE,
    USE,
    Launcher,
    NotHereError,
    Place,
    Scenario,
    StuckError,
    WrongDataError,
)
from harness.drivers.firmware import WAYS, package_version
from harness.machine import Machine, MachineConfig, Qemu
from harness.machine.command import Board
from harness.machine.errors import MachineError
from harness.machine.rundir import RunDir
from harness.witness import trace
from harness.witness.events import Event

PROMPT = "\n=> "
AUTOBOOT = "Hit any key to stop autoboot"
READ_FROM, WRITTEN_TO, COUNT = 8, 64, 8
"""Sectors that it reads, where it writes them, and their number."""
APART = 1 << 20
"""Bytes between the two buffers in memory."""
MEMORY = 256
"""Memory of the machine in MiB."""
KEPT = 1 << 20
"""Characters of the console that are kept."""


@dataclass(frozen=True)
class Build:
    """One build of U-Boot: its file, the board that it is made for, and an address of memory."""

    file: Path
    board: Board
    buffer: int


TOP = Path("/usr/lib/u-boot")
X86 = Build(TOP / "qemu-x86/u-boot.rom", "pc", 0x100_0000)
ARM64 = Build(TOP / "qemu_arm64/u-boot.bin", "virt", 0x4100_0000)


class UBoot(Launcher):
    """U-Boot as the firmware of a QEMU."""

    implementation = "u-boot"
    works = frozenset({USE, "reboot"})

    def __init__(self, name: str, way: str, build: Build, find: Callable[[], Qemu]) -> None:
        self.name = name
        self.way = way
        self.description = f"U-Boot on the board {build.board}, {WAYS[way]}"
        self.traits = frozenset({"modern", "pci" if way.startswith("pci") else "vhost-user"})
        self._build = build
        self._find = find
        self._qemu: Qemu | None = None
        self._dir: RunDir | None = None
        # QEMU's trace shows the accesses to registers that the model does not see. All scenarios
        # share its file.
        self._traced = way == "vhost-user"
        self.at_once = 1 if self._traced else AT_ONCE

    def prepare(self) -> None:
        """Find QEMU and U-Boot. NotHereError if one of them is missing."""
        if not self._build.file.is_file():
            raise NotHereError("U-Boot is missing: apt-get install u-boot-qemu")
        self._qemu = self._qemu or self._find()
        if self._traced:
            self._dir = self._dir or RunDir()

    def version(self) -> str:
        """Return the version of the package, "0" if U-Boot comes from elsewhere."""
        return package_version("u-boot-qemu")

    def facts(self) -> dict[str, str]:
        """Return QEMU's version."""
        return {"qemu": self._qemu.version_text} if self._qemu else {}

    @property
    def _trace(self) -> Path | None:
        """File of QEMU's trace, if there is one."""
        return self._dir.path / "trace" if self._dir else None

    def also_seen(self) -> Iterable[Event]:
        """Return the accesses to registers in QEMU's trace."""
        return trace.seen_in(self._trace) if self._trace else ()

    def close(self) -> None:
        """Remove the trace."""
        if self._dir:
            self._dir.remove()
            self._dir = None

    def drive(self, scenario: Scenario, place: Place) -> str:
        """Boot as often as the work asks for, and do the work each time."""
        assert self._qemu
        data = bytes(range(256)) * (COUNT * SECTOR // 256)
        place.fill(READ_FROM, data)
        config = MachineConfig(
            self._qemu,
            shared_memory=True,
            board=self._build.board,
            memory=MEMORY,
            bios=self._build.file,
            trace=self._trace,
        )
        with ExitStack() as stack:
            machine = Machine(config)
            stack.callback(machine.stop)
            add = machine.add_vhost_user if self.way == "vhost-user" else machine.add_vfio_user
            add(place.socket, place.front_end)
            machine.start()
            console = stack.enter_context(closing(_Console(machine, place)))
            for number in range(1 + scenario.work.count("reboot")):
                if number:
                    machine.qmp("set-action", reboot="reset")
                    machine.qmp("system_reset")
                console.boot()
                _work(console, place.spec.capacity, not place.spec.read_only, self._build.buffer)
            if not place.spec.read_only and place.read(WRITTEN_TO, COUNT) != data:
                raise WrongDataError("what was written is not on the disk", console.text)
            return console.text


def _work(console: _Console, capacity: int, writes: bool, buffer: int) -> None:
    """Read both ends of the disk; with `writes`, copy sectors and compare them."""
    other = buffer + APART
    console.run("virtio scan")
    console.run(f"virtio read {other:x} {capacity - COUNT:x} {COUNT:x}", "read: OK")
    console.run(f"virtio read {buffer:x} {READ_FROM:x} {COUNT:x}", "read: OK")
    if writes:
        console.run(f"virtio write {buffer:x} {WRITTEN_TO:x} {COUNT:x}", "written: OK")
        console.run(f"virtio read {other:x} {WRITTEN_TO:x} {COUNT:x}", "read: OK")
        size = COUNT * SECTOR
        same = f"{size} byte(s) were the same"
        if same not in console.run(f"cmp.b {buffer:x} {other:x} {size:x}"):
            raise WrongDataError("other data was read than written", console.text)


class _Console:
    """U-Boot's console: commands, and what it answers."""

    def __init__(self, machine: Machine, place: Place) -> None:
        self.text = ""
        self._place = place
        self._seen = 0
        self._machine = machine
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(machine.console_path))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def boot(self) -> None:
        """Stop the boot at the prompt. StuckError if there is none in time."""
        self._await(AUTOBOOT)
        self._socket.sendall(b" ")
        self._await(PROMPT)

    def run(self, command: str, good: str = "") -> str:
        """Run a command, and return its output. StuckError if that has no `good` text."""
        self._socket.sendall(f"{command}\n".encode())
        answer = self._await(PROMPT)
        if good not in answer:
            raise StuckError(f"the command {command!r} failed", self.text)
        return answer

    def _await(self, wanted: str) -> str:
        """Return the output up to a text."""

        def seen() -> bool:
            self._read()
            return wanted in self.text[self._seen :]

        self._place.wait_for(seen, repr(wanted.strip()), lambda: self.text)
        end = self.text.index(wanted, self._seen) + len(wanted)
        answer, self._seen = self.text[self._seen : end], end
        return answer

    def _read(self) -> None:
        """Add what the console has written. MachineError if QEMU is gone or U-Boot is endless."""
        with suppress(BlockingIOError):
            self.text += self._socket.recv(65536).decode(errors="replace").replace("\r", "")
        if not self._machine.alive():
            raise MachineError(self._machine.last_words())
        if len(self.text) > KEPT:
            raise StuckError(f"the console has more than {KEPT} characters", self.text[-KEPT:])
