"""`vblk witness --vfio-user SOCKET --disk FILE`: serve a disk to a driver, and judge it live."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from harness import interrupt
from harness.cli.errors import UsageError
from harness.diskspec import SECTOR
from harness.drivers.userfile import WAYS, device_words, memory_words
from harness.inputs import printable
from harness.machine.errors import MachineError
from harness.machine.foreign import ForeignDaemon
from harness.machine.rundir import RunDir, check_room
from harness.model.whims import WHIMS
from harness.outputs import check_writable, reason
from harness.report.files import complaint, write
from harness.report.results import Column, Result, Results, Row, Run, Test
from harness.report.results import Verdict as Cell
from harness.virtio.catalogue import ADVISORY, SPECIFICATION, driver_clauses
from harness.witness.events import (
    Broken,
    Device,
    Event,
    Features,
    Request,
    Reset,
    Started,
    Status,
    parsed,
)
from harness.witness.judge import Fate, Verdict, judge, table

READY_DEADLINE = 60.0
"""Seconds until the model listens."""

COPY_DEADLINE = 600.0
"""Seconds that the copy of a disk may take."""

PAUSE = 0.2
"""Seconds between two reads of the stream."""

SHARE = 4
"""The next verdicts wait for this many times the seconds that the last ones took."""

COLUMN = "your driver"


def run(arguments: argparse.Namespace) -> int:
    """Serve a disk until Ctrl-C, then print the table and write the files."""
    way, place = _socket_of(arguments)
    disk: Path = arguments.disk
    if not disk.is_file() or disk.stat().st_size < SECTOR:
        raise UsageError(
            f"--disk {disk}: no file of at least one sector; make one: truncate -s 64M {disk}"
        )
    for path in _sockets(place):
        long = len(os.fsencode(path.absolute())) > 107
        if os.path.lexists(path) or long or not path.parent.is_dir():
            raise UsageError(
                f"{path}: a socket cannot be made there; choose a short path that is free, in a"
                " directory that exists"
            )
    for name in arguments.whim:
        if name not in WHIMS:
            raise UsageError(f"no whim {name!r}; pytest conformance --list-whims prints them")
    stream: Path = arguments.stream
    if stream.exists():
        raise UsageError(f"--stream {stream}: this file exists; choose another name")
    try:
        check_writable(stream)
    except OSError as error:
        raise UsageError(f"--stream {stream}: {reason(error)}") from None
    directory = RunDir()
    try:
        file = disk.absolute() if arguments.destructive else _copy(disk, directory.path / "disk")
        return _serve(arguments, way, place, file, stream)
    finally:
        directory.remove()


def _socket_of(arguments: argparse.Namespace) -> tuple[str, Path]:
    """Return the kind of device, a key of WAYS, and the path of its socket."""
    given = [(name, getattr(arguments, name.replace("-", "_"))) for name in WAYS]
    found = [(name, path) for name, path in given if path is not None]
    if len(found) != 1 or arguments.disk is None:
        raise UsageError(
            "give --disk and one of --vhost-user, --vfio-user, --vfio-user-transitional"
        )
    return found[0]


def _sockets(place: Path) -> tuple[Path, Path]:
    """Return the paths of the two sockets that the model makes: for a driver, and for commands."""
    return place, Path(f"{place}.control")


def _copy(disk: Path, copy: Path) -> Path:
    """Copy a disk, so that the user's file stays as it is. MachineError if that fails."""
    check_room(copy.parent, disk.stat().st_blocks * 512)
    line = ["cp", "--reflink=auto", "--sparse=always", "--", str(disk), str(copy)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=COPY_DEADLINE, check=False)
    if done.returncode:
        raise MachineError(f"{disk} cannot be copied: {done.stderr.strip()}")
    return copy


def _serve(arguments: argparse.Namespace, way: str, place: Path, file: Path, stream: Path) -> int:
    # The list of sockets in /proc has the path as it was given, and other processes' paths too.
    line = [sys.executable, "-m", "harness.model", "--way", WAYS[way]]
    line += ["--socket", str(place.absolute())]
    line += ["--file", str(file), "--observe", str(stream)]
    line += [word for name in arguments.whim for word in ("--whim", name)]
    line += [word for option in arguments.option for word in ("--option", option)]
    process: ForeignDaemon | None = None
    watcher = Watcher(stream)
    try:
        with interrupt.shielded():
            process = ForeignDaemon("the model", line)
        process.wait_until_ready(place.absolute(), "", READY_DEADLINE)
        for words in _help(way, place, arguments.destructive):
            print(words)
        sys.stdout.flush()
        while process.alive():
            time.sleep(PAUSE)
            for words in watcher.look():
                print(printable(words), flush=True)
        raise MachineError(process.last_line())
    except KeyboardInterrupt:
        pass
    finally:
        with interrupt.shielded():
            if process:
                process.stop()
            for path in _sockets(place):
                path.unlink(missing_ok=True)
            if stream.exists() and not stream.stat().st_size:
                stream.unlink()  # no driver has come, and the next start wants a new file
    for words in watcher.look(last=True):
        print(printable(words))
    return _conclude(arguments, watcher.verdicts, stream)


