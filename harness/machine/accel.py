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
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TextIO

from harness.inputs import InputError, WrongValueError, build, json_of, read_text
from harness.machine.command import MachineConfig
from harness.machine.errors import MachineError
from harness.machine.machine import START_DEADLINE, Machine
from harness.machine.qemu import Qemu
from images.private import private_directory

PROMPT = "vblk# "
DEVICE = Path("/dev/kvm")
MAX_SIZE = 1 << 16  # bytes of the file with verdicts; there is one in it


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
    """Return the accelerator to use, without a trial if `requested` is not "auto".

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

    def trial() -> Accel:
        if progress:
            progress(f"trying KVM (up to {deadline:g} s, once for this host)")
        config = MachineConfig(
            qemu, kernel, initrd, kernel_args, accel="kvm", name="accelerator trial"
        )
        return _try(config, deadline)

    return _kept(cache_dir, _key(qemu), trial, deadline)


_tried: dict[str, Accel] = {}
"""Results of this process, for a cache that cannot be written."""


def _kept(cache_dir: Path, key: str, trial: Callable[[], Accel], deadline: float) -> Accel:
    """Return the result in the cache, else that of a trial, which is cached if possible."""
    path = cache_dir / "accel.json"
    found: Accel | None = None
    try:
        private_directory(cache_dir)
        with path.open("a+", encoding="utf-8") as file:
            _lock(file, 2 * deadline + START_DEADLINE)
            found = _load(path).get(key) or _tried.get(key)
            if found is None:
                found = trial()
                # Only the newest result: an earlier boot of the host never comes back.
                file.truncate(0)
                json.dump({key: asdict(found)}, file, indent=2)
                file.flush()
        return found
    except OSError:  # a cache that is read-only, full, or not there
        kept = found or _load(path).get(key) or _tried.get(key) or trial()
        _tried[key] = kept
        return kept


def _lock(file: TextIO, patience: float) -> None:
    """Lock a file, so that one process tries KVM. Return without it after `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.1)


def _key(qemu: Qemu) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{platform.release()} {boot} {qemu.path} {qemu.version_text}"


def _load(path: Path) -> dict[str, Accel]:
    """Return the verdicts in a file by key; none if the file is damaged."""
    try:
        return build(dict[str, Accel], json_of(path, read_text(path, MAX_SIZE)))
    except (InputError, WrongValueError):
        return {}  # empty, damaged, or not to be read: try again


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
