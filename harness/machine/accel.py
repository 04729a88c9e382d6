"""Choice of the accelerator: KVM only if a guest has booted on it.

On some hosts (often nested ones) /dev/kvm opens and creates a VM and a vCPU, but
the guest does not run. So the only proof is the prompt of a guest.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from harness.machine.command import MachineConfig
from harness.machine.errors import MachineError
from harness.machine.machine import Machine
from harness.machine.qemu import Qemu

PROMPT = "vblk# "
DEVICE = Path("/dev/kvm")


@dataclass(frozen=True)
class Accel:
    """An accelerator of QEMU, and the reason for its choice."""

    name: Literal["tcg", "kvm"]
    reason: str


def choose_accel(
    requested: Literal["auto", "kvm", "tcg"],
    qemu: Qemu,
    kernel: Path,
    initrd: Path,
    cache_dir: Path,
    deadline: float = 20.0,
    progress: Callable[[str], None] | None = None,
    kernel_args: str = "console=ttyS0 panic=-1",
) -> Accel:
    """Return the accelerator to use. Another `requested` one than "auto" is not tried.

    "auto" boots the guest once on KVM and waits `deadline` seconds for its
    prompt. The result is cached in `cache_dir` for this QEMU and this boot of the
    host; processes that ask at the same time wait for one trial. `progress` is
    called with a line before a trial.
    """
    if requested != "auto":
        return Accel(requested, "asked for")
    if not DEVICE.exists():
        return Accel("tcg", f"{DEVICE} does not exist")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Accel("tcg", f"{DEVICE} may not be opened by this user")

    cache_dir.mkdir(parents=True, exist_ok=True)
    key = _key(qemu)
    with (cache_dir / "accel.json").open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        verdicts = _load(Path(file.name))
        if key not in verdicts:
            if progress:
                progress(f"trying KVM (up to {deadline:g} s, once for this host)")
            config = MachineConfig(
                qemu, kernel, initrd, kernel_args, accel="kvm", name="accelerator trial"
            )
            # Only the newest result is kept: an earlier boot of the host never comes back.
            verdicts = {key: asdict(_try(config, deadline))}
            file.truncate(0)
            json.dump(verdicts, file, indent=2)
        return Accel(**verdicts[key])


def _key(qemu: Qemu) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{platform.release()} {boot} {qemu.path} {qemu.version_text}"


def _load(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return {}  # empty, or damaged: try again


def _try(config: MachineConfig, deadline: float) -> Accel:
    begin = time.monotonic()
    try:
        with Machine(config) as machine:
            while time.monotonic() < begin + deadline:
                if PROMPT in machine.console_tail():
                    took = time.monotonic() - begin
                    return Accel("kvm", f"a guest booted on it in {took:.1f} s")
                machine.check()
                time.sleep(0.1)
    except MachineError as error:
        return Accel("tcg", f"no guest boots on KVM here: {error}")
    return Accel("tcg", f"no guest boots on KVM here: no prompt within {deadline:g} s")
