"""QEMU, image and accelerator for booting a guest, as the arguments ask."""

from __future__ import annotations

import argparse
import sys

import images
from harness.machine import choose_accel, find_qemu
from harness.targets.guest.guest import Means


def find(arguments: argparse.Namespace) -> Means:
    """Return QEMU, the image (built if needed) and the accelerator.

    Raise MachineError or ImageError.
    """
    qemu = find_qemu(arguments.qemu)
    image = images.ensure(say)
    accel = choose_accel(
        arguments.accel,
        qemu,
        image.kernel,
        image.initrd,
        images.cache_dir(),
        progress=say,
        kernel_args=images.KERNEL_ARGS,
    )
    return Means(qemu, image, accel)


def say(line: str) -> None:
    """Print a line about progress on stderr."""
    print(f"vblk: {line}", file=sys.stderr, flush=True)
