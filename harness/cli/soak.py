"""`vblk soak`: many clones one after the other, and several at once, and a check for leftovers."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.cli.errors import UsageError
from harness.cli.means import find, say
from harness.diskspec import DiskSpec
from harness.driver.errors import DriverError
from harness.driver.interface import Request
from harness.machine.rundir import PREFIX
from harness.machine.templates import Template
from harness.targets.guest.disk import GuestDisk
from harness.targets.guest.guest import Guest, Means, Trouble
from harness.targets.guest.template import template
from harness.targets.guest.variants import VARIANTS
from harness.virtio.blk import RequestType, Status

DEADLINE = 120.0  # seconds
DATA = bytes(range(256)) * 2
WARM = 10
"""Number of clones before the first measurement.

Allocations that a process makes only once are no leak.
"""

GROWTH = 16.0
"""Memory in MiB by which this process may grow over all clones without counting as a leak."""


@dataclass(frozen=True)
class Traces:
    """Numbers of objects that clones may leave in and around this process."""

    processes: int
    directories: int
    descriptors: int
    threads: int


def soak(arguments: argparse.Namespace) -> int:
    """Clone, use and end guests; return 0 if none failed and nothing is left."""
    if arguments.clones < 1 or arguments.at_once < 1:
        raise UsageError("--clones and --at-once have to be 1 or more")
    means = find(arguments)
    source = template(means, "serial", VARIANTS["guest-pci"], DEADLINE, say)
    for _ in range(WARM):
        use(source, means)
    before, memory, available = traces(), resident(), _available()
    say(f"{arguments.clones} clones, one after the other")
    seconds, failures = _in_a_row(source, means, arguments.clones)
    say(f"{arguments.at_once} clones at once")
    failures += _at_once(source, means, arguments.at_once)

    after, grown = traces(), resident() - memory
    for failure in failures:
        print(f"failed: {failure}")
    total = arguments.clones + arguments.at_once
    print(f"{total - len(failures)} of {total} clones served, {arguments.at_once} of them at once")
    print(f"{statistics.median(seconds):.3f} s each in a row (to {max(seconds):.3f})")
    for name, count in asdict(after).items():
        print(f"{name} of this process: {getattr(before, name)} before, {count} after")
    print(
        f"memory of this process: {grown:+.1f} MiB; available on the host:"
        f" {_available() - available:+.0f} MiB"
    )
    return 0 if not failures and after == before and grown <= GROWTH else 1


def use(source: Template, means: Means, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Use one clone: write and read its disk. Raise the errors of a guest."""
    guest = Guest.clone(source, means, "serial", DEADLINE)
    try:
        driver = GuestDisk(guest, DiskSpec(capacity=64)).driver
        driver.start()
        written = driver.request(Request(RequestType.OUT, 1, DATA))
        meanwhile()
        read = driver.request(Request(RequestType.IN, 1, receive=len(DATA)))
        if (written.status, read.status, read.data) != (Status.OK, Status.OK, DATA):
            raise DriverError("the data that was read differs from the data that was written")
    finally:
        guest.end()


def _in_a_row(source: Template, means: Means, count: int) -> tuple[list[float], list[str]]:
    seconds, failures = [], []
    for _ in range(count):
        begun = time.monotonic()
        try:
            use(source, means)
        except Trouble as error:
            failures.append(str(error))
        seconds.append(time.monotonic() - begun)
    return seconds, failures


def _at_once(source: Template, means: Means, count: int) -> list[str]:
    """Run clones of which none ends before all have written. Return the errors."""
    together = threading.Barrier(count, timeout=DEADLINE)

    def run_clone(_: int) -> str:
        try:
            use(source, means, together.wait)
        except (*Trouble, threading.BrokenBarrierError) as error:
            together.abort()
            return str(error) or "another clone failed"
        return ""

    with ThreadPoolExecutor(count) as pool:
        return [failure for failure in pool.map(run_clone, range(count)) if failure]


def traces() -> Traces:
    """Count the children, run directories, open files and threads of this process."""
    own = Path("/proc/self")
    children = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children += int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid()
        except (FileNotFoundError, ProcessLookupError):
            continue
    links = [str(link.readlink()) for link in (own / "fd").iterdir() if link.is_symlink()]
    base = str(Path(tempfile.gettempdir()) / PREFIX)
    return Traces(
        children,
        sum(link.startswith(base) for link in links),
        len(links),
        threading.active_count(),
    )


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    return _kib(Path("/proc/self/status"), "VmRSS") / 1024


def _available() -> float:
    """Return the available memory of the host in MiB."""
    return _kib(Path("/proc/meminfo"), "MemAvailable") / 1024


def _kib(path: Path, name: str) -> int:
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
