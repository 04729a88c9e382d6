"""What a disk under test looks like, in words that no device owns.

A test says what it wants (`DiskSpec`); the machine that carries the device
turns that into its own options. This module imports nothing of ours, so that
the suite and the machines can share it without knowing each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SECTOR = 512
"""Bytes of a sector: the unit of `capacity` and of every request (virtio 5.2.4)."""

Operation = Literal["read", "write", "flush", "discard", "write-zeroes"]


@dataclass(frozen=True)
class Fault:
    """The backing store fails an operation.

    `sector` (512 bytes) limits it to operations that touch this sector; None
    fails them all. `errno` is the host's error, by number (5 is EIO). With
    `once`, only the first such operation fails. A flush has no sector, and
    reaches the backing store only if something was written since the last one. A
    write that has to be stable when it completes ends with a flush, too. A disk of QEMU's
    whose flushes fail cannot be resized.
    """

    on: Operation
    sector: int | None = None
    errno: int = 5
    once: bool = False


@dataclass(frozen=True)
class DiskSpec:
    """A disk and the device in front of it.

    `capacity` is in sectors of 512 bytes, the block sizes in bytes. None means
    "whatever the device does by itself". `backing` is "file" (a raw file made
    for this disk, zero-filled, deleted with it) or "null" (reads give zeroes,
    writes go nowhere; it cannot be resized). `iops` throttles the backing store to that many
    operations a second.
    Without `unmap` it never gives back blocks of the host's. `geometry` is cylinders, heads and
    sectors of a track.

    `zoned` makes it a zoned disk (virtio 5.2.4), and the fields from there to
    `zones_offline` are for such a disk alone. Its first `conventional_zones`
    zones are conventional, the rest sequential: write required where
    "host-managed", write preferred where "host-aware". `zone_sectors` is the size
    of every zone but a shorter last one, `zone_capacity` how much of each
    sequential zone can be written, both in sectors, as is `max_append_sectors`. A
    limit of 0 for `max_open_zones` and `max_active_zones` is none, a
    `max_append_sectors` of 0 means no zone append. `write_granularity` is in
    bytes. `zones_read_only` and `zones_offline` are zones, counted from 0, that
    the device finds in these states from the start.

    With `secure_erase` the device can erase securely. `lifetime` is what the
    backing store says of its wear: pre_eol_info and the estimates of types A and
    B, as GET_LIFETIME has them (virtio 5.2.6); None is a store without metrics.
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
