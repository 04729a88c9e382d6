"""The drivers of firmware: a program that it boots from the disk reads and writes the disk.

SeaBIOS loads a boot sector, which uses INT 13h. OVMF starts a program of UEFI.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from harness.diskspec import SECTOR
from harness.drivers import uefi
from harness.drivers.base import (
    AT_ONCE,
    USE,
    CannotError,
    Launcher,
    NotHereError,
    Place,
    Scenario,
    StuckError,
    WrongDataError,
)
from harness.drivers.uefi import BAD, GOOD, OTHER, PREFIX
from harness.machine import Machine, MachineConfig, Qemu, find_qemu
from harness.machine.command import Board, Interface
from harness.machine.errors import MachineError
from images import ImageError, foreign

READ_FROM, WRITTEN_TO, COUNT = 8, 64, 8
"""Sectors that the boot sector reads, where it writes them, and their number."""

QUERY_DEADLINE = 10.0
"""Seconds that a question about a package may take."""

LOADED_AT = 0x7C00
PACKETS = 0x180
"""Offset in the boot sector of the address packets of INT 13h."""


def boot_sector(writes: bool) -> bytes:
    """Return a boot sector that reads sectors, and with `writes` copies and compares them.

    It writes GOOD, BAD or (if the data differs) OTHER to the first serial port, and halts.
    """
    code = bytearray(b"\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0\xbc\x00\x7c\xfc")
    # xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax; mov sp,0x7c00; cld
    jumps: list[int] = []
    differs = 0

    def place(offset: int) -> bytes:
        return (LOADED_AT + offset).to_bytes(2, "little")

    def call(function: int, packet: int) -> None:
        code.extend(b"\xbe" + place(PACKETS + 16 * packet))  # mov si, packet
        code.extend(b"\xb8\x00" + bytes([function]) + b"\xcd\x13\x0f\x82\x00\x00")
        # mov ax, function << 8; int 0x13; jc failed
        jumps.append(len(code) - 2)

    call(0x42, 0)
    if writes:
        call(0x43, 1)
        call(0x42, 2)
        code.extend(b"\xbe\x00\x80\xbf\x00\x90\xb9\x00\x08\xf3\xa7\x0f\x85\x00\x00")
        # mov si,0x8000; mov di,0x9000; mov cx,0x800; repe cmpsw; jne differs
        differs = len(code) - 2
    texts = len(code) + 64
    code.extend(b"\xbe" + place(texts) + b"\xeb\x08")  # mov si, good; jmp print
    for at in jumps:
        code[at : at + 2] = (len(code) - at - 2).to_bytes(2, "little")
    bad = texts + len(GOOD) + 2
    code.extend(b"\xbe" + place(bad) + b"\xeb\x03")  # failed: mov si, bad; jmp print
    if differs:
        code[differs : differs + 2] = (len(code) - differs - 2).to_bytes(2, "little")
    code.extend(b"\xbe" + place(bad + len(BAD) + 2))  # differs: mov si, other
    code.extend(b"\xac\x08\xc0\x74\x06\xba\xf8\x03\xee\xeb\xf5\xfa\xf4\xeb\xfd")
    # print: lodsb; or al,al; jz end; mov dx,0x3f8; out dx,al; jmp print; end: cli; hlt; jmp end
    sector = code.ljust(texts, b"\0") + f"{GOOD}\n\0{BAD}\n\0{OTHER}\n\0".encode()
    sector = sector.ljust(PACKETS, b"\0")
    for segment, lba in ((0x800, READ_FROM), (0x800, WRITTEN_TO), (0x900, WRITTEN_TO)):
        sector += b"\x10\0" + COUNT.to_bytes(2, "little") + b"\0\0" + segment.to_bytes(2, "little")
        sector += lba.to_bytes(8, "little")
    return bytes(sector.ljust(510, b"\0") + b"\x55\xaa")


@dataclass(frozen=True)
class Written:
    """Data that has to be on the disk after the work, and its first sector."""

    sector: int
    data: bytes


class Firmware(Launcher):
    """A firmware in a QEMU that boots a program from the disk, which does the work.

    The program says GOOD, BAD or OTHER on the first serial port at its end.
    """

    works = frozenset({USE, "reboot"})
    at_once = AT_ONCE
    title: str
    no_disk: str
    """Text on the first serial port if the firmware finds nothing to boot from."""
    memory: int
    """Memory of the machine in MiB."""
    bios: Path | None = None
    """The file of the firmware, unless it is QEMU's own."""

    def __init__(
        self,
        name: str,
        way: str,
        board: Board,
        find: Callable[[], Qemu],
        interface: Interface = "modern",
    ) -> None:
        """`interface` is the one that the driver uses."""
        self.name = name
        self.way = way
        self.description = f"{self.title} on the board {board}, {WAYS[way]}"
        self.traits = frozenset({interface, "pci" if way.startswith("pci") else "vhost-user"})
        self._board: Board = board
        self._find = find
        self._qemu: Qemu | None = None

    @abstractmethod
    def fill(self, scenario: Scenario, place: Place) -> Written:
        """Write a program to the disk, and data to work on. Return what it is to write, where."""

    def prepare(self) -> None:
        """Find QEMU. NotHereError if there is none."""
        self._qemu = self._qemu or self._find()

    def facts(self) -> dict[str, str]:
        """Return QEMU's version."""
        return {"qemu": self._qemu.version_text} if self._qemu else {}

    def drive(self, scenario: Scenario, place: Place) -> str:
        """Boot from the disk, as often as the work asks for."""
        assert self._qemu
        written = self.fill(scenario, place)
        config = MachineConfig(
            self._qemu,
            shared_memory=True,
            board=self._board,
            memory=self.memory,
            bios=self.bios,
            interface="modern",
        )
        with ExitStack() as stack:
            machine = Machine(config)
            stack.callback(machine.stop)
            add = machine.add_vhost_user if self.way == "vhost-user" else machine.add_vfio_user
            add(place.socket, place.front_end)
            machine.start()
            boots = 1 + scenario.work.count("reboot")
            for number in range(boots):
                if number:
                    machine.qmp("set-action", reboot="reset")
                    machine.qmp("system_reset")
                self._await_boot(machine, place, number + 1)
            if not place.spec.read_only:
                count = len(written.data) // SECTOR
                if place.read(written.sector, count) != written.data:
                    raise WrongDataError(
                        "what was written is not on the disk", machine.console_tail()
                    )
            return machine.console_tail()

    def _await_boot(self, machine: Machine, place: Place, number: int) -> None:
        """Wait until the program has run for the given time, or the firmware finds no disk."""

        def over() -> bool:
            if not machine.alive():
                raise MachineError(machine.last_words())
            text = machine.console_tail()
            return text.count(PREFIX) >= number or self.no_disk in text

        place.wait_for(over, f"boot {number} from the disk", machine.console_tail)
        text = machine.console_tail()
        if OTHER in text:
            raise WrongDataError("other data was read than written", text)
        if BAD in text:
            raise StuckError("a read or write failed", text)
        if text.count(PREFIX) < number:
            raise StuckError(f"{self.title} could not boot from the disk", text)


