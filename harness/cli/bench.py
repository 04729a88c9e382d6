"""`vblk bench`: how soon a guest serves, and how fast its driver is.

Seconds and rates say little without the machine they were taken on, so each
comes with its ratio to what QEMU alone needs, in the same run, to start.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

from harness.cli.errors import UsageError
from harness.cli.means import find, say
from harness.disks import SECTOR, DiskSpec
from harness.driver.errors import DriverError
from harness.driver.interface import Request
from harness.machine import Machine, MachineConfig
from harness.target.guest_pci import Guest, GuestDisk, Means
from harness.virtio.blk import RequestType, Status

BOOT_DEADLINE = 120.0  # seconds
REPEAT_DEADLINE = 120.0


@dataclass(frozen=True)
class Sample:
    """One run: seconds to the QMP greeting, seconds to the first request, requests a second."""

    greeting: float
    first: float
    rate: float


def bench(arguments: argparse.Namespace) -> int:
    """Measure, print the medians."""
    if arguments.runs < 1 or arguments.requests < 1:
        raise UsageError("--runs and --requests take 1 or more")
    means = find(arguments)
    samples = []
    for run in range(arguments.runs):
        say(f"run {run + 1} of {arguments.runs}")
        samples.append(_measure(means, arguments.requests))
    print(f"{means.qemu.version_text}, {means.accel.name} ({means.accel.reason})")
    print(f"median of {arguments.runs} (least to most)")
    greeting = statistics.median(sample.greeting for sample in samples)
    first = [sample.first for sample in samples]
    rates = [sample.rate for sample in samples]
    _print("QEMU start to QMP greeting", [sample.greeting for sample in samples], "s", "1")
    _print("guest start to first request", first, "s", f"{statistics.median(first) / greeting:.1f}")
    _print(
        "512-byte reads, one at a time",
        rates,
        "/s",
        f"{statistics.median(rates) * greeting:.0f} in the time of a greeting",
    )
    return 0


def _print(what: str, values: list[float], unit: str, ratio: str) -> None:
    digits = 0 if min(values) > 100 else 3
    spread = f"({min(values):.{digits}f} to {max(values):.{digits}f})"
    print(f"{what:31}{statistics.median(values):9.{digits}f} {unit:3} {spread:20} ratio {ratio}")


def _measure(means: Means, requests: int) -> Sample:
    read = Request(RequestType.IN, receive=SECTOR)
    begin = time.monotonic()
    guest = Guest.boot(means, "serial", BOOT_DEADLINE)
    try:
        disk = GuestDisk(guest, DiskSpec())
        disk.driver.start()
        disk.driver.request(read)
        first = time.monotonic() - begin
        repetition = disk.driver.repeat(read, requests, timeout=REPEAT_DEADLINE)
    finally:
        guest.end()
    if repetition.statuses != {Status.OK: requests}:
        raise DriverError(f"not every read succeeded: {repetition.statuses} by status")
    return Sample(_greeting(guest.machine.config), first, repetition.count / repetition.seconds)


def _greeting(config: MachineConfig) -> float:
    """Seconds until the same machine, without the disk, has answered over QMP."""
    machine = Machine(config)
    begin = time.monotonic()
    try:
        machine.start()
        return time.monotonic() - begin
    finally:
        machine.stop()
