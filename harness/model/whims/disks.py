"""Whims of what a disk is like, where a test leaves that to the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.diskspec import SECTOR, DiskSpec
from harness.model.whims.registry import MODEL, OWNED, Reshape, Whim, file

MIB = (1 << 20) // SECTOR
"""Sectors in a MiB."""


def usually(**fields: Any) -> Reshape:
    """Return what sets these fields where a test has not asked for anything."""
    default = DiskSpec()

    def reshape(spec: DiskSpec) -> DiskSpec:
        if any(getattr(spec, name) != getattr(default, name) for name in fields):
            return spec
        return replace(spec, **fields)

    return reshape


def _disk(name: str, text: str, family: str = "", owned: bool = False, **fields: Any) -> None:
    """File a disk with these fields; with `owned` a test can't leave them to the device."""
    ways = (OWNED,) if owned else (MODEL, OWNED)
    file(Whim(name, text, family=family, ways=ways, reshape=usually(**fields)))


# --- features that have a field in DiskSpec

_disk("no-discard", "DISCARD is not offered", "discard", discard=False)
_disk("no-write-zeroes", "WRITE_ZEROES is not offered", "zeroes", write_zeroes=False)
_disk("no-event-idx", "EVENT_IDX is not offered", event_idx=False)
_disk("no-indirect", "INDIRECT_DESC is not offered", indirect_desc=False)
_disk("no-packed", "RING_PACKED is not offered", packed=False)
_disk("no-in-order", "IN_ORDER is not offered", in_order=False)
_disk("no-config-wce", "CONFIG_WCE is not offered", "wce", config_wce=False)
_disk("secure-erase", "SECURE_ERASE is offered", secure_erase=True)
_disk("fua", "writes with forced unit access are offered, which is a draft", fua=True)

# --- sizes and limits

_disk("blk-size-4096", "blk_size is 4096", "blocks", logical_block_size=4096)
_disk("blk-size-1024", "blk_size is 1024", "blocks", logical_block_size=1024)
_disk("physical-4096", "a physical block is 8 logical blocks", "blocks", physical_block_size=4096)
_disk("topology", "min_io_size and opt_io_size are given", min_io_size=8192, opt_io_size=65536)
_disk("geometry", "the geometry is an odd one", "geometry", geometry=(3, 2, 5))
_disk("discard-limit-8", "max_discard_sectors is 8", "discard", max_discard_sectors=8)
_disk("discard-limit-1", "max_discard_sectors is 1", "discard", max_discard_sectors=1)
_disk("zeroes-limit-8", "max_write_zeroes_sectors is 8", "zeroes", max_write_zeroes_sectors=8)
_disk("zeroes-limit-1", "max_write_zeroes_sectors is 1", "zeroes", max_write_zeroes_sectors=1)
_disk("write-through", "the cache is off when the device is reset", write_cache=False)
_disk("serial-of-20", "the id string has 20 bytes and no NUL", "serial", serial="0123456789" * 2)
_disk("serial-empty", "the id string is empty", "serial", serial="")
_disk("queues-2", "there are 2 request queues", "queues", queues=2)
_disk("queues-4", "there are 4 request queues", "queues", queues=4)
_disk("queues-64", "there are 64 request queues", "queues", queues=64)
_disk("queue-size-4", "a queue has 4 descriptors", "queue size", queue_size=4)
_disk("queue-size-8", "a queue has 8 descriptors", "queue size", queue_size=8)
_disk("queue-size-1024", "a queue has 1024 descriptors", "queue size", queue_size=1024)
_disk("queue-size-32768", "a queue has 32768 descriptors", "queue size", queue_size=32768)
_disk("slow", "the storage does 60 operations a second", "speed", iops=60)
# Over a plain file, which the disks of tests are, LIFETIME must not be offered (5.2.6.2-D-14).
_disk("lifetime", "LIFETIME is offered", owned=True, lifetime=(1, 2, 3))
_disk("lifetime-unknown", "LIFETIME is offered, all values 0", owned=True, lifetime=(0, 0, 0))
_disk("never-unmaps", "no storage is given back", owned=True, unmap=False)

# --- a disk that is as it is

_disk("capacity-16", "the disk has 16 sectors", "disk", owned=True, capacity=16)
_disk("capacity-740", "the disk has 740 sectors", "disk", owned=True, capacity=740)
_disk("capacity-1-mib", "the disk has 1 MiB", "disk", owned=True, capacity=MIB)
_disk("capacity-4-mib", "the disk has 4 MiB", "disk", owned=True, capacity=4 * MIB)
_disk("capacity-100-gib", "the disk has 100 GiB", "disk", owned=True, capacity=100 * 1024 * MIB)
_disk("capacity-16-tib", "the disk has nearly 16 TiB", "disk", owned=True, capacity=(16 << 31) - 8)
_disk("read-only", "RO is offered", "disk", owned=True, read_only=True)
_disk(
    "host-aware",
    "the disk is host-aware, with 2 conventional zones",
    "disk",
    owned=True,
    zoned="host-aware",
    zone_sectors=1024,
    conventional_zones=2,
)
_disk(
    "host-managed",
    "the disk is host-managed",
    "disk",
    owned=True,
    zoned="host-managed",
    zone_sectors=512,
)
_disk(
    "host-managed-limits",
    "the disk is host-managed, with narrow limits and conventional zones",
    "disk",
    owned=True,
    zoned="host-managed",
    zone_sectors=1024,
    zone_capacity=1000,
    conventional_zones=1,
    max_open_zones=2,
    max_active_zones=3,
    max_append_sectors=64,
)
