"""Properties of a disk as its device shows them, compared with what a test asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.diskspec import SECTOR, DiskSpec, unsupported
from harness.driver.block import BlockDriver
from harness.driver.interface import Driver
from harness.virtio.blk import BlockConfig, ZonedModel
from harness.virtio.features import Feature

OFFERED = {
    "packed": Feature.RING_PACKED,
    "in_order": Feature.IN_ORDER,
    "event_idx": Feature.EVENT_IDX,
    "indirect_desc": Feature.INDIRECT_DESC,
    "config_wce": Feature.BLK_CONFIG_WCE,
    "discard": Feature.BLK_DISCARD,
    "write_zeroes": Feature.BLK_WRITE_ZEROES,
    "secure_erase": Feature.BLK_SECURE_ERASE,
    "fua": Feature.BLK_REQ_FLAGS_OUT_FUA,
    "scsi": Feature.BLK_SCSI,
}
"""`DiskSpec` fields that only ask for a feature bit; any device that offers the bit satisfies
them."""

ZONES = frozenset(
    {
        *("zone_sectors", "zone_capacity", "conventional_zones", "zones_read_only"),
        *("zones_offline", "max_open_zones", "max_active_zones", "max_append_sectors"),
        "write_granularity",
    }
)
"""`DiskSpec` fields of a zoned disk that every test of zones reads off the device itself."""

ZONED = {ZonedModel.HOST_MANAGED: "host-managed", ZonedModel.HOST_AWARE: "host-aware"}

CHOSEN_BY_DRIVER = frozenset({"queue_size"})
"""`DiskSpec` fields that the driver chooses, so that every device satisfies them."""


READABLE = frozenset(
    {
        *("capacity", "read_only", "logical_block_size", "physical_block_size", "geometry"),
        *("min_io_size", "opt_io_size", "queues", "write_cache", "max_discard_sectors"),
        *("max_write_zeroes_sectors", "zoned"),
        *OFFERED,
    }
)
"""`DiskSpec` fields that a driver can read off the device."""


def unreadable(spec: DiskSpec, provided: Collection[str] = ()) -> Iterator[str]:
    """Yield, in words, what a test asks for and no device shows, except fields of `provided`."""
    for name in unsupported(spec, {*READABLE, *CHOSEN_BY_DRIVER, *ZONES, *provided}):
        yield f"cannot provide {name}: the targets file does not say how"


@dataclass(frozen=True)
class Found:
    """A disk as its device shows it before FEATURES_OK."""

    offered: int
    config: BlockConfig
    transport_queues: int
    """Virtqueues that the transport has, at most as many as `config_queues`."""

    @classmethod
    def of(cls, driver: Driver) -> Found:
        """Read a device. DriverError if it does not answer.

        Of a device in a guest, the number of virtqueues is taken from its configuration space.
        """
        offered = driver.offered()
        raw = driver.config_read(0, driver.config_size())
        config = BlockConfig.parse(raw, offered)
        if not isinstance(driver, BlockDriver):
            return cls(offered, config, config.num_queues or 1)
        queues = 0
        while queues < (config.num_queues or 1) and driver.transport.queue_max_size(queues):
            queues += 1
        return cls(offered, config, queues)

    def offers(self, feature: Feature) -> bool:
        """Return True if the device offers the feature."""
        return bool(self.offered & feature.mask)

    @property
    def config_queues(self) -> int:
        """Number of request virtqueues that the configuration space shows (virtio 5.2.2)."""
        return self.config.num_queues or 1

    @property
    def zoned(self) -> str | None:
        """The zoned model as `DiskSpec.zoned` names it, None without zones."""
        if not self.offers(Feature.BLK_ZONED) or self.config.model is None:
            return None
        return ZONED.get(ZonedModel(self.config.model))

    @cached_property
    def values(self) -> dict[str, Any]:
        """`DiskSpec` fields -> values, for those that a driver can read."""
        config = self.config
        block = config.blk_size or SECTOR
        values: dict[str, Any] = {
            "capacity": config.capacity,
            "read_only": self.offers(Feature.BLK_RO),
            "queues": self.transport_queues,
            "zoned": self.zoned,
            "logical_block_size": block,
            "write_cache": self.offers(Feature.BLK_FLUSH) and config.writeback != 0,
            **{name: self.offers(feature) for name, feature in OFFERED.items()},
        }
        if config.physical_block_exp is not None:
            values["physical_block_size"] = block << config.physical_block_exp
        for name in ("min_io_size", "opt_io_size"):
            size = getattr(config, name)
            if size is not None:
                values[name] = size * block
        for name in ("max_discard_sectors", "max_write_zeroes_sectors"):
            if (most := getattr(config, name)) is not None:
                values[name] = most
        if config.cylinders is not None:
            values["geometry"] = (config.cylinders, config.heads, config.sectors)
        return values

    def differences(self, spec: DiskSpec, provided: Collection[str] = ()) -> Iterator[str]:
        """Yield, in words, each property that a test asks for and the device does not have.

        A property with its default in `spec` is not asked for, nor are those of `provided`.
        `queues` asks for at least that number.
        """
        yield from unreadable(spec, provided)
        for name in unsupported(spec, frozenset()):
            wanted, found = getattr(spec, name), self.values.get(name)
            if name not in READABLE or name in provided:
                continue
            if name not in self.values:
                yield f"the device shows no {name}, and the test needs {_shown(wanted)}"
            elif name in OFFERED and found != wanted:
                offers = "does not offer" if wanted else "always offers"
                yield f"the device {offers} {OFFERED[name].name}"
            elif name == "queues" and found < wanted:
                yield f"the device has {found} queues, and the test needs {wanted}"
            elif name not in OFFERED and name != "queues" and found != wanted:
                yield f"the device has {name} {_shown(found)}, and the test needs {_shown(wanted)}"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