def _help(way: str, place: Path, destructive: bool) -> Iterator[str]:
    """Yield the lines that tell the user how to connect a driver."""
    words = " ".join(
        word if word.startswith("-") else f"'{word}'"
        for word in [*memory_words(256), *device_words(way, place.absolute())]
    )
    yield f"The disk is on {place}" + ("." if destructive else "; your file is not written to.")
    yield f"  QEMU: -m 256 {words}"
    if way == "vhost-user":
        words = f"virtio_uml.device={place.absolute()}:2"
        yield f"  User-mode Linux, with --option packed=off here: {words}"
        yield f"  libblkio: virtio-blk-vhost-user, path={place.absolute()}"
    else:
        yield "  vfio-user-pci needs QEMU 10.1 or newer: vblk image foreign qemu-11"
    yield "Ctrl-C ends."


class Watcher:
    """The stream as it grows, and the verdicts on it."""

    def __init__(self, stream: Path) -> None:
        self.verdicts: dict[str, Verdict] = judge(())
        self._stream = stream
        self._events: list[Event] = []
        self._untold: deque[str] = deque()
        self._at = 0
        self._judged = 0
        self._cost = 0.0
        self._next = 0.0

    def look(self, last: bool = False) -> Iterator[str]:
        """Yield lines about what is new: what the driver did, and the statements kept or broken.

        With `last` the verdicts are up to date afterwards. A line whose use was interrupted is
        yielded again by the next call.
        """
        with interrupt.shielded():  # what has been read is told, too
            self._untold.extend(self._told(self._read()))
        now = time.monotonic()
        count = len(self._events)
        if count > self._judged and (last or now >= self._next):
            verdicts = judge(self._events)
            with interrupt.shielded():
                self._untold.extend(_changes(self.verdicts, verdicts))
                self.verdicts, self._judged = verdicts, count
            self._cost = time.monotonic() - now
            self._next = time.monotonic() + SHARE * self._cost
        while self._untold:
            yield self._untold[0]
            self._untold.popleft()

    def _read(self) -> list[Event]:
        """Return the events of all complete lines that are new."""
        try:
            with self._stream.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        news = [parsed(line) for line in whole.decode("utf-8").splitlines()]
        self._events += news
        return news

    def _told(self, news: Iterable[Event]) -> Iterator[str]:
        requests: Counter[int | None] = Counter()
        for event in news:
            match event:
                case Device():
                    yield f"a peer has connected over {event.transport}"
                case Reset():
                    yield "the device is reset"
                case Features() | Status() | Broken():
                    yield f"the driver {event}" if not isinstance(event, Broken) else event.text
                case Started():
                    yield f"virtqueue {event.queue} is used, {event.size} descriptors"
                case Request():
                    requests[event.type] += 1
        if requests:
            counts = (f"{count} of type {kind}" for kind, count in requests.items())
            yield f"requests: {', '.join(counts)}"


def _changes(before: dict[str, Verdict], after: dict[str, Verdict]) -> Iterator[str]:
    """Yield a line for each statement whose verdict has changed."""
    for name, verdict in after.items():
        if verdict.fate is not before[name].fate and verdict.fate is not Fate.NOT_EXERCISED:
            clause = driver_clauses()[name]
            yield f"{verdict.fate.value.upper()}  {name} {clause.level}: {clause.text}"
            yield from (f"    {line}" for line in verdict.evidence)


def _conclude(arguments: argparse.Namespace, verdicts: dict[str, Verdict], stream: Path) -> int:
    """Print the table, write the matrix, and return the exit status."""
    for line in table(verdicts):
        print(printable(line))
    if stream.exists():
        print(f"the stream is in {stream}")
    failed = False
    for path in arguments.matrix:
        problem = complaint(path, partial(write, path, results_of(verdicts)))
        failed = failed or bool(problem)
        print(problem or f"the matrix is in {path}")
    musts = [
        name
        for name, verdict in verdicts.items()
        if verdict.fate is Fate.BROKEN and driver_clauses()[name].level not in ADVISORY
    ]
    return int(bool(musts) or failed)


def results_of(verdicts: dict[str, Verdict]) -> Results:
    """Return verdicts of a stream as results of a run, with one driver."""
    column = Column(COLUMN, party="driver")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    results = Results([Run(started, 0.0, True, SPECIFICATION, "vblk witness")], [column], {}, {})
    for clause in driver_clauses().values():
        results.rows[clause.id] = Row(
            clause.id,
            clause.section,
            clause.level,
            clause.party,
            clause.text,
            untested=clause.untested,
        )
        verdict = verdicts[clause.id]
        advisory = clause.level in ADVISORY
        cell = {
            Fate.KEPT: Cell.KEPT,
            Fate.BROKEN: Cell.ADVISORY if advisory else Cell.BROKEN,
            Fate.NOT_EXERCISED: Cell.SKIPPED,
        }[verdict.fate]
        seen = verdict.evidence[0] if verdict.evidence else ""
        result = Result(
            cell, seen=seen, reason=verdict.reason, evidence="\n".join(verdict.evidence)
        )
        name = f"vblk witness: {clause.id}"
        results.tests[name] = Test(name, "", 1, [clause.id], "", {column.id: result})
    return results
