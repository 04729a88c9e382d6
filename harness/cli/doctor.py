"""`vblk doctor`: what is installed, what is missing, and what installs it."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import images
from harness.cli.means import say
from harness.machine import Machine, MachineConfig, MachineError, Qemu, choose_accel, find_qemu
from harness.machine.accel import DEVICE

State = Literal["ok", "note", "MISSING"]

# Program, Debian package, purpose, and whether tests need it.
PROGRAMS = (
    ("setpriv", "util-linux", "QEMU cannot outlive the tests", True),
    (
        "ssh",
        "openssh-client",
        "a shell with `vblk ssh`; `vblk ssh -- COMMAND` works without",
        False,
    ),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report. MISSING: tests cannot run without it."""

    state: State
    what: str
    text: str


def doctor(arguments: argparse.Namespace) -> int:
    """Print the findings; return 1 if something is missing."""
    findings = list(examine(arguments.qemu))
    for finding in findings:
        print(f"{finding.state:8}{finding.what:12}{finding.text}")
    return 1 if any(finding.state == "MISSING" for finding in findings) else 0


def examine(qemu_path: str | None) -> Iterator[Finding]:
    """Yield all findings. Nothing is installed or built; KVM is tried if that has not been done."""
    yield Finding("ok", "python", f"{platform.python_version()}, {sys.executable}")
    qemu = None
    try:
        qemu = find_qemu(qemu_path)
        # One that knows its version may still not run.
        with Machine(MachineConfig(qemu, memory=16, name="doctor", parked=True)):
            pass
        yield Finding("ok", "qemu", f"{qemu.version_text}, {qemu.path}")
    except MachineError as error:
        yield Finding("MISSING", "qemu", str(error))
    for program, package, purpose, needed in PROGRAMS:
        location = shutil.which(program)
        if location:
            yield Finding("ok", program, location)
        else:
            state: State = "MISSING" if needed else "note"
            text = f"not on PATH ({purpose}); install it: apt-get install {package}"
            yield Finding(state, program, text)
    status = images.status()
    yield _image(status)
    if qemu:
        yield _accelerator(qemu, status.state == "built")


def _image(status: images.Status) -> Finding:
    if status.state == "built":
        return Finding("ok", "image", f"built, {status.size >> 20} MiB, {status.path}")
    if status.state == "unusable":
        text = f"the cache cannot be read ({status.trouble})"
        return Finding(
            "MISSING", "image", f"{text}: put that right, or set VBLK_CACHE to a directory of yours"
        )
    tools = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
    if tools:
        text = f"{status.state}, and cannot be built: {' and '.join(tools)} not on PATH"
        return Finding(
            "MISSING", "image", f"{text}; build it on Debian 12, then copy {status.path}"
        )
    return Finding(
        "note", "image", f"{status.state}; the first test builds it, or: vblk image build"
    )


def _accelerator(qemu: Qemu, built: bool) -> Finding:
    if not built and os.access(DEVICE, os.R_OK | os.W_OK):
        text = f"{DEVICE} can be opened; once the image is built, a trial boot decides about KVM"
        return Finding("note", "accelerator", text)
    image = images.ensure(say) if built else None
    accel = choose_accel(
        "auto",
        qemu,
        # Without an image KVM cannot be tried, and nothing is booted.
        image.kernel if image else DEVICE,
        image.initrd if image else DEVICE,
        images.cache_dir(),
        progress=say,
        kernel_args=images.KERNEL_ARGS,
    )
    return Finding("ok", "accelerator", f"{accel.name}: {accel.reason}")
