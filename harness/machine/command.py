"""What kind of machine, and the QEMU command line that makes it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.machine.blockgraph import BlockGraph
from harness.machine.qemu import Qemu

NETWORK_SLOT = 3


@dataclass(frozen=True)
class MachineConfig:
    """A machine without its disks.

    `memory` is in MiB. With `ssh` the guest has a network card whose only way
    out is a port of 127.0.0.1, chosen by the kernel, that leads to its port 22.
    `bios` replaces the firmware, for a machine whose CPU boots nothing.
    """

    qemu: Qemu
    kernel: Path | None = None
    initrd: Path | None = None
    kernel_args: str = ""
    bios: Path | None = None
    accel: Literal["tcg", "kvm"] = "tcg"
    memory: int = 256
    ssh: bool = False
    name: str = "guest"


@dataclass(frozen=True)
class Paths:
    """The files of a machine in its run directory; names are short for the sake of sun_path."""

    directory: Path

    @property
    def console(self) -> Path:
        return self.directory / "console"

    @property
    def stream(self) -> Path:
        return self.directory / "stream"

    @property
    def qmp(self) -> Path:
        return self.directory / "qmp"

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"

    @property
    def stderr(self) -> Path:
        return self.directory / "stderr.log"


def command_line(config: MachineConfig, paths: Paths, disks: Iterable[BlockGraph]) -> list[str]:
    """QEMU's command line, all but our own QMP session, which `Process` adds."""
    line = [
        str(config.qemu.path),
        *("-name", config.name.replace(",", ",,")),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none", "-vga", "none"),
        *("-machine", "pc"),
        *("-accel", config.accel),
        *("-cpu", "host" if config.accel == "kvm" else "max"),
        *("-smp", "1", "-m", str(config.memory)),
        # Stopped, until `Machine.start` is ready for what it may do in its first millisecond.
        "-S",
        # A kernel that panics reboots (panic=-1); a reboot ends QEMU: so a panic is seen at once.
        "-no-reboot",
        *_socket("console", paths.console, f",logfile={_escape(paths.console_log)}"),
        *("-serial", "chardev:console"),
        *_socket("stream", paths.stream),
        *("-serial", "chardev:stream"),
        *_socket("visitor", paths.qmp),
        *("-mon", "chardev=visitor,mode=control"),
    ]
    if config.bios:
        line += ["-bios", str(config.bios)]
    if config.kernel:
        line += ["-kernel", str(config.kernel), "-append", config.kernel_args]
    if config.initrd:
        line += ["-initrd", str(config.initrd)]
    if config.ssh:
        # Port 0: the kernel chooses, so that no two machines can want the same one.
        line += ["-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"]
        line += ["-device", f"vmxnet3,netdev=net,addr=0x{NETWORK_SLOT:x},romfile="]
    for disk in disks:
        for options in disk.objects:
            line += ["-object", json.dumps(options)]
        for options in disk.nodes:
            line += ["-blockdev", json.dumps(options)]
        line += ["-device", json.dumps(disk.device)]
    return line


def _socket(name: str, path: Path, more: str = "") -> list[str]:
    return ["-chardev", f"socket,id={name},path={_escape(path)},server=on,wait=off{more}"]


def _escape(path: Path) -> str:
    return str(path).replace(",", ",,")
