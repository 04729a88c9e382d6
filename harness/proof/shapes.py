"""The suite on conforming devices of many legal shapes: nothing may fail on one.

    python -m harness.proof.shapes conformance --jobs 4

runs the tests of MUST, SHOULD and described behaviour on the model with each whim, both as target
`model` and as target `owned-model`, and with each pair of whims of a fixed random sample, in one of
these ways. It prints a table. Its exit status is 1 if a test failed, came to no verdict, or
reported an advisory that no whim of the shape declares, and 2 if a shape came to no result.

    python -m harness.proof.shapes conformance signals-twice no-flush+seg-max-1

runs some shapes only, each in every way that it has. Some tests run only where a whim can make a
difference to them; `Shape.takes` says where.

The table is printed after an interruption, too, with the shapes that came to a result until then.
With `--results FILE` each result is added to this file, and a shape whose result is in the file
is not run, so that a run can go on where another one ended.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from zlib import crc32

import pytest

from harness.diskspec import DiskSpec
from harness.model.whims import MODEL, OWNED, PCI, WHIMS, reshaped
from harness.proof.forks import ForkError, ForkingSession, ForkServer, serve, target_of
from harness.pytestplugin.bench import BENCHES, TargetRun
from harness.report.results import Results, Verdict
from harness.targets.model import VARIANTS
from harness.targets.owned_model import OwnedModel

WAYS = (MODEL, OWNED, PCI)
TRAITS = {MODEL: VARIANTS[MODEL].traits, OWNED: OwnedModel.traits, PCI: VARIANTS[PCI].traits}

JOBS_PER_PROCESSOR = 4
"""Shapes at a time: a session waits for three quarters of its time.