class SeaBios(Firmware):
    """SeaBIOS in a QEMU: the function over vfio-user, or vhost-user-blk-pci."""

    title = "SeaBIOS"
    implementation = "seabios"
    no_disk = "No bootable device."
    memory = 64

    def version(self) -> str:
        """Return the version in the firmware's file, or that of QEMU if it is not found."""
        assert self._qemu
        for top in (self._qemu.path.parents[1] / "root/usr", Path("/usr")):
            file = top / "share/seabios/bios-256k.bin"
            if file.is_file():
                found = re.search(rb"(\d+\.\d+\.\d+)-debian", file.read_bytes())
                if found:
                    return found[1].decode()
        return "0"

    def check(self, scenario: Scenario) -> None:
        """Raise CannotError also for blocks of a size that BIOS calls do not support."""
        super().check(scenario)
        if scenario.spec().logical_block_size not in (None, SECTOR):
            raise CannotError("SeaBIOS boots only from a disk with blocks of 512 bytes")

    def fill(self, scenario: Scenario, place: Place) -> Written:
        """Write the boot sector, and sectors that it copies."""
        place.fill(0, boot_sector(not place.spec.read_only))
        data = bytes(range(256)) * 2 * COUNT
        place.fill(READ_FROM, data)
        return Written(WRITTEN_TO, data)


class Ovmf(Firmware):
    """OVMF (EDK II) in a QEMU: it starts a program of UEFI from a FAT volume."""

    title = "OVMF"
    implementation = "edk2"
    no_disk = "EFI Internal Shell"
    works = frozenset({USE, "reboot", "rebind"})
    memory = 128
    bios = Path("/usr/share/ovmf/OVMF.fd")

    def prepare(self) -> None:
        """Find QEMU and the firmware. NotHereError if one of them is missing."""
        if not self.bios.is_file():
            raise NotHereError("OVMF is missing: apt-get install ovmf")
        super().prepare()

    def version(self) -> str:
        """Return the version of the package, "0" if the firmware comes from elsewhere."""
        return package_version("ovmf")

    def fill(self, scenario: Scenario, place: Place) -> Written:
        """Write the volume with the program, and data that it copies."""
        spec = place.spec
        block = spec.logical_block_size or SECTOR
        again = self.work_of(scenario).count("rebind")
        program = uefi.program(block, spec.capacity, not spec.read_only, again)
        for sector, part in uefi.volume(block, spec.capacity, program):
            place.fill(sector, part)
        data = bytes(range(256)) * (uefi.LENGTH // 256)
        place.fill(spec.capacity - uefi.READ_FROM // SECTOR, data)
        return Written(spec.capacity - uefi.WRITTEN_TO // SECTOR, data)


def package_version(name: str) -> str:
    """Return the version of an installed Debian package without its epoch, "0" if there is none."""
    try:
        done = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Version}", name],
            capture_output=True,
            text=True,
            timeout=QUERY_DEADLINE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "0"
    return done.stdout.rpartition(":")[2]


WAYS = {
    "pci": "a modern PCI function over vfio-user",
    "pci-transitional": "a transitional PCI function over vfio-user",
    "vhost-user": "vhost-user-blk-pci",
}


def newest_qemu() -> Qemu:
    """Return QEMU 11 from its locked packages. NotHereError if it cannot be downloaded."""
    try:
        return find_qemu(str(foreign.ensure("qemu-11") / "bin/qemu-system-x86_64"))
    except (ImageError, MachineError) as error:
        raise NotHereError(
            f"needs QEMU 10.1 or newer; run: vblk image foreign qemu-11 ({error})"
        ) from None


def installed_qemu() -> Qemu:
    """Return the QEMU of the machine. NotHereError if there is none."""
    try:
        return find_qemu()
    except MachineError as error:
        raise NotHereError(str(error)) from None


def arm_qemu() -> Qemu:
    """Return the QEMU for arm64 of the machine. NotHereError if there is none."""
    program = "qemu-system-aarch64"
    if shutil.which(program) is None:
        raise NotHereError(f"{program} is not on PATH: apt-get install qemu-system-arm")
    try:
        return find_qemu(program)
    except MachineError as error:
        raise NotHereError(str(error)) from None
