"""The suite on conforming devices of many legal shapes: nothing may fail on one.

    python -m harness.proof.shapes conformance --jobs 4

runs the tests of MUST, SHOULD and described behaviour on the model with each whim, both as target
`model` and as target `owned-model`, and with each pair of whims of a fixed random sample, in one of
these ways. It prints a table. Its exit status is 1 if a test failed, came to no verdict, or
reported an advisory that no whim of the shape declares, and 2 if a shape came to no result.

    python -m harness.proof.shapes conformance signals-twice no-flush+seg-max-1

runs some shapes only, each in every way that it has. Two kinds of tests run only where a whim can
make a difference to them; `Shape.takes` says where.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from harness.model.whims import MODEL, OWNED, PCI, WHIMS
from harness.proof.forks import ForkError, ForkingSession, ForkServer, serve, target_of
from harness.pytestplugin.bench import BENCHES, TargetRun
from harness.report.results import Results, Verdict

WAYS = (MODEL, OWNED, PCI)
PAIRS = 60
SEED = 18
"""Seed for the sample of pairs: the same pairs in every run."""

LONG = (
    "random/test_legal.py",
    "test_split_ring.py::test_with_event_idx_the_interrupt_comes_where_the_index_wraps_around",
)
"""Tests that take as long as all others together: random requests, and 65536 of them."""

OF_VIRTQUEUES = frozenset({"Queue", "Ring", "SplitRing", "PackedRing", "Throttle"})
"""Classes of the model that decide when requests are taken, done, used and announced."""

OF_REQUESTS = frozenset({"Block", "Storage", "Request"})
"""Classes of the model that decide what a request does and ends with."""

OF_FEATURES = frozenset({"offered", "acceptable", "config", "fields"})
"""Methods of these classes that decide only what is offered and shown."""

OF_PCI = ("test_pci", "test_msix", "test_status", "test_queue_reset", "test_queues")
"""Modules with the tests of a PCI function and of resets."""

SHARE = (
    "used-length-0",
    "capacity-16",
    "host-aware",
)
"""The shapes that the tests of the harness try: as `owned-model`."""

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

        The tests in LONG run where no whim or one of the virtqueues is there, and on pairs of whims
        as `owned-model`. In the way `model`,
        which makes a zoned disk for a test of zones, these tests run where no whim or one of the
        requests is there; as `owned-model` they run where the disk is zoned. In the way `model-pci`
        only the tests of the function and of resets run.
        """
        if self.way == PCI:
            return any(module in test for module in OF_PCI)
        if any(part in test for part in LONG):
            pair = len(self.whims) > 1 and self.way == OWNED
            return not self.whims or pair or self.changes(OF_VIRTQUEUES)
        if "test_zoned_" in test and self.way == MODEL:
            return not self.whims or self.changes(OF_REQUESTS)
        return True

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
            item
            for item in session.items
            if target_of(item) == way and self._shape.takes(item.nodeid)
        ]
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


def ask(server: ForkServer, shape: Shape) -> Found:
    """Run the suite on a shape. ForkError if that comes to no result."""
    answer = server.ask(json.dumps(asdict(shape)))
    unexpected = tuple(
        Odd(**{**entry, "statements": tuple(entry["statements"])}) for entry in answer["unexpected"]
    )
    return Found(**{**answer, "shape": shape, "unexpected": unexpected})


def run(
    shapes: Sequence[Shape], suite: Path, jobs: int, each: Callable[[Found | ForkError], None]
) -> list[Found]:
    """Run the suite on shapes, `jobs` at a time; return what came to a result, in their order."""
    idle: SimpleQueue[ForkServer] = SimpleQueue()
    servers = [ForkServer("harness.proof.shapes", suite) for _ in range(min(jobs, len(shapes)))]
    for server in servers:
        idle.put(server)

    def try_one(shape: Shape) -> Found | ForkError:
        server = idle.get()
        try:
            found: Found | ForkError = ask(server, shape)
        except ForkError as error:
            found = ForkError(f"{shape.target}: {str(error).rpartition(': ')[2]}")
        finally:
            idle.put(server)
        each(found)
        return found

    try:
        with ThreadPoolExecutor(len(servers)) as pool:
            return [
                shape_run for shape_run in pool.map(try_one, shapes) if isinstance(shape_run, Found)
            ]
    finally:
        for server in servers:
            server.close()


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
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), metavar="N")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there, too")
    asked = parser.parse_args()
    try:
        shapes = [shape for text in asked.whims for shape in parse(text)] or all_shapes()
    except ValueError as error:
        parser.error(str(error))
    shapes = [shape for shape in shapes if asked.way in (None, shape.way)]
    begun, lost = time.monotonic(), 0

    def each(shape_run: Found | ForkError) -> None:
        nonlocal lost
        if isinstance(shape_run, ForkError):
            lost += 1
            print(f"no result: {shape_run}", flush=True)
            return
        words = f"{shape_run.passed} passed, {len(shape_run.wrong)} wrong, {shape_run.seconds:g} s"
        print(f"{shape_run.shape.target}: {words}", flush=True)
        for line in wrong([shape_run]):
            print(f"    {line}", flush=True)

    found = run(shapes, asked.suite, asked.jobs, each)
    lines, alarms = table(found), wrong(found)
    if asked.write:
        asked.write.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, "", *alarms, sep="\n")
    seconds = time.monotonic() - begun
    print(f"{len(found)} shapes in {seconds:.0f} s: {len(alarms)} false alarms, {lost} no result")
    return 2 if lost else 1 if alarms else 0


def collect() -> int:
    """Collect the suite and serve: the process of a `ForkServer`."""
    levels = [
        word for level in ("must", "should", "described", "protocol") for word in ("--level", level)
    ]
    with socket.socket(fileno=int(sys.argv[2])) as control:
        suite = Path(sys.argv[1])
        return serve(Session(control, suite), suite, WAYS, *levels)


if __name__ == "__main__":
    served = len(sys.argv) == 3 and sys.argv[2].isdigit()
    sys.exit(collect() if served else main())
