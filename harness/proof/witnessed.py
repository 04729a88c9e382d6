"""Proof that the witness detects what it judges: each rule is red on a planted breach of it.

    python -m harness.proof.witnessed [--write FILE]

runs the breaches on the model and makes one page. The first table has each breach, the work of the
driver, and the rules that turn red. The second table has the rules that no breach turns red, each
with the reason. The exit status is 1 if a breach turns other rules red than it names. It is also 1
if no breach turns a rule red and the rule has no reason.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from harness.diskspec import DiskSpec
from harness.driver.errors import DriverError
from harness.machine.qemu import find_qemu
from harness.outputs import replace_text
from harness.proof.breaches import BREACHES, Breach
from harness.targets.base import Target
from harness.targets.disk import Disk
from harness.targets.model import Model
from harness.targets.qtest import QtestTarget
from harness.virtio.catalogue import driver_clauses
from harness.witness.events import Event, read
from harness.witness.judge import Fate, judge
from harness.witness.rules import RULES
from harness.witness.trace import read_trace

CAPACITY = 2048
"""Sectors of a disk, unless the breach says otherwise."""

EVENT_DEADLINE = 60.0
"""Seconds until an event that a breach awaits; the model records it after some looks at a ring."""

PAUSE = 0.05
"""Seconds between two looks at the stream of events."""

TRACED = ("memory_region_ops_read", "memory_region_ops_write", "virtio_mmio_setting_irq")

CHOICES = frozenset({"6.1-R-05", "6.1-R-12"})
"""SHOULDs that most breaches break too: they choose few features, to break one statement only."""

NEVER_RED = {
    "4.1.4.8.2-R-02": "The reference driver reads every capability when it is attached.",
}
"""Rules that are red on no breach, in addition to those that say so themselves -> reason."""


def reasons() -> dict[str, str]:
    """Return the rules that no breach turns red -> reason."""
    found = {name: rule.never_red for name, rule in RULES.items() if rule.never_red}
    return found | NEVER_RED


def red(breaches: Sequence[Breach] = BREACHES) -> dict[str, set[str]]:
    """Do what the breaches do, each on a disk of its own. Return breach -> rules that turn red."""
    groups: dict[tuple[str, tuple[str, ...]], list[Breach]] = defaultdict(list)
    for breach in breaches:
        groups[breach.way, breach.whims].append(breach)
    found: dict[str, set[str]] = {}
    for (way, whims), some in groups.items():
        with tempfile.TemporaryDirectory() as directory:
            for breach, events in zip(some, _streams(some, way, whims, directory), strict=True):
                verdicts = judge(events)
                broken = {name for name, verdict in verdicts.items() if verdict.fate is Fate.BROKEN}
                found[breach.name] = broken - (CHOICES - breach.rules)
    return {breach.name: found[breach.name] for breach in breaches}


def _streams(
    breaches: Sequence[Breach], way: str, whims: tuple[str, ...], directory: str
) -> list[list[Event]]:
    """Let the reference driver do what the breaches say. Return a stream for each of them."""
    if way.startswith("qtest"):
        return [trace_of(breach, way, Path(directory)) for breach in breaches]
    path = Path(directory) / "events.jsonl"
    target = Model(name=way, whims=whims, observe=path)
    try:
        for breach in breaches:
            _commit(breach, target, path)
    finally:
        target.close()
    return by_peer(read(path))


def trace_of(breach: Breach, way: str, directory: Path) -> list[Event]:
    """Return what QEMU traces of a breach, on a machine of its own."""
    log, qemu = directory / f"{breach.name}.log", directory / f"{breach.name}.sh"
    words = [*(word for name in TRACED for word in ("-trace", name)), "-D", log]
    real = shlex.quote(str(find_qemu().path))
    more = shlex.join(map(str, words))
    qemu.write_text(
        f'#!/bin/sh\ncase "$*" in *-qtest*) exec {real} "$@" {more} ;; esac\nexec {real} "$@"\n'
    )
    qemu.chmod(0o700)
    target = QtestTarget(way, str(qemu))
    try:
        _commit(breach, target)
    finally:
        target.close()
    return read_trace(log)


def _commit(breach: Breach, target: Target, stream: Path | None = None) -> None:
    """Let the reference driver do what a breach says.

    `stream` is the file to which the model writes its events. TimeoutError if the event that the
    breach awaits does not come within EVENT_DEADLINE seconds.
    """
    disk = Disk(target.plug(DiskSpec(**({"capacity": CAPACITY} | breach.spec))))
    before = _count(stream, breach.awaits)
    try:
        with suppress(DriverError):  # the device may refuse to go on, and may need a reset
            breach.work(disk)
        deadline = time.monotonic() + EVENT_DEADLINE
        while breach.awaits and _count(stream, breach.awaits) == before:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{breach.name}: no event {breach.awaits!r} in {stream}"
                    f" within {EVENT_DEADLINE:g} s"
                )
            time.sleep(PAUSE)
    finally:
        disk.unplug()


def _count(stream: Path | None, kind: str) -> int:
    """Return how many events of a kind the model has written; 0 if it writes none."""
    if stream is None or not kind:
        return 0
    return stream.read_bytes().count(f'"event":"{kind}"'.encode())


def by_peer(events: Iterable[Event]) -> list[list[Event]]:
    """Divide a stream by connections, in the order of their arrival."""
    peers: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        peers[event.connection].append(event)
    return [peers[number] for number in sorted(peers)]


def unproven(found: Mapping[str, set[str]]) -> list[str]:
    """Return the rules that are red on no breach and have no reason for it."""
    proven = set().union(*found.values())
    return [
        name for name in driver_clauses() if name in RULES and name not in proven | {*reasons()}
    ]


def page(breaches: Sequence[Breach] = BREACHES) -> str:
    """Return the page in Markdown, as the breaches say it."""
    return "\n".join(_lines(breaches)) + "\n"


def _lines(breaches: Sequence[Breach]) -> Iterator[str]:
    proven = {name for breach in breaches for name in breach.rules}
    idle = {name: text for name, text in reasons().items() if name not in proven}
    yield "# Proof of the witness"
    yield ""
    yield (
        f"{len(breaches)} breaches, {len(RULES)} rules; {len(proven)} rules turn red, "
        f"{len(idle)} cannot. Made by `python -m harness.proof.witnessed --write FILE`, "
        "checked by `tests/witness/test_witness_proof.py`."
    )
    yield ""
    yield (
        "The reference driver commits each breach on a disk of the model, or of QEMU over "
        "virtio-mmio. The rules in the last column turn red, and no other rule does. Most "
        "breaches choose few features, so the "
        f"SHOULDs {' and '.join(sorted(CHOICES))} count only where they are named."
    )
    yield ""
    yield "| breach | what the driver does | rules |"
    yield "| --- | --- | --- |"
    for breach in breaches:
        yield f"| {breach.name} | {breach.text} | {', '.join(sorted(breach.rules))} |"
    yield ""
    yield "## Rules that nothing turns red"
    yield ""
    yield "| rule | reason |"
    yield "| --- | --- |"
    for name in driver_clauses():
        if name in idle:
            yield f"| {name} | {idle[name]} |"


def main(arguments: list[str] | None = None) -> int:
    """Run the breaches and write the page."""
    parser = argparse.ArgumentParser(prog="harness.proof.witnessed", description=__doc__)
    parser.add_argument("--write", metavar="FILE", type=Path, help="write the page here")
    parser.add_argument("--only", metavar="TEXT", help="run breaches with this text in the name")
    options = parser.parse_args(arguments)
    chosen = [known for known in BREACHES if not options.only or options.only in known.name]
    found = red(chosen)
    wrong = 0
    for breach in chosen:
        if found[breach.name] != breach.rules:
            wrong += 1
            more = ", ".join(sorted(found[breach.name] - breach.rules)) or "nothing"
            less = ", ".join(sorted(breach.rules - found[breach.name])) or "nothing"
            print(f"{breach.name}: also red {more}; not red {less}")
    left = [] if options.only else unproven(found)
    for name in left:
        print(f"{name} is red on no breach, and has no reason for that")
    if options.write:
        replace_text(options.write, page())
    print(f"{len(chosen)} breaches, {wrong} with other rules than they say")
    return int(bool(wrong or left))


if __name__ == "__main__":
    sys.exit(main())
