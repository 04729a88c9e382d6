"""`vblk witness`: judge drivers live, or by a recorded stream."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli import serve
from harness.cli.errors import UsageError
from harness.inputs import InputError, printable
from harness.report.files import report_file
from harness.virtio.catalogue import ADVISORY, driver_clauses
from harness.witness.judge import Fate, judge, table
from harness.witness.trace import read_any


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its subcommands."""
    parser = commands.add_parser(
        "witness",
        help="judge drivers by what they did to the model device",
        description="Serve a disk to a driver until Ctrl-C, show what the driver does, and judge "
        "it: docs/your-driver.md. Or judge a recorded stream.",
    )
    for way, peer in (
        ("vhost-user", "vhost-user-blk-pci, User-mode Linux or a library"),
        ("vfio-user", "vfio-user-pci of QEMU 10.1 or newer"),
        ("vfio-user-transitional", "the same, as a transitional device"),
    ):
        parser.add_argument(
            f"--{way}", metavar="SOCKET", type=Path, help=f"serve a disk on this socket, to {peer}"
        )
    parser.add_argument(
        "--disk", metavar="FILE", type=Path, help="raw image to serve; it is copied"
    )
    parser.add_argument(
        "--destructive", action="store_true", help="serve the image itself, which the driver writes"
    )
    parser.add_argument(
        "--whim",
        action="append",
        default=[],
        metavar="NAME",
        help="give the device this legal variation; repeatable",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a property of the disk, for example packed=off; repeatable",
    )
    parser.add_argument(
        "--stream",
        metavar="FILE",
        type=Path,
        default=Path("witness.jsonl"),
        help="new file for the events (default: %(default)s)",
    )
    parser.add_argument(
        "--matrix",
        metavar="FILE",
        action="append",
        default=[],
        type=report_file,
        help="write the verdicts to FILE.html or FILE.json at the end; repeatable",
    )
    parser.set_defaults(run=serve.run)
    part = parser.add_subparsers(metavar="judge").add_parser(
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
