"""The names of drivers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import images
from harness.drivers import userfile
from harness.drivers.base import Launcher
from harness.drivers.blkio import Libblkio
from harness.drivers.firmware import Ovmf, SeaBios, arm_qemu, installed_qemu, newest_qemu
from harness.drivers.kernels import WORDS_ARM64, of_the_set
from harness.drivers.linux import Guest, Linux, UserModeLinux
from harness.drivers.reference import Reference
from harness.drivers.uboot import ARM64, X86, UBoot
from harness.machine.command import Board


def _arm64(board: Board) -> Guest:
    kernel = partial(of_the_set, "linux-arm64")
    return Guest("vhost-user", arm_qemu, kernel, board, WORDS_ARM64, "cold")


MAKERS: dict[str, Callable[[], Launcher]] = {
    "self": lambda: Reference("self", "model-pci"),
    "self-vhost-user": lambda: Reference("self-vhost-user", "model"),
    "self-legacy": lambda: Reference("self-legacy", "model-pci-legacy"),
    "seabios": lambda: SeaBios("seabios", "pci", "q35", newest_qemu),
    "seabios-transitional": lambda: SeaBios(
        "seabios-transitional", "pci-transitional", "pc", newest_qemu
    ),
    "seabios-vhost-user": lambda: SeaBios("seabios-vhost-user", "vhost-user", "pc", installed_qemu),
    "ovmf": lambda: Ovmf("ovmf", "pci", "q35", newest_qemu),
    "ovmf-transitional": lambda: Ovmf(
        "ovmf-transitional", "pci-transitional", "q35", newest_qemu, "legacy"
    ),
    "uboot-x86": lambda: UBoot("uboot-x86", "pci", X86, newest_qemu),
    "uboot-arm64": lambda: UBoot("uboot-arm64", "vhost-user", ARM64, arm_qemu),
    "uml": UserModeLinux,
    "linux": lambda: Linux("linux", Guest("pci", newest_qemu)),
    "linux-transitional": lambda: Linux(
        "linux-transitional", Guest("pci-transitional", newest_qemu)
    ),
    "linux-legacy": lambda: Linux(
        "linux-legacy", Guest("pci-transitional", newest_qemu), legacy=True
    ),
    "linux-vhost-user": lambda: Linux("linux-vhost-user", Guest("vhost-user", installed_qemu)),
    "linux-microvm": lambda: Linux(
        "linux-microvm",
        Guest(
            "vhost-user",
            installed_qemu,
            board="microvm",
            words=images.KERNEL_ARGS_MICROVM,
            plug="boot",
        ),
    ),
    "linux-trixie": lambda: Linux(
        "linux-trixie", Guest("pci", newest_qemu, partial(of_the_set, "linux-trixie"))
    ),
    "linux-sid": lambda: Linux(
        "linux-sid", Guest("pci", newest_qemu, partial(of_the_set, "linux-sid"))
    ),
    "linux-arm64": lambda: Linux("linux-arm64", _arm64("virt")),
    "linux-arm64-mmio": lambda: Linux("linux-arm64-mmio", _arm64("virt-mmio")),
    "libblkio": Libblkio,
}


class UnknownDriverError(Exception):
    """A file of drivers cannot be used; the message is one line."""


def makers(path: Path | None = None) -> dict[str, Callable[[], Launcher]]:
    """Return the drivers by name, with those of a user's file.

    UnknownDriverError, in one line, for a file that is not as it has to be.
    """
    if path is None:
        return dict(MAKERS)
    try:
        own = userfile.load(path)
    except userfile.DriverFileError as error:
        raise UnknownDriverError(str(error)) from None
    for name in own:
        if name in MAKERS:
            raise UnknownDriverError(
                f"{path}: there is a driver {name!r} already; use another name"
            )
    return {**MAKERS, **own}
