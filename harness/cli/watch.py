"""`vblk watch`: a disk in a booted guest, as the driver sees it, also while it is resized."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from harness import interrupt
from harness.cli.errors import UsageError
from harness.diskspec import SECTOR, DiskSpec
from harness.haiku.constants import Ioctl, StatusT
from harness.haiku.features import feature_names
from harness.haiku.geometry import GEOMETRY_SIZE, DeviceGeometry
from harness.haiku.handle import Handle
from harness.haiku.module import open_disk

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXAMPLES = """\
examples:
  vblk watch                             a new disk of 64 MiB
  vblk watch --size 3T --block-size 4096
  vblk watch --changes 1                 end after the first resize
"""

INTERVAL = 0.2
"""Seconds between two queries of the media status, each with a read of the disk's first block."""


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command and its arguments, except `--qemu` and `--accel`, which the caller adds."""
    parser = commands.add_parser(
        "watch",
        help="show a disk as a driver sees it, also while it is resized",
        description="Boot a guest with a disk, open the disk there, and show it as the driver "
        "sees it. Show it again after each change, until Ctrl-C.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="64M", help="size of the new disk (default: %(default)s)")
    parser.add_argument("--block-size", type=int, metavar="BYTES", help="logical block size")
    parser.add_argument("--read-only", action="store_true", help="a disk that cannot be written")
    parser.add_argument(
        "--changes", type=int, metavar="N", help="end after the disk changed N times"
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Boot a guest, open its disk, and show it until the user stops."""
    from harness.cli import means, sizes
    from harness.targets import GuestTarget

    if arguments.changes is not None and arguments.changes < 1:
        raise UsageError(f"--changes {arguments.changes}: 1 or more")
    spec = DiskSpec(
        capacity=sizes.parse(arguments.size) // SECTOR,
        logical_block_size=arguments.block_size,
        read_only=arguments.read_only,
    )
    target = GuestTarget("serial", arguments.qemu, arguments.accel, progress=means.say)
    try:
        plugged = target.plug(spec)
        assert target.guest is not None
        machine = target.guest.machine
        name = machine.drives[-1].name
        command = ["vblk", "resize", name, "+64M", "--qmp", str(machine.qmp_path)]
        print(f"to resize it, in another terminal:  {shlex.join(command)}\n")

        def pause() -> None:
            time.sleep(INTERVAL)
            target.check()  # a guest that has ended has nothing to show any more

        with open_disk(plugged.driver) as handle:
            watch(handle, lambda text: print(text, flush=True), arguments.changes, pause)
    finally:
        with interrupt.shielded():
            target.close()
    return 0


def watch(
    handle: Handle,
    show: Callable[[str], None],
    changes: int | None,
    pause: Callable[[], None],
) -> None:
    """`show` the disk, and again at every change of its media; return after `changes` of them.

    `pause` is called before every look. It ends the watch by an exception.
    """
    show(view(handle, media_status(handle)))
    seen = 0
    while changes is None or seen < changes:
        pause()
        # Keep reading, so that the statistics change.
        handle.read(0, handle.info.media.block_size)
        status = media_status(handle)
        if status is not StatusT.B_OK:
            seen += 1
            show(view(handle, status))


def media_status(handle: Handle) -> StatusT:
    """Query B_GET_MEDIA_STATUS, which also clears the status."""
    buffer = bytearray(4)
    status = handle.ioctl(Ioctl.B_GET_MEDIA_STATUS, buffer)
    if status is not StatusT.B_OK:
        return status
    return StatusT(int.from_bytes(buffer, "little", signed=True))


def view(handle: Handle, status: StatusT) -> str:
    """Return a description of the disk in a few lines; `status` is its media status."""
    info = handle.info
    buffer = bytearray(GEOMETRY_SIZE)
    handle.ioctl(Ioctl.B_GET_GEOMETRY, buffer, GEOMETRY_SIZE)
    geometry = DeviceGeometry.unpack(bytes(buffer))
    limits = info.dma_resource.restrictions
    flags = {
        "removable": geometry.removable,
        "read-only": geometry.read_only,
        "write-once": geometry.write_once,
    }
    rows = {
        "features": ", ".join(feature_names(info.features)),
        "size": f"{info.media.size} bytes, {info.media.capacity} blocks",
        "geometry": f"{geometry.head_count} heads, {geometry.cylinder_count} cylinders, "
        f"{geometry.sectors_per_track} sectors per track",
        "sectors": f"{geometry.bytes_per_sector} bytes, "
        f"physically {geometry.bytes_per_physical_sector}",
        "is": ", ".join(name for name, held in flags.items() if held) or "writable",
        "segments": f"at most {limits.max_segment_count}, of {limits.max_segment_size} bytes",
        "media": status.name,
        "statistics": ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in asdict(info.statistics).items()
        ),
    }
    return "\n".join(f"{name:<12}{text}" for name, text in rows.items()) + "\n"
