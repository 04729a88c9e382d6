"""Arguments, and errors as one line."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence

from harness.channel.stream import ChannelError
from harness.cli import bench, boot, doctor, image, live, matrix, random, soak, watch
from harness.cli.errors import UsageError
from harness.driver.errors import DriverError
from harness.guest.client import AgentError
from harness.inputs import printable
from harness.machine import MachineError, cleanup
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
  vblk doctor                            what is there, what is missing
  vblk boot --disk 64M --disk 1G         a guest with two new disks, its console here
  vblk resize disk0 +512M                in another terminal: live
  vblk ssh -- uname -r                   a command in that guest
  vblk watch                             a guest whose driver shows the disk as it changes
  vblk matrix diff old.json new.json     what a run of the suite found better, and what worse
"""
BOOT_EXAMPLES = """\
examples:
  vblk boot                              one new disk of 64 MiB
  vblk boot --disk 2G --memory 128       128 MiB of memory
  vblk boot --disk my.img                a file of yours, read-only
  vblk boot --disk my.img --destructive  and the guest may write to it
"""
RESIZE_EXAMPLES = """\
SIZE is in bytes, or has a unit K, M, G or T (powers of 1024); with + or - it is a change.

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

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vblk`; the return value is its exit status (2 for an error, 130 for Ctrl-C)."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(_shielded(words))
    cleanup.install_signal_handlers()
    try:
        return int(arguments.run(arguments))
    except EXPECTED as error:
        print(f"vblk: {printable(str(error))}", file=sys.stderr)
        return 2
    except cleanup.Terminated as ending:
        return 128 + ending.signum
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not find that out once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _shielded(argv: list[str]) -> list[str]:
    """A size like -1G behind `--`, as argparse would take it for an option."""
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
        made = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    one = command(
        "boot", boot.boot, "boot a guest with disks, console in the terminal", BOOT_EXAMPLES
    )
    one.add_argument(
        "--disk",
        action="append",
        metavar="SIZE|PATH",
        help="a new disk of that size, or an image file, raw or *.qcow2 (again for more; "
        f"default: {boot.DEFAULT_DISK})",
    )
    one.add_argument(
        "--destructive", action="store_true", help="the guest may write to image files"
    )
    one.add_argument("--memory", type=int, default=256, metavar="MIB", help="default: %(default)s")
    one.add_argument("--kernel-args", default="", metavar="ARGS", help="more of them")
    _add_means(one)

    one = command("resize", live.resize, "resize a disk of a running guest, live", RESIZE_EXAMPLES)
    one.add_argument("disk", metavar="DISK", help="its name, as `vblk boot` prints it")
    one.add_argument("size", metavar="SIZE")
    _add_qmp(one)

    one = command("ssh", live.ssh, "a shell or a command in a running guest", SSH_EXAMPLES)
    one.add_argument("command", nargs="*", metavar="COMMAND")
    _add_qmp(one)

    _add_means(watch.add_parser(commands))
    matrix.add_parser(commands)

    parts = command("image", image.path, "the guest image").add_subparsers(
        metavar="build|update|path", required=True
    )
    for name, run, text in (
        ("build", image.build, "build it unless it is there, and print its directory"),
        ("update", image.update, "lock the package versions that apt offers now"),
        ("path", image.path, "print its directory"),
    ):
        parts.add_parser(name, help=text, description=text).set_defaults(run=run)

    one = command("doctor", doctor.doctor, "what is there, what is missing, what installs it")
    _add_qemu(one)

    one = command("bench", bench.bench, "time the start of targets, and their requests")
    one.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"default: {', '.join(bench.SPANS)}"
    )
    one.add_argument("--runs", type=int, default=5, metavar="N", help="default: %(default)s")
    one.add_argument(
        "--requests",
        type=int,
        default=20000,
        metavar="N",
        help="of each target in each run; default: %(default)s",
    )
    _add_means(one)

    one = command("soak", soak.soak, "clone many guests, and look what they leave behind")
    one.add_argument(
        "--clones", type=int, default=200, metavar="N", help="in a row; default: %(default)s"
    )
    one.add_argument(
        "--at-once", type=int, default=8, metavar="N", help="after that; default: %(default)s"
    )
    _add_means(one)

    random.add_parsers(command)
    return parser


def _add_qemu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--qemu", metavar="PATH", help="default: qemu-system-x86_64 on PATH")


def _add_means(parser: argparse.ArgumentParser) -> None:
    _add_qemu(parser)
    parser.add_argument(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="auto: KVM where a guest has been seen to boot on it, else TCG",
    )


def _add_qmp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--qmp", metavar="SOCKET", help="which guest, if several run")
