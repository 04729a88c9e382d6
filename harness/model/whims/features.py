"""Whims of features and of the configuration space (virtio 2.2, 2.5, 5.2.3, 5.2.4)."""

from __future__ import annotations

from harness.diskspec import SECTOR, DiskSpec
from harness.model.block import Block
from harness.model.request import Request
from harness.model.storage import Storage
from harness.model.whims.disks import usually
from harness.model.whims.registry import Original, Whim, also, file, whim
from harness.model.zoned import ZonedBlock
from harness.virtio.blk import CONFIG_FIELDS, SEGMENT, Status
from harness.virtio.features import Feature, mask

FLUSH_OFFERED = "5.2.5.2-D-01a"
"""SHOULD always offer FLUSH."""


def _without(name: str, *features: Feature, family: str = "", **fields: bool) -> None:
    """File a device that does not offer these features.

    `fields` of `DiskSpec` are for features that a test may ask for.
    """
    lacking = mask(*features)

    def change(original: Original, block: Block) -> int:
        return int(original(block)) & ~lacking

    names = [*(feature.name for feature in features), *map(str.upper, fields)]
    text = f"{', '.join(names)} not offered"
    breaks = (FLUSH_OFFERED,) if Feature.BLK_FLUSH in features else ()
    parts = [(Block.offered, change)]
    file(Whim(name, text, breaks, family, reshape=usually(**fields), parts=parts))


_without("no-flush", Feature.BLK_FLUSH, Feature.BLK_CONFIG_WCE, family="wce")
_without("no-suspend", Feature.SUSPEND)
_without("no-ring-reset", Feature.RING_RESET)
_without("no-size-max", Feature.BLK_SIZE_MAX, family="size_max")
_without("no-seg-max", Feature.BLK_SEG_MAX, family="seg_max")
_without("no-geometry", Feature.BLK_GEOMETRY, family="geometry")
_without("no-topology", Feature.BLK_TOPOLOGY)
_without("no-blk-size", Feature.BLK_BLK_SIZE, family="blocks")
_without(
    "bare",
    Feature.INDIRECT_DESC,
    Feature.EVENT_IDX,
    Feature.RING_PACKED,
    Feature.IN_ORDER,
    Feature.RING_RESET,
    Feature.SUSPEND,
    Feature.BLK_SIZE_MAX,
    Feature.BLK_SEG_MAX,
    Feature.BLK_GEOMETRY,
    Feature.BLK_TOPOLOGY,
    Feature.BLK_CONFIG_WCE,
    Feature.BLK_FLUSH,
    family="wce",
    discard=False,
    write_zeroes=False,
)


FUTURE = 0b11 << 20
"""Bits of the device type that a later version of the specification may define."""

DISTANT = 0b101 << 50
"""Bits 50 and 52, which version 1.4 leaves to device types (virtio 2.2)."""


def _offering(name: str, bits: int, text: str) -> None:
    """File a device that offers more bits, and works the same whether they are accepted."""

    def change(original: Original, block: Block) -> int:
        return int(original(block)) | bits

    file(Whim(name, text, parts=[(Block.offered, change)]))


_offering("future-bits", FUTURE, "bits 20 and 21 are offered")
_offering("distant-bits", DISTANT, "bits 50 and 52 are offered")
_offering("access-platform", Feature.ACCESS_PLATFORM.mask, "ACCESS_PLATFORM is offered")
_offering("order-platform", Feature.ORDER_PLATFORM.mask, "ORDER_PLATFORM is offered")


@whim(Block.offered, text="ORDER_PLATFORM is offered, and the device refuses to work without it")
def order_platform_demanded(original: Original, block: Block) -> int:
    return int(original(block)) | Feature.ORDER_PLATFORM.mask


@also("order-platform-demanded", Block.acceptable)
def _needs_order_platform(original: Original, block: Block, features: int) -> bool:
    return bool(original(block, features)) and bool(features & Feature.ORDER_PLATFORM.mask)


# --- configuration space


def _field(name: str, text: str, family: str, **values: int) -> None:
    """File a device whose configuration has these values."""

    def change(original: Original, block: Block) -> dict[str, int]:
        return {**original(block), **values}

    file(Whim(name, text, family=family, parts=[(Block.fields, change)]))
    if values.keys() & {"seg_max", "size_max"}:
        also(name, ZonedBlock.__init__)(_appends_what_a_request_holds)


def _appends_what_a_request_holds(
    original: Original, block: ZonedBlock, spec: DiskSpec, storage: Storage
) -> None:
    """Keep max_append_sectors within seg_max times size_max, which is a MUST (5.2.5.2-D-14)."""
    original(block, spec, storage)
    fields, zones = block.fields(), block.zones
    granule = zones.granularity // SECTOR
    most = fields["seg_max"] * fields["size_max"] // SECTOR
    zones.max_append = min(zones.max_append, most // granule * granule)


_field("seg-max-1", "seg_max is 1", "seg_max", seg_max=1)
_field("seg-max-8", "seg_max is 8", "seg_max", seg_max=8)
_field("size-max-512", "size_max is 512", "size_max", size_max=512)
_field("size-max-4096", "size_max is 4096", "size_max", size_max=4096)
_field("size-max-unlimited", "size_max is the largest number", "size_max", size_max=(1 << 32) - 1)
_field(
    "one-segment",
    "a discard, write zeroes or secure erase has 1 segment",
    "segments",
    max_discard_seg=1,
    max_write_zeroes_seg=1,
    max_secure_erase_seg=1,
)


@also("one-segment", Block.each_segment)
def _takes_one(
    original: Original, block: Block, request: Request, known: int, most: int, act: object
) -> Status:
    data = b"".join(request.data())
    several = len(data) > SEGMENT.size and not len(data) % SEGMENT.size
    if several and not any(flags & ~known for _, _, flags in SEGMENT.iter_unpack(data)):
        return Status.IOERR
    return Status(original(block, request, known=known, most=most, act=act))


@whim(Block.fields, text="the geometry is 0 where a test leaves it open", family="geometry")
def geometry_unknown(original: Original, block: Block) -> dict[str, int]:
    unknown = {} if block.spec.geometry else dict.fromkeys(("cylinders", "heads", "sectors"), 0)
    return {**original(block), **unknown}


_field(
    "discard-alignment-8", "discard_sector_alignment is 8", "alignment", discard_sector_alignment=8
)


@whim(Block.config, text="the configuration space goes on after its last field", family="config")
def config_longer(original: Original, block: Block) -> bytes:
    return bytes(original(block)) + b"\xa5" * 32


SIZES = (36, 60, 72, 96)
"""Bytes that the configuration space had in versions of the specification."""


@whim(
    Block.config,
    text="the configuration space is as short as the offered features allow",
    family="config",
)
def config_shorter(original: Original, block: Block) -> bytes:
    offered = block.offered()
    end = max(
        field.offset + field.size
        for field in CONFIG_FIELDS
        if field.feature is not None and offered & field.feature.mask
    )
    return bytes(original(block))[: min(size for size in SIZES if size >= end)]
