"""`vblk bench`: the time until a target serves, and the speed of its driver.

Seconds and rates mean little without the machine on which they were measured. So each is printed
with its ratio to the time that QEMU alone needs to start, in the same run.
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
from harness.robustness.device_process import cpu_seconds
from harness.targets.daemon import Daemon
from harness.targets.guest.disk import GuestDisk
from harness.targets.guest.guest import Guest, Means
from harness.targets.guest.template import template
from harness.targets.guest.variants import VARIANTS
from harness.targets.model import Model
from harness.targets.qtest import QtestTarget
from harness.targets.vhost_user import VhostUserSocket
from harness.virtio.blk import RequestType, Status

BOOT_DEADLINE = 120.0  # seconds
REPEAT_DEADLINE = 120.0
READ = Request(RequestType.IN, receive=SECTOR)

SPANS = {
    "qtest-pci": "QEMU start to DRIVER_OK",
    "vhost-user": "connect to first read",
    "model-pci": "connect to DRIVER_OK",
    "model-pci-observed": "connect to DRIVER_OK",
    "guest-pci": "QEMU start to first read",
    "clone": "QEMU start to first read",
}
"""Measured targets, and the interval of each that counts as its start.

"clone" is guest-pci with a cloned guest instead of a booted one; its disk is hot-plugged.
"""


@dataclass(frozen=True)
class Sample:
    """One target in one run: seconds until it served, and reads of 512 bytes per second.

    `memory` is QEMU's private memory afterwards, in MiB. `served` is the number of reads for a
    second of CPU time of the device's process. `accesses` is the number of register reads per
    second, 0 where the driver reads no registers itself.
    """

    seconds: float
    rate: float
    memory: float = 0.0
    served: float = 0.0
    accesses: float = 0.0


def bench(arguments: argparse.Namespace) -> int:
    """Measure the named targets, or all, in turn; print the medians."""
    if arguments.runs < 1 or arguments.requests < 1:
        raise UsageError("--runs and --requests have to be 1 or more")
    for name in arguments.targets:
        if name not in SPANS:
            raise UsageError(f"cannot measure {name}; known: {', '.join(SPANS)}")
    names = [name for name in SPANS if name in arguments.targets or not arguments.targets]
    qemu = find_qemu(arguments.qemu)
    means = find(arguments) if {"guest-pci", "clone"} & set(names) else None
    measures: dict[str, Callable[[int], Sample]] = {
        "qtest-pci": partial(_qtest, QtestTarget("qtest-pci", arguments.qemu)),
        "vhost-user": _vhost_user,
        "model-pci": partial(_model_pci, False),
        "model-pci-observed": partial(_model_pci, True),
    }
    greetings = []
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    with TemporaryDirectory(prefix="bench-", dir=images.cache_dir()) as scratch:
        if means:
            measures["guest-pci"] = partial(_guest, means)
        clone_template = _template(means, Path(scratch)) if means and "clone" in names else None
        if means and clone_template:
            measures["clone"] = partial(_clone, means, clone_template)
        for run in range(arguments.runs):
            say(f"run {run + 1} of {arguments.runs}")
            greetings.append(_greeting(qemu))
            for name in names:
                samples[name].append(measures[name](arguments.requests))

    guests = f", guests on {means.accel.name} ({means.accel.reason})" if means else ""
    print(f"{qemu.version_text}{guests}")
    print(f"median of {arguments.runs} (minimum to maximum)")
    greeting = statistics.median(greetings)
    _print("QEMU start to QMP greeting", greetings, "s", "1")
    for name in names:
        seconds = [sample.seconds for sample in samples[name]]
        rates = [sample.rate for sample in samples[name]]
        ratio = f"{statistics.median(seconds) / greeting:.2f}"
        meanwhile = f"{statistics.median(rates) * greeting:.0f} per start of QEMU"
        _print(f"{name}: {SPANS[name]}", seconds, "s", ratio)
        _print(f"{name}: 512-byte reads, one at a time", rates, "/s", meanwhile)
        if any(accesses := [sample.accesses for sample in samples[name]]):
            meanwhile = f"{statistics.median(accesses) * greeting:.0f} per start of QEMU"
            _print(f"{name}: register reads, one at a time", accesses, "/s", meanwhile)
        if any(served := [sample.served for sample in samples[name]]):
            _print(f"{name}: reads in a CPU second", served, "/s", "-")
    if clone_template:
        _print_clones(clone_template, samples)
    return 0


def _print_clones(template: Template, samples: dict[str, list[Sample]]) -> None:
    """Print the results for clones only: memory, time of the template, ratio to a boot."""
    memory = [sample.memory for sample in samples["clone"]]
    _print("clone: private memory at the first read", memory, "MiB", "-")
    print(f"{'template: made and checked, once':42}{template.facts['seconds']:7.1f} s")
    if "guest-pci" in samples:
        booted, cloned = (
            statistics.median(sample.seconds for sample in samples[name])
            for name in ("guest-pci", "clone")
        )
        print(f"{'clone: first read, compared to a boot':42}1/{booted / cloned:.1f}")


def _print(what: str, values: Sequence[float], unit: str, ratio: str) -> None:
    digits = 0 if min(values) > 100 else 3
    spread = f"({min(values):.{digits}f} to {max(values):.{digits}f})"
    print(f"{what:42}{statistics.median(values):7.{digits}f} {unit:3} {spread:17} ratio {ratio}")


def _greeting(qemu: Qemu) -> float:
    """Return the seconds until a QEMU without disks has greeted over QMP and runs its CPU."""
    machine = Machine(MachineConfig(qemu, name="greeting", parked=True))
    begin = time.monotonic()
    try:
        machine.start()
        return time.monotonic() - begin
    finally:
        machine.stop()


def _qtest(target: QtestTarget, requests: int) -> Sample:
    target.facts()  # the search for QEMU is not part of its start
    begin = time.monotonic()
    disk = target.plug(DiskSpec())
    try:
        disk.driver.start()
        seconds = time.monotonic() - begin
        rate = _rate(disk.driver, requests)
        return Sample(seconds, rate, accesses=_access_rate(disk.driver, requests))
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


def _model_pci(observed: bool, requests: int) -> Sample:
    with TemporaryDirectory(prefix="bench-", dir=images.cache_dir()) as directory:
        stream = Path(directory) / "events.jsonl"
        target = Model(name="model-pci", observe=stream if observed else None)
        try:
            target.plug(DiskSpec()).unplug()  # the start of the model's process is not counted
            begin = time.monotonic()
            disk = target.plug(DiskSpec())
            try:
                disk.driver.start()
                seconds = time.monotonic() - begin
                assert target.pid
                used = -cpu_seconds(target.pid)
                rate = _rate(disk.driver, requests)
                used += cpu_seconds(target.pid)
                served = requests / used if used > 0 else 0.0
                accesses = _access_rate(disk.driver, requests)
                return Sample(seconds, rate, served=served, accesses=accesses)
            finally:
                disk.unplug()
        finally:
            target.close()


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
    """Return a new template, independent of the cache."""
    return template(means, "serial", VARIANTS["guest-pci"], BOOT_DEADLINE, say, directory)


def _clone(means: Means, source: Template, requests: int) -> Sample:
    begin = time.monotonic()
    guest = Guest.clone(source, means, "serial", BOOT_DEADLINE)
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
    """Return the private memory of a process in MiB: what is free again when it ends."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    lines = [line.split() for line in rollup.splitlines() if line.startswith("Private_")]
    return sum(int(kib) for _, kib, _ in lines) / 1024


def _rate(driver: Driver, requests: int) -> float:
    """Return reads per second, one at a time. Raise DriverError if one of them fails."""
    repetition = driver.repeat(READ, requests, timeout=REPEAT_DEADLINE)
    if repetition.statuses != {Status.OK: requests}:
        raise DriverError(f"some reads failed; number of reads by status: {repetition.statuses}")
    return repetition.count / repetition.seconds


def _access_rate(driver: Driver, accesses: int) -> float:
    """Return reads of the device status per second, one at a time."""
    begin = time.monotonic()
    for _ in range(accesses):
        driver.register_read("device_status")
    return accesses / (time.monotonic() - begin)
