# Derived from Haiku's virtio_block driver:
# Copyright 2013, Jérôme Duval, korli@users.berlios.de.
# Distributed under the terms of the MIT License.
"""Size of the disk in blocks, and Haiku's device_geometry, from the configuration space."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.haiku.constants import B_DISK
from harness.virtio.blk import SECTOR, BlockConfig

_UINT32_MAX = (1 << 32) - 1
_OFF_T_MAX = (1 << 63) - 1
_GEOMETRY = struct.Struct("<IIIIB???I")

GEOMETRY_SIZE = _GEOMETRY.size
"""Size of Haiku's device_geometry in bytes."""


@dataclass(frozen=True)
class Media:
    """The disk: `capacity` in blocks of `block_size` bytes; both block sizes in bytes."""

    capacity: int
    block_size: int
    physical_block_size: int

    @property
    def size(self) -> int:
        """Size of the disk in bytes, without a last block that is not whole."""
        return self.capacity * self.block_size

    @classmethod
    def from_config(cls, config: BlockConfig) -> Media:
        """Return the disk of a configuration; fields without an accepted feature are None.

        Blocks beyond the range of off_t are left out, as is a last block that is not
        whole. Raises ValueError if the block size is not a power of 2, 512 or more.
        """
        block_size = SECTOR if config.blk_size is None else config.blk_size
        if block_size < SECTOR or block_size & (block_size - 1):
            raise ValueError(f"the device's blk_size is {block_size}")
        physical = block_size << (config.physical_block_exp or 0)
        if physical > _UINT32_MAX:
            # More than device_geometry can hold, and than any disk has.
            physical = block_size
        capacity = min(config.capacity // (block_size // SECTOR), _OFF_T_MAX // block_size)
        return cls(capacity, block_size, physical)


@dataclass(frozen=True)
class DeviceGeometry:
    """Haiku's device_geometry; sector sizes in bytes."""

    bytes_per_sector: int
    sectors_per_track: int
    cylinder_count: int
    head_count: int
    device_type: int
    removable: bool
    read_only: bool
    write_once: bool
    bytes_per_physical_sector: int

    def pack(self) -> bytes:
        """Return the C structure, little-endian."""
        return _GEOMETRY.pack(
            self.bytes_per_sector,
            self.sectors_per_track,
            self.cylinder_count,
            self.head_count,
            self.device_type,
            self.removable,
            self.read_only,
            self.write_once,
            self.bytes_per_physical_sector,
        )

    @classmethod
    def unpack(cls, raw: bytes) -> DeviceGeometry:
        """Decode the C structure. Raises struct.error if `raw` has another size."""
        return cls(*_GEOMETRY.unpack(raw))


def compute_geometry_size(block_count: int) -> tuple[int, int, int]:
    """Return sectors per track, cylinders and heads, the same as devfs_compute_geometry_size.

    There is one cylinder and one head with all blocks on its track, if their number
    fits into 32 bits. Else heads are doubled and sectors halved, rounded down.
    """
    heads = 1
    while block_count > _UINT32_MAX:
        heads <<= 1
        block_count >>= 1
    return block_count, 1, heads


def get_geometry(media: Media, read_only: bool) -> DeviceGeometry:
    """Return the disk's geometry as B_GET_GEOMETRY shows it."""
    sectors, cylinders, heads = compute_geometry_size(media.capacity)
    return DeviceGeometry(
        bytes_per_sector=media.block_size,
        sectors_per_track=sectors,
        cylinder_count=cylinders,
        head_count=heads,
        device_type=B_DISK,
        removable=False,
        read_only=read_only,
        write_once=False,
        bytes_per_physical_sector=media.physical_block_size,
    )
