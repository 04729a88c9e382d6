"""`vblk witness`: judge drivers by a recorded stream."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli.errors import UsageError
from harness.inputs import InputError, printable
from harness.virtio.catalogue import ADVISORY, driver_clauses
from harness.witness.judge import Fate, judge, table
from harness.witness.trace import read_any


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser(
        "witness",
        help="judge drivers by what they did to the model device",
        description="Judge drivers by what they did to the model device: docs/witness.md.",
    )
    part = parser.add_subparsers(metavar="judge", required=True).add_parser(
        "judge",
        help="print which statements a driver kept and broke",
        description="Print which statements a driver kept and broke. The exit status is 1 if it "
        "broke a MUST.",
    )
    part.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="events, from python -m harness.model --observe, or a trace log of QEMU",
    )
    part.add_argument("--all", action="store_true", help="also statements that were not exercised")
    part.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Judge a stream and print the table."""
    try:
        verdicts = judge(read_any(arguments.file))
    except InputError as error:
        raise UsageError(str(error)) from None
    for line in table(verdicts, arguments.all):
        print(printable(line))
    return int(
        any(
            verdict.fate is Fate.BROKEN and driver_clauses()[name].level not in ADVISORY
            for name, verdict in verdicts.items()
        )
    )
