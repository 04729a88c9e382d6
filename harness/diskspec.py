"""Description of a disk under test, independent of the kind of device.

A test asks for a `DiskSpec`. The machine that has the device turns it into its
own options. This module imports no other module of ours, so that the suite and
the machines can both use it.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

SECTOR = 512
"""Bytes of a sector, the unit of `capacity` and of all requests (virtio 5.2.4)."""

ImageFormat = Literal["raw", "qcow2"]
ErrorPolicy = Literal["report", "ignore", "stop", "enospc"]
Operation = Literal["read", "write", "flush", "discard", "write-zeroes"]


@dataclass(frozen=True)
class Fault:
    """A fault of the backing store: an operation that fails there.

    With `sector` (512 bytes), only operations that touch this sector fail; with
    None, all operations of this kind. `errno` is the number of the host's error
    (5 is EIO). With `once`, only the first such operation fails. A flush has no
    sector, and reaches the backing store only if data was written since the
    last flush. A write that has to be stable when it completes also ends with a
    flush. QEMU cannot resize a disk whose flushes fail.
    """

    on: Operation
    sector: int | None = None
    errno: int = 5
    once: bool = False


@dataclass(frozen=True)
class DiskSpec:
    """A disk and the device in front of it.

    `capacity` is in sectors of 512 bytes, the block sizes are in bytes. None means
    the device's default. `backing` is "file" (a raw file, created for this disk,
    filled with zeroes and deleted with the disk) or "null" (reads return zeroes,
    writes are dropped; the disk cannot be resized). `iops` limits the backing
    store to this number of operations per second. Without `unmap` the backing
    store never deallocates blocks. `geometry` is cylinders, heads and sectors
    per track.

    `zoned` makes the disk a zoned disk (virtio 5.2.4). The fields after it, up to
    `zones_offline`, are for zoned disks only. The first `conventional_zones` zones
    are conventional. The others are sequential: write required if "host-managed",
    write preferred if "host-aware". `zone_sectors` is the size of each zone; the
    last zone may be smaller. `zone_capacity` is the writable part of each
    sequential zone. Both are in sectors, as is `max_append_sectors`. 0 means no
    limit in `max_open_zones` and `max_active_zones`, and no zone append in
    `max_append_sectors`. `write_granularity` is in bytes. `zones_read_only` and
    `zones_offline` are numbers of zones, counted from 0, that have these states
    from the start.

    With `express` the device is a PCI Express function on a bus of its own, below a port that
    can reset this bus. None means wherever the target has its devices.

    `image` is the format of the file: "raw", or "qcow2", whose blocks are seen through the device
    only. `iothreads` is the number of threads of the host that serve the virtqueues by turns; None
    means none apart from the main thread. `on_error` says how errors of the backing store are
    handled: "report" completes the request with an error, "ignore" completes it as if it had
    succeeded, "stop" stops the machine and repeats the request when the machine continues, and
    "enospc" does this for ENOSPC only and reports the others.

    With `fua` the device offers writes with forced unit access, which are a draft.
    With `secure_erase` the device supports secure erase. `lifetime` is the wear
    that the backing store reports: pre_eol_info and the estimates of types A and
    B, as in GET_LIFETIME (virtio 5.2.6). None is a store without such metrics.

    With `scsi` the device offers the SCSI commands of the legacy interface; QEMU has them only
    without a modern one. Without `msix` a PCI function has no MSI-X capability. With `notify_port`
    it can be notified at an I/O port, too.

    With `members` the device is a PCI function that owns a group of this number of virtual
    functions, which it administrates (virtio 2.12).
    """

    capacity: int = 8 * 1024 * 1024 // SECTOR
    backing: Literal["file", "null"] = "file"
    read_only: bool = False
    logical_block_size: int | None = None
    physical_block_size: int | None = None
    geometry: tuple[int, int, int] | None = None
    min_io_size: int | None = None
    opt_io_size: int | None = None
    serial: str | None = None
    queues: int | None = None
    queue_size: int | None = None
    seg_max_adjust: bool | None = None
    write_cache: bool | None = None
    config_wce: bool | None = None
    discard: bool | None = None
    write_zeroes: bool | None = None
    max_discard_sectors: int | None = None
    max_write_zeroes_sectors: int | None = None
    event_idx: bool | None = None
    indirect_desc: bool | None = None
    packed: bool | None = None
    in_order: bool | None = None
    fua: bool | None = None
    express: bool | None = None
    unmap: bool = True
    iops: int | None = None
    faults: tuple[Fault, ...] = ()
    zoned: Literal["host-managed", "host-aware"] | None = None
    zone_sectors: int | None = None
    zone_capacity: int | None = None
    conventional_zones: int = 0
    max_open_zones: int | None = None
    max_active_zones: int | None = None
    max_append_sectors: int | None = None
    write_granularity: int | None = None
    zones_read_only: tuple[int, ...] = ()
    zones_offline: tuple[int, ...] = ()
    secure_erase: bool | None = None
    lifetime: tuple[int, int, int] | None = None
    scsi: bool | None = None
    msix: bool | None = None
    notify_port: bool | None = None
    members: int | None = None
    image: ImageFormat = "raw"
    iothreads: int | None = None
    on_error: ErrorPolicy = "report"


PLAIN = vars(DiskSpec())
"""Fields of a disk about which nothing is said, with their values."""


def unsupported(spec: DiskSpec, supported: Set[str]) -> list[str]:
    """Return the fields of `spec` that differ from the default and are not in `supported`."""
    return [
        name for name, value in vars(spec).items() if name not in supported and value != PLAIN[name]
    ]