With 6 a shape took 8 % longer.
"""

PAIRS = 60
SEED = 18
"""Seed for the sample of pairs: the same pairs in every run."""

ORDER = 4
"""Seed for the order in which shapes run: those that are slow on purpose do not run all at once."""

MANY = ("random/test_legal.py", "test_load.py::test_thousands_of_")
"""Tests of random requests, with another seed for each shape, and of thousands of requests."""

WRAPS = "where_the_index_wraps_around"
"""Part of the names of tests that take as long as all others together: 65536 requests each."""

UNDER_LOAD = "test_notifications.py::test_no_"
"""Tests of notifications under load, which take a second each."""

OF_VHOST_USER = "vhost_user/"
"""Part of the names of the tests of the vhost-user protocol."""

OF_ZONES = "/test_zoned_"
"""Part of the names of the tests of zoned disks."""

OF_VIRTQUEUES = frozenset({"Queue", "Ring", "SplitRing", "PackedRing", "Throttle"})
"""Classes of the model that decide when requests are taken, done, used and announced."""

OF_NOTIFICATIONS = OF_VIRTQUEUES | {"Device", "Connection"}
"""Classes of the model that decide when notifications are looked at and sent."""

OF_REQUESTS = frozenset({"Block", "Storage", "Request"})
"""Classes of the model that decide what a request does and ends with."""

OF_FEATURES = frozenset({"offered", "acceptable", "config", "fields"})
"""Methods of these classes that decide only what is offered and shown."""

OF_PCI = (
    *("test_pci", "test_msix", "test_status", "test_queue_reset", "test_queues"),
    "test_admin",
)
"""Modules with the tests of a PCI function, of resets, and of administration virtqueues."""

SHARE = (
    "used-length-0",
    "capacity-16",
    "host-aware",
)
"""The shapes that the tests of the harness try: as `owned-model`."""

AUDIT: dict[str, tuple[tuple[str, ...], int]] = {
    "as it is": ((), 2),
    "no packed virtqueue, no order": (("no-packed", "no-in-order"), 0),
    "no indirect tables, no event index": (("no-indirect", "no-event-idx"), 1),
    "4 queues": (("queues-4",), 2),
    "queue of 8": (("queue-size-8",), 2),
    "serial number": (("serial-of-20",), 2),
    "geometry": (("geometry",), 2),
    "60 operations a second": (("slow",), 2),
    "no discard": (("no-discard",), 2),
    "no volatile cache": (("write-through",), 2),
    "blocks of 4096 bytes": (("blk-size-4096",), 4),
    "read-only": (("read-only",), 0),
    "host-managed": (("host-managed",), 3),
    "host-aware": (("host-aware",), 8),
    "lifetime and secure erase": (("lifetime", "secure-erase"), 3),
    "limits of 8 sectors": (("discard-limit-8", "zeroes-limit-8"), 6),
    "no FLUSH": (("no-flush",), 4),
    "used length always 0": (("used-length-0",), 3),
    "used length 0 or 1": (("used-length-0-or-1",), 3),
    "a signal when a queue is enabled": (("signals-at-enable",), 3),
    "each signal twice": (("signals-twice",), 4),
    "a signal with each call descriptor": (("signals-a-call-descriptor",), 2),
    "used in batches": (("used-in-batches",), 2),
    "4 MiB": (("capacity-4-mib",), 3),
    "1 MiB": (("capacity-1-mib",), 6),
    "740 sectors": (("capacity-740",), 10),
    "16 sectors": (("capacity-16",), 54),
    "bits 20 and 21": (("future-bits",), 4),
}
"""Shapes that an early version of the suite was tried on: the whims, and how many tests failed."""

UNREMARKABLE = frozenset({Verdict.KEPT, Verdict.SKIPPED, Verdict.NOT_RUN})


@dataclass(frozen=True)
class Shape:
    """A device: the model with some whims, reached in one way."""

    whims: tuple[str, ...]
    way: str

    @property
    def label(self) -> str:
        """Return the names of the whims."""
        return "+".join(self.whims) or "as it is"

    @property
    def target(self) -> str:
        """Return the name of the target."""
        return "+".join([self.way, *(f"whim:{name}" for name in self.whims)])

    def changes(self, classes: frozenset[str]) -> bool:
        """Return whether a whim of it changes what these classes of the model do."""
        methods = [
            method.__qualname__.split(".") for name in self.whims for method, _ in WHIMS[name].parts
        ]
        return any(owner in classes and name not in OF_FEATURES for owner, name in methods)

    def takes(self, test: str) -> bool:
        """Return whether a test, by its node id, runs on the shape.

        In the way `model-pci` only the tests of the function and of resets run. The tests MANY
        run without whims, with one of virtqueues or of requests, and on each pair of whims. The
        tests UNDER_LOAD run without whims, and as `owned-model` with a single one of
        notifications, the tests WRAPS with a single one of virtqueues. As `model` the tests
        OF_VHOST_USER do not run with a single whim of something else than notifications. As
        `owned-model` the tests OF_ZONES run with a zoned disk only: they would be skipped.
        """
        if self.way == PCI:
            return any(module in test for module in OF_PCI)
        if OF_ZONES in test and self.way == OWNED:
            return reshaped(DiskSpec(), self.whims).zoned is not None
        if not self.whims:
            return True
        if any(part in test for part in MANY):
            return len(self.whims) > 1 or self.changes(OF_VIRTQUEUES | OF_REQUESTS)
        alone = len(self.whims) == 1 and self.way == OWNED
        if UNDER_LOAD in test:
            return alone and self.changes(OF_NOTIFICATIONS)
        if WRAPS in test:
            return alone and self.changes(OF_VIRTQUEUES)
        if OF_VHOST_USER in test and self.way == MODEL:
            return len(self.whims) > 1 or self.changes(OF_NOTIFICATIONS)
        return True

    def suits(self, item: pytest.Item) -> bool:
        """Return whether a test is for the shape's transport, and `takes` it."""
        wanted = {trait for mark in item.iter_markers("on") for trait in mark.args}
        return wanted <= TRAITS[self.way] and self.takes(item.nodeid)

    @property
    def seed(self) -> int:
        """Return the seed of its random requests, the same in every run."""
        return crc32(self.label.encode()) % 1000

    @property
    def breaks(self) -> frozenset[str]:
        """Return the ids of the SHOULD statements that its whims break."""
        return frozenset(clause for name in self.whims for clause in WHIMS[name].breaks)


