"""`vblk bench`: how soon each way to a device serves, and how fast its driver is.

Seconds and rates say little without the machine they were taken on, so each
comes with its ratio to what QEMU alone needs, in the same run, to start.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import images
from harness.cli.errors import UsageError
from harness.cli.means import find, say
from harness.diskspec import SECTOR, DiskSpec
from harness.driver.errors import DriverError
from harness.driver.interface import Driver, Request
from harness.machine import Machine, MachineConfig, Qemu, find_qemu
from harness.machine.templates import Template
from harness.targets.daemon import Daemon
from harness.targets.guest.disk import GuestDisk
from harness.targets.guest.guest import Guest, Means
from harness.targets.guest.template import template
from harness.targets.guest.variants import VARIANTS
from harness.targets.qtest import QtestTarget
from harness.targets.vhost_user import VhostUserSocket
from harness.virtio.blk import RequestType, Status

BOOT_DEADLINE = 120.0  # seconds
REPEAT_DEADLINE = 120.0
READ = Request(RequestType.IN, receive=SECTOR)

SPANS = {
    "qtest-pci": "QEMU start to DRIVER_OK",
    "vhost-user": "connect to first read",
    "guest-pci": "QEMU start to first read",
    "clone": "QEMU start to first read",
}
"""The targets that are measured, and which stretch of each counts as its start.

