"""`vblk random`: random operations on a target for some minutes. `vblk replay`: a saved script."""

from __future__ import annotations

import argparse
import random as chance
import time
from collections.abc import Callable
from pathlib import Path

from harness import interrupt
from harness.cli.errors import UsageError
from harness.inputs import printable
from harness.outputs import check_directory_can_be, reason, replace_text
from harness.random.finding import Finding
from harness.random.hunt import Found, Hunt, IllegalError
from harness.random.saved import made_of, save
from harness.random.script import ScriptError, load, text_of
from harness.report.trace import as_lines
from harness.targets import Target
from harness.targets.registry import Settings, load_targets, maker
from harness.witness.events import About, Failed

SAY_EVERY = 60.0
"""Seconds between two lines about progress."""

EXAMPLES = 20
STEPS = 40
"""Examples of a round, and operations of an example.

A short round soon uses another kind of disk.
"""

INSTALL = "hypothesis is not installed; pip install 'virtio-blk-conformance[random]'"

RANDOM_EXAMPLES = """\
examples:
  vblk random --target qtest-pci --minutes 5
  vblk random --target vhost-user --hostile --seed 4711
  vblk random --seed 4713 --rounds 1     repeat one round of an earlier run
"""


def add_parsers(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add both commands; `command` makes a parser from a name, a function, and texts."""
    part = command(
        "random", random, "do random operations on a target, and check the results", RANDOM_EXAMPLES
    )
    _add_target(part)
    part.add_argument(
        "--hostile", action="store_true", help="break all rules, and look for crashes and hangs"
    )
    part.add_argument(
        "--minutes",
        type=float,
        default=1.0,
        metavar="M",
        help="duration in minutes (default: %(default)g)",
    )
    part.add_argument("--rounds", type=int, metavar="N", help="stop after N rounds")
    part.add_argument(
        "--seed", type=int, metavar="N", help="seed of the first round; the next round has N+1"
    )
    part.add_argument(
        "--artifacts",
        type=Path,
        default=Path("reports"),
        metavar="DIR",
        help="directory for the scripts of findings (default: %(default)s)",
    )
    part = command("replay", replay, "repeat the operations of a saved script")
    part.add_argument("script", type=Path, metavar="FILE")
    part.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write what driver and device did up to the finding, for `vblk export`",
    )
    part.add_argument(
        "--times",
        type=int,
        default=1,
        metavar="N",
        help="repetitions; the first finding ends them (default: 1)",
    )
    _add_target(part)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", default="qtest-pci", metavar="NAME", help="target (default: %(default)s)"
    )
    parser.add_argument("--targets", type=Path, metavar="FILE", help="targets of your own (TOML)")
    parser.add_argument(
        "--observe",
        type=Path,
        metavar="DIR",
        help="write what the driver does to the model to files here (docs/witness.md)",
    )
    parser.add_argument("--qemu", metavar="PATH", help="default: qemu-system-x86_64 on PATH")
    parser.add_argument(
        "--destructive",
        action="store_true",
        help="allow to overwrite the disk behind an external device",
    )


def _target(arguments: argparse.Namespace) -> Target:
    if arguments.observe and not arguments.observe.is_dir():
        raise UsageError(f"there is no directory {arguments.observe}")
    settings = Settings(
        qemu=arguments.qemu, destructive=arguments.destructive, observe=arguments.observe
    )
    user = load_targets(arguments.targets) if arguments.targets else {}
    return maker(arguments.target, user)(settings)


def random(arguments: argparse.Namespace) -> int:
    """Run rounds until the time is over; return 1 if there is a finding that is not recorded."""
    try:
        from harness.random import rounds
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "hypothesis":
            raise
        raise UsageError(INSTALL) from None
    if not 0 < arguments.minutes < float("inf"):
        raise UsageError(f"--minutes {arguments.minutes:g}: a number greater than 0")
    if arguments.rounds is not None and arguments.rounds < 1:
        raise UsageError(f"--rounds {arguments.rounds}: 1 or more")
    try:
        check_directory_can_be(arguments.artifacts)
    except OSError as error:
        raise UsageError(f"--artifacts {arguments.artifacts}: {reason(error)}") from None
    number = arguments.seed if arguments.seed is not None else chance.randrange(10**6)
    target = _target(arguments)
    if arguments.hostile and "guest" in target.traits:
        raise UsageError(
            f"--hostile would crash the guest of {target.name} repeatedly; use a qtest target"
        )
    hunt = Hunt(target)
    hunt.at_first = lambda finding: print(f"seen  {finding}".partition("\n")[0], flush=True)
    begun = time.monotonic()
    try:
        wanted = rounds.HOSTILE_DISKS if arguments.hostile else rounds.LEGAL_DISKS
        disks = rounds.disks_of(hunt, wanted)
        print(f"{made_of(target)}, seed {number}", flush=True)
        printed, done = begun, 0
        while time.monotonic() - begun < 60 * arguments.minutes and done != arguments.rounds:
            interrupt.check()
            plug = disks[number % len(disks)]
            for found in rounds.run(hunt, plug, number, EXAMPLES, STEPS, arguments.hostile):
                _report(found, hunt, arguments.artifacts, f"found by vblk random, seed {number}")
            number, done = number + 1, done + 1
            if time.monotonic() - printed > SAY_EVERY:
                printed = time.monotonic()
                print(f"{_rate(hunt, printed - begun)}; the next seed is {number}", flush=True)
    finally:
        with interrupt.shielded():
            try:
                _end(hunt, target)
            finally:
                _sum_up(hunt, time.monotonic() - begun)
    return 1 if hunt.found else 0


def _end(hunt: Hunt, target: Target) -> None:
    """Give the disk back, and end what carries it."""
    try:
        hunt.drop()
    finally:
        target.close()


def _report(found: Found, hunt: Hunt, directory: Path, origin: str) -> None:
    try:
        where = f"saved as {save(found, hunt, directory, origin)}"
    except OSError as error:
        where = f"not saved in {directory}: {reason(error)}"
    print(f"FOUND {found.finding}\n{text_of(found.script)}{where}", flush=True)


def _rate(hunt: Hunt, seconds: float) -> str:
    tally = hunt.tally
    per_second = tally.operations / seconds if seconds else 0.0
    return (
        f"{seconds / 60:.1f} min: {tally.examples} examples on {tally.disks} disks,"
        f" {tally.operations} operations ({per_second:.0f} per second), {tally.requests} requests,"
        f" {len(hunt.found)} findings"
    )


def _sum_up(hunt: Hunt, seconds: float) -> None:
    print(_rate(hunt, seconds))
    for found in hunt.found.values():
        print(f"  found {found.times} times: {found.finding.signature}")
    for signature, times in hunt.tally.known.most_common():
        print(f"  known, {times} times: {signature}")


def _write_trace(path: Path, hunt: Hunt, finding: Finding, script: Path) -> None:
    """Write the trace of a finding. UsageError if that fails."""
    about = About(
        test=str(script),
        target=hunt.target.name,
        statement=finding.statement,
        versions=made_of(hunt.target),
    )
    failed = Failed(expected=finding.check, seen=printable(str(finding)))
    try:
        replace_text(path, as_lines([about, *hunt.events, failed]))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {reason(error)}") from None


def replay(arguments: argparse.Namespace) -> int:
    """Play a script on a new disk; return 1 if the device violates the specification."""
    if arguments.times < 1:
        raise UsageError(f"--times {arguments.times}: 1 or more")
    try:
        script = load(arguments.script)
    except ScriptError as error:
        raise UsageError(str(error)) from None
    target = _target(arguments)
    hunt = Hunt(target)
    hunt.traced = arguments.trace is not None
    try:
        for _ in range(arguments.times):
            try:
                finding = hunt.replay(script)
            except IllegalError as error:
                raise UsageError(f"{arguments.script}: {error}") from None
            hunt.drop()
            if finding:
                print(f"FOUND {finding}")
                if arguments.trace:
                    _write_trace(arguments.trace, hunt, finding, arguments.script)
                return 1
        print(f"{len(script) - 1} operations, {arguments.times} times: no finding")
        return 0
    finally:
        with interrupt.shielded():
            _end(hunt, target)