@dataclass(frozen=True)
class Odd:
    """A test that did not simply pass: its id, verdict, statements and what was seen."""

    test: str
    verdict: str
    statements: tuple[str, ...]
    seen: str


@dataclass(frozen=True)
class Found:
    """Result of the suite on a shape: the tests by outcome, and the unexpected ones."""

    shape: Shape
    passed: int
    failed: int
    errors: int
    advisories: int
    skipped: int
    unexpected: tuple[Odd, ...]
    seconds: float

    @property
    def wrong(self) -> tuple[Odd, ...]:
        """Return the tests that blame the shape for nothing, or are in trouble."""
        return tuple(
            result
            for result in self.unexpected
            if result.verdict != Verdict.ADVISORY or not self.shape.breaks & set(result.statements)
        )


def compatible(names: Iterable[str], way: str) -> bool:
    """Return whether a device can have these whims together, reached in that way."""
    whims = [WHIMS[name] for name in names]
    families = [whim.family for whim in whims if whim.family]
    return all(way in whim.ways for whim in whims) and len(families) == len(set(families))


def pairs() -> list[tuple[str, ...]]:
    """Return the sample of pairs of whims that go together."""
    possible = [pair for pair in combinations(WHIMS, 2) if compatible(pair, OWNED)]
    return random.Random(SEED).sample(possible, PAIRS)


def all_shapes() -> list[Shape]:
    """Return the model as it is and every whim in every way, and each pair of the sample in one.

    Every second pair is tried as `model`, unless a whim of it exists for `owned-model` only.
    """
    chosen: list[tuple[str, ...]] = [(), *((name,) for name in WHIMS)]
    single = [Shape(names, way) for names in chosen for way in WAYS if compatible(names, way)]
    return single + [
        Shape(pair, MODEL if number % 2 and compatible(pair, MODEL) else OWNED)
        for number, pair in enumerate(pairs())
    ]


def judged(shape: Shape, results: Results, seconds: float) -> Found:
    """Return what a run on a shape shows."""
    counts = dict.fromkeys(Verdict, 0)
    unexpected = []
    for test in results.tests.values():
        (result,) = test.results.values()
        counts[result.verdict] += 1
        if result.verdict not in UNREMARKABLE:
            unexpected.append(
                Odd(test.id, result.verdict, tuple(test.statements), result.seen or result.reason)
            )
    return Found(
        shape,
        counts[Verdict.KEPT],
        counts[Verdict.BROKEN] + counts[Verdict.DEVIATION],
        counts[Verdict.ERROR],
        counts[Verdict.ADVISORY],
        counts[Verdict.SKIPPED] + counts[Verdict.NOT_RUN],
        tuple(unexpected),
        seconds,
    )