"clone" is guest-pci again, its guest cloned and not booted; the disk is plugged in then.
"""


@dataclass(frozen=True)
class Sample:
    """One target in one run: seconds until it served, reads of 512 bytes a second.

    `memory` is what QEMU then has for itself alone, in MiB.
    """

    seconds: float
    rate: float
    memory: float = 0.0


def bench(arguments: argparse.Namespace) -> int:
    """Measure the targets named, or all, in turn; print the medians."""
    if arguments.runs < 1 or arguments.requests < 1:
        raise UsageError("--runs and --requests take 1 or more")
    for name in arguments.targets:
        if name not in SPANS:
            raise UsageError(f"{name} is not measured; these are: {', '.join(SPANS)}")
    names = [name for name in SPANS if name in arguments.targets or not arguments.targets]
    qemu = find_qemu(arguments.qemu)
    means = find(arguments) if {"guest-pci", "clone"} & set(names) else None
    measures: dict[str, Callable[[int], Sample]] = {
        "qtest-pci": partial(_qtest, QtestTarget("qtest-pci", arguments.qemu)),
        "vhost-user": _vhost_user,
    }
    greetings = []
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    with TemporaryDirectory(prefix="bench-", dir=images.cache_dir()) as scratch:
        if means:
            measures["guest-pci"] = partial(_guest, means)
        made = _template(means, Path(scratch)) if means and "clone" in names else None
        if means and made:
            measures["clone"] = partial(_clone, means, made)
        for run in range(arguments.runs):
            say(f"run {run + 1} of {arguments.runs}")
            greetings.append(_greeting(qemu))
            for name in names:
                samples[name].append(measures[name](arguments.requests))

    guests = f", guests on {means.accel.name} ({means.accel.reason})" if means else ""
    print(f"{qemu.version_text}{guests}")
    print(f"median of {arguments.runs} (least to most)")
    greeting = statistics.median(greetings)
    _print("QEMU start to QMP greeting", greetings, "s", "1")
    for name in names:
        seconds = [sample.seconds for sample in samples[name]]
        rates = [sample.rate for sample in samples[name]]
        ratio = f"{statistics.median(seconds) / greeting:.2f}"
        meanwhile = f"{statistics.median(rates) * greeting:.0f} in the time of a greeting"
        _print(f"{name}: {SPANS[name]}", seconds, "s", ratio)
        _print(f"{name}: 512-byte reads, one at a time", rates, "/s", meanwhile)
    if made:
        _print_clones(made, samples)
    return 0


def _print_clones(made: Template, samples: dict[str, list[Sample]]) -> None:
    """What is said of clones alone: memory, what the template took, and next to a boot."""
    memory = [sample.memory for sample in samples["clone"]]
    _print("clone: private memory at the first read", memory, "MiB", "-")
    print(f"{'template: made and tried, once':42}{made.facts['seconds']:7.1f} s")
    if "guest-pci" in samples:
        booted, cloned = (
            statistics.median(sample.seconds for sample in samples[name])
            for name in ("guest-pci", "clone")
        )
        print(f"{'clone: first read, next to a boot':42}1/{booted / cloned:.1f}")


def _print(what: str, values: Sequence[float], unit: str, ratio: str) -> None:
    digits = 0 if min(values) > 100 else 3
    spread = f"({min(values):.{digits}f} to {max(values):.{digits}f})"
    print(f"{what:42}{statistics.median(values):7.{digits}f} {unit:3} {spread:17} ratio {ratio}")


def _greeting(qemu: Qemu) -> float:
    """Seconds until a QEMU without disks has greeted over QMP, and runs its parked CPU."""
    machine = Machine(MachineConfig(qemu, name="greeting", parked=True))
    begin = time.monotonic()
    try:
        machine.start()
        return time.monotonic() - begin
    finally:
        machine.stop()


def _qtest(target: QtestTarget, requests: int) -> Sample:
    target.facts()  # to find QEMU is not part of its start
    begin = time.monotonic()
    disk = target.plug(DiskSpec())
    try:
        disk.driver.start()
        seconds = time.monotonic() - begin
        return Sample(seconds, _rate(disk.driver, requests))
    finally:
        disk.unplug()


def _vhost_user(requests: int) -> Sample:
    daemon = Daemon()
    try:
        export = daemon.export(DiskSpec())
        target = VhostUserSocket(str(export.path))
        begin = time.monotonic()
        disk = target.plug(DiskSpec(), writes=False)
        try:
            disk.driver.start()
            disk.driver.request(READ)
            seconds = time.monotonic() - begin
            return Sample(seconds, _rate(disk.driver, requests))
        finally:
            disk.unplug()
    finally:
        daemon.stop()


def _guest(means: Means, requests: int) -> Sample:
    begin = time.monotonic()
    guest = Guest.boot(means, "serial", BOOT_DEADLINE)
    try:
        disk = GuestDisk(guest, DiskSpec())
        disk.driver.start()
        disk.driver.request(READ)
        seconds = time.monotonic() - begin
        return Sample(seconds, _rate(disk.driver, requests))
    finally:
        guest.end()


def _template(means: Means, directory: Path) -> Template:
    """A new template, whatever the cache has."""
    return template(means, "serial", VARIANTS["guest-pci"], BOOT_DEADLINE, say, directory)


def _clone(means: Means, made: Template, requests: int) -> Sample:
    begin = time.monotonic()
    guest = Guest.clone(made, means, "serial", BOOT_DEADLINE)
    try:
        disk = GuestDisk(guest, DiskSpec())
        disk.driver.start()
        disk.driver.request(READ)
        seconds = time.monotonic() - begin
        memory = private_memory(guest.machine.pid)
        return Sample(seconds, _rate(disk.driver, requests), memory)
    finally:
        guest.end()


def private_memory(pid: int | None) -> float:
    """MiB that would be free if that process ended: what it shares with nobody."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    lines = [line.split() for line in rollup.splitlines() if line.startswith("Private_")]
    return sum(int(kib) for _, kib, _ in lines) / 1024


def _rate(driver: Driver, requests: int) -> float:
    """Reads a second, one at a time. DriverError if one of them fails."""
    repetition = driver.repeat(READ, requests, timeout=REPEAT_DEADLINE)
    if repetition.statuses != {Status.OK: requests}:
        raise DriverError(f"not every read succeeded: {repetition.statuses} by status")
    return repetition.count / repetition.seconds
