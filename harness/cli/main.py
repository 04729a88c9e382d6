"""Arguments of `vblk`, and errors as one line."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import interrupt
from harness.channel.stream import ChannelError
from harness.cli import (
    bench,
    boot,
    doctor,
    export,
    image,
    live,
    matrix,
    random,
    report,
    soak,
    watch,
    witness,
)
from harness.cli.errors import UsageError
from harness.driver.errors import DriverError
from harness.guest.client import AgentError
from harness.inputs import printable
from harness.machine import MachineError
from harness.targets import TargetError
from images import ImageError

EXPECTED = (
    AgentError,
    ChannelError,
    DriverError,
    ImageError,
    MachineError,
    TargetError,
    UsageError,
)

EXAMPLES = """\
examples:
  vblk doctor                            what is installed, and what is missing
  vblk boot --disk 64M --disk 1G         a guest with two new disks, and its console
  vblk resize disk0 +512M                in another terminal, while the guest runs
  vblk ssh -- uname -r                   a command in that guest
  vblk watch                             show a disk as a driver in a guest sees it
  vblk matrix diff old.json new.json     compare the results of two runs
"""
BOOT_EXAMPLES = """\
examples:
  vblk boot                              one new disk of 64 MiB
  vblk boot --disk 2G --memory 128       128 MiB of memory
  vblk boot --disk my.img                an existing file, read-only
  vblk boot --disk my.img --destructive  the same, and the guest may write to it
"""
RESIZE_EXAMPLES = """\
SIZE is in bytes, or has a unit K, M, G or T (powers of 1024). With + or - it is a change.

examples:
  vblk resize disk0 2G
  vblk resize disk0 +512M
  vblk resize disk1 -1G --qmp /tmp/vblk-x1y2z3/qmp
"""
SSH_EXAMPLES = """\
examples:
  vblk ssh
  vblk ssh -- ls /sys/bus/pci/devices
"""

OUTPUT_LOST = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)
"""Errors of a write to a terminal that is gone, or to a file that is full."""

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vblk`; return its exit status (2 for an error, 130 for Ctrl-C)."""
    if sys.stdout is None:  # the process was started without one
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until its end)
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(_shielded(words))
    ours = not interrupt.installed()
    interrupt.install()
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except EXPECTED as error:
        if interrupt.received() is not None:  # it is the consequence of a signal
            return 128 + (interrupt.received() or signal.SIGINT)
        print(f"vblk: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + (interrupt.received() or signal.SIGINT)
    except OSError as error:
        if error.errno not in OUTPUT_LOST or error.filename is not None:
            raise
        # The interpreter must not find out once more that nobody reads our output, or that a
        # file in its place is full.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            print(f"vblk: no more output: {error.strerror}", file=sys.stderr)
        return 1
    except RuntimeError:
        # Python's own locks may raise it when a signal interrupts them.
        if interrupt.received() is None:
            raise
        return 128 + (interrupt.received() or signal.SIGINT)
    finally:
        if ours:
            interrupt.finish()


def _shielded(argv: list[str]) -> list[str]:
    """Return the arguments with sizes like -1G after `--`.

    Otherwise argparse takes such a size for an option.
    """
    if argv[:1] != ["resize"] or "--" in argv:
        return argv
    sizes = [word for word in argv if re.match(r"-\d", word)]
    return [*(word for word in argv if word not in sizes), *(["--", *sizes] if sizes else [])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vblk",
        description="A virtio-blk device, a guest to drive it from, and tools around them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Command, text: str, epilog: str = "") -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run)
        return parser

    part = command(
        "boot", boot.boot, "boot a guest with disks, console in the terminal", BOOT_EXAMPLES
    )
    part.add_argument(
        "--disk",
        action="append",
        metavar="SIZE|PATH",
        help="a new disk of this size, or an image file, raw or *.qcow2; repeatable "
        f"(default: {boot.DEFAULT_DISK})",
    )
    part.add_argument(
        "--destructive", action="store_true", help="the guest may write to image files"
    )
    part.add_argument(
        "--memory",
        type=int,
        default=256,
        metavar="MIB",
        help="memory of the guest (default: %(default)s)",
    )
    part.add_argument(
        "--kernel-args", default="", metavar="ARGS", help="additional arguments for the kernel"
    )
    _add_means(part)

    part = command("resize", live.resize, "resize a disk of a running guest", RESIZE_EXAMPLES)
    part.add_argument("disk", metavar="DISK", help="name of the disk, as `vblk boot` prints it")
    part.add_argument("size", metavar="SIZE")
    part.add_argument(
        "--shrink", action="store_true", help="allow to cut off the end of an image file"
    )
    part.add_argument(
        "--at-once", action="store_true", help="do not wait for a guest that still boots"
    )
    _add_qmp(part)

    part = command("ssh", live.ssh, "a shell or a command in a running guest", SSH_EXAMPLES)
    part.add_argument("command", nargs="*", metavar="COMMAND")
    _add_qmp(part)

    _add_means(watch.add_parser(commands))
    matrix.add_parser(commands)
    report.add_parser(commands)
    export.add_parser(commands)
    witness.add_parser(commands)

    parts = command("image", image.path, "the guest image").add_subparsers(
        metavar="build|update|path|foreign", required=True
    )
    for name, run, text in (
        ("build", image.build, "build it if it does not exist, and print its directory"),
        ("update", image.update, "lock the package versions that apt offers now"),
        ("path", image.path, "print its directory"),
    ):
        parts.add_parser(name, help=text, description=text).set_defaults(run=run)
    text = "unpack programs of another Debian suite, and print their directory"
    foreign = parts.add_parser("foreign", help=text, description=text)
    foreign.set_defaults(run=image.foreign)
    foreign.add_argument(
        "name", metavar="NAME", help="qemu-11, libblkio, linux-trixie, linux-sid or linux-arm64"
    )
    foreign.add_argument(
        "--update", action="store_true", help="first lock the versions that the suite offers now"
    )

    part = command(
        "doctor", doctor.doctor, "show what is installed, what is missing, and what installs it"
    )
    _add_qemu(part)

    part = command("bench", bench.bench, "measure the start of targets, and their requests")
    part.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help=f"target to measure (default: {', '.join(bench.SPANS)})",
    )
    part.add_argument(
        "--runs", type=int, default=5, metavar="N", help="number of runs (default: %(default)s)"
    )
    part.add_argument(
        "--requests",
        type=int,
        default=20000,
        metavar="N",
        help="requests of each target in each run (default: %(default)s)",
    )
    _add_means(part)

    part = command("soak", soak.soak, "clone many guests, and check that they leave nothing behind")
    part.add_argument(
        "--clones",
        type=int,
        default=200,
        metavar="N",
        help="clones one after the other (default: %(default)s)",
    )
    part.add_argument(
        "--at-once",
        type=int,
        default=8,
        metavar="N",
        help="clones at the same time, afterwards (default: %(default)s)",
    )
    _add_means(part)

    random.add_parsers(command)
    return parser


def _add_qemu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--qemu", metavar="PATH", help="QEMU program (default: qemu-system-x86_64 from PATH)"
    )


def _add_means(parser: argparse.ArgumentParser) -> None:
    _add_qemu(parser)
    parser.add_argument(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="accelerator; auto uses KVM if a guest boots with it, otherwise TCG",
    )


def _add_qmp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--qmp", metavar="SOCKET", help="QMP socket of the guest, if several run")