class Session(ForkingSession):
    """A plugin for the session that forks; in a fork, for the one shape of it."""

    def __init__(self, control: socket.socket, suite: Path) -> None:
        super().__init__(control)
        self._suite = suite

    def become(self, session: pytest.Session, request: str) -> None:
        """In a fork: make the session one about this shape."""
        self._shape = Shape(**{**json.loads(request), "whims": tuple(json.loads(request)["whims"])})
        way = self._shape.way
        session.items = [
            item for item in session.items if target_of(item) == way and self._shape.suits(item)
        ]
        with suppress(ImportError):
            from hypothesis import core

            core.global_force_seed = self._shape.seed  # type: ignore[assignment]
        session.config.stash[BENCHES] = {way: TargetRun(self._shape.target)}
        self._begun = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note."""
        self._collector.add(report)

    def found(self, code: int) -> dict[str, Any]:
        """Return what the tests found, or why there is nothing."""
        if code not in (0, 1):
            return {"error": f"pytest ended with {code}, {self._session.shouldstop}"}
        seconds = round(time.monotonic() - self._begun, 1)
        return asdict(judged(self._shape, self._collector.results(True), seconds))


def as_found(answer: dict[str, Any], shape: Shape) -> Found:
    """Return a result as it was before `asdict`."""
    unexpected = tuple(
        Odd(**{**entry, "statements": tuple(entry["statements"])}) for entry in answer["unexpected"]
    )
    return Found(**{**answer, "shape": shape, "unexpected": unexpected})


def ask(server: ForkServer, shape: Shape) -> Found:
    """Run the suite on a shape. ForkError if that comes to no result."""
    return as_found(server.ask(json.dumps(asdict(shape))), shape)


def recorded(file: Path) -> dict[Shape, Found]:
    """Return the results in a file that has one on each line; none if there is no such file.

    ValueError for a line that is no result, such as one that was not written whole.
    """
    found = {}
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            answer = json.loads(line)
            shape = Shape(tuple(answer["shape"]["whims"]), answer["shape"]["way"])
            found[shape] = as_found(answer, shape)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file}:{number}: no result of a shape: delete the line") from None
    return found


class Servers:
    """The processes that have collected the suite, one for each job."""

    def __init__(self, suite: Path, jobs: int) -> None:
        self._suite = suite
        self._idle: SimpleQueue[ForkServer] = SimpleQueue()
        self._all: list[ForkServer] = []
        for _ in range(jobs):
            self._idle.put(self._new())

    def _new(self) -> ForkServer:
        server = ForkServer("harness.proof.shapes", self._suite)
        self._all.append(server)
        return server

    def ask(self, shape: Shape) -> Found | ForkError:
        """Run the suite on a shape in a process that is idle. A process that ended is replaced."""
        server = self._idle.get()
        try:
            return ask(server, shape)
        except ForkError as error:
            if not server.alive():
                server.close()
                server = self._new()
            return ForkError(f"{shape.target}: {str(error).rpartition(': ')[2]}")
        finally:
            self._idle.put(server)

    def close(self) -> None:
        """Hang up on all, and see them end."""
        for server in self._all:
            server.hang_up()
        for server in self._all:
            server.close()


def run(
    shapes: Sequence[Shape],
    suite: Path,
    jobs: int,
    each: Callable[[Shape, Found | ForkError], None],
) -> None:
    """Run the suite on shapes, `jobs` at a time, and call `each` in their order of ending."""
    if not shapes:
        return
    servers = Servers(suite, min(jobs, len(shapes)))
    pool = ThreadPoolExecutor(min(jobs, len(shapes)))
    try:
        for future in [pool.submit(lambda s: each(s, servers.ask(s)), shape) for shape in shapes]:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        servers.close()
        pool.shutdown()


def table(found: Iterable[Found]) -> list[str]:
    """Return the table, in Markdown."""
    lines = [
        "| shape | as | passed | failed | errors | advisories | skipped |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for shape_run in found:
        counts = (
            shape_run.passed,
            shape_run.failed,
            shape_run.errors,
            shape_run.advisories,
            shape_run.skipped,
        )
        lines.append(
            f"| {shape_run.shape.label} | {shape_run.shape.way} | {' | '.join(map(str, counts))} |"
        )
    return lines


def wrong(found: Iterable[Found]) -> list[str]:
    """Return a line for each test that blames a shape for nothing, or is in trouble."""
    return [
        f"{shape_run.shape.target}: {result.verdict}: {result.test}: {result.seen}"
        for shape_run in found
        for result in shape_run.wrong
    ]


def audited() -> list[Shape]:
    """Return the shapes of AUDIT."""
    return [Shape(whims, OWNED) for whims, _ in AUDIT.values()]


def audit_table(found: Mapping[Shape, Found]) -> list[str]:
    """Return the table of the shapes in AUDIT that came to a result, in Markdown."""
    lines = [
        "| device | whims | blamed once | failed | errors | advisories | passed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for device, (whims, once) in AUDIT.items():
        if result := found.get(Shape(whims, OWNED)):
            named = ", ".join(f"`{name}`" for name in whims) or "none"
            counts = (result.failed, result.errors, result.advisories, result.passed)
            lines.append(f"| {device} | {named} | {once} | {' | '.join(map(str, counts))} |")
    return lines


def parse(text: str) -> list[Shape]:
    """Return the shapes of some whims, in every way that they have. ValueError if there is none."""
    names = tuple(text.split("+"))
    if unknown := [name for name in names if name not in WHIMS]:
        raise ValueError(f"no whim {unknown[0]!r}; pytest --list-whims has them all")
    shapes = [Shape(names, way) for way in WAYS if compatible(names, way)]
    if not shapes:
        raise ValueError(f"the whims {text} exclude each other")
    return shapes


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m harness.proof.shapes")
    parser.add_argument("suite", type=Path, help="the directory of the conformance suite")
    parser.add_argument("whims", nargs="*", help="shapes (default: all): WHIM or WHIM+WHIM")
    parser.add_argument("--way", choices=WAYS, help="only as this target")
    parser.add_argument(
        "--jobs", type=int, default=JOBS_PER_PROCESSOR * (os.cpu_count() or 1), metavar="N"
    )
    parser.add_argument("--audit", action="store_true", help="the shapes that were blamed once")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--results", type=Path, metavar="FILE", help="results, a line each")
    asked = parser.parse_intermixed_args()
    try:
        shapes = [shape for text in asked.whims for shape in parse(text)]
        found = recorded(asked.results) if asked.results else {}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    shapes += audited() if asked.audit else [] if shapes else all_shapes()
    shapes = [shape for shape in dict.fromkeys(shapes) if asked.way in (None, shape.way)]
    begun, lost = time.monotonic(), []
    left = [shape for shape in shapes if shape not in found]
    random.Random(ORDER).shuffle(left)

    def each(shape: Shape, result: Found | ForkError) -> None:
        if isinstance(result, ForkError):
            lost.append(str(result))
            return
        found[shape] = result
        if asked.results:
            with asked.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
        words = f"{result.passed} passed, {len(result.wrong)} wrong, {result.seconds:g} s"
        done = f"{sum(shape in found for shape in shapes)} of {len(shapes)}"
        print(f"{done}: {shape.target}: {words}", *wrong([result]), sep="\n    ", flush=True)

    def report() -> int:
        """Print the table and all that is wrong; return the exit status."""
        results = [found[shape] for shape in shapes if shape in found]
        lines = audit_table(found) if asked.audit else table(results)
        alarms = wrong(results)
        if asked.write:
            asked.write.parent.mkdir(parents=True, exist_ok=True)
            asked.write.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(*lines, "", *alarms, *(f"no result: {error}" for error in lost), sep="\n")
        missing = len(shapes) - len(results)
        print(
            f"{len(results)} shapes in {time.monotonic() - begun:.0f} s:"
            f" {len(alarms)} false alarms, {missing} without a result",
            flush=True,
        )
        return 2 if missing else 1 if alarms else 0

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(left, asked.suite, asked.jobs, each)
    except KeyboardInterrupt:
        lost.clear()  # the interruption ended them
        report()
        print("interrupted", flush=True)
        return 130
    return report()


def collect() -> int:
    """Collect the suite and serve: the process of a `ForkServer`."""
    levels = [
        word for level in ("must", "should", "described", "protocol") for word in ("--level", level)
    ]
    with socket.socket(fileno=int(sys.argv[2])) as control:
        suite = Path(sys.argv[1])
        if find_spec("hypothesis"):
            levels += ["--hypothesis-profile", "short"]
            importlib.import_module("harness.random.rounds").warm_up()  # once, not in each fork
        return serve(Session(control, suite), suite, WAYS, *levels)


if __name__ == "__main__":
    served = len(sys.argv) == 3 and sys.argv[2].isdigit()
    sys.exit(collect() if served else main())
