"""Defects of features and of the configuration space (virtio 2.2, 2.5, 5.2.3 to 5.2.5)."""

from __future__ import annotations

from harness.diskspec import SECTOR
from harness.model.block import WRITEBACK, Block
from harness.model.defects.registry import Original, defect, on_pci
from harness.model.request import Request
from harness.virtio.blk import CONFIG_FIELD, Status
from harness.virtio.features import Feature, mask

# --- offered features


@defect(Block.offered, "6.2-D-01", text="VERSION_1 is not offered", unusable=True)
def version_1_not_offered(original: Original, block: Block) -> int:
    return int(original(block)) & ~Feature.VERSION_1.mask


@defect(Block.offered, "2.2.2-D-03", text="bit 48, which is reserved, is offered")
def undefined_feature_offered(original: Original, block: Block) -> int:
    return int(original(block)) | 1 << 48


@defect(
    Block.offered,
    "2.2.2-D-01",
    "5.2.5.2-D-01b",
    "5.2.5.2-D-01a",
    text="CONFIG_WCE is offered without FLUSH",
)
def flush_not_offered(original: Original, block: Block) -> int:
    return int(original(block)) & ~Feature.BLK_FLUSH.mask


@defect(Block.offered, "5.2.5.2-D-04", text="ZONED is offered by a disk without zones")
def zoned_offered_without_zones(original: Original, block: Block) -> int:
    return int(original(block)) | Feature.BLK_ZONED.mask


@defect(Block.offered, "5.2.6.2-D-14", text="LIFETIME is offered for a disk on a plain file")
def lifetime_offered_over_a_file(original: Original, block: Block) -> int:
    return int(original(block)) | Feature.BLK_LIFETIME.mask


@defect(Block.offered, "5.2.6.2-D-13", text="LIFETIME is not offered for storage that wears out")
def lifetime_not_offered(original: Original, block: Block) -> int:
    return int(original(block)) & ~Feature.BLK_LIFETIME.mask


@defect(
    Block.offered,
    "5.2.3-P-02",
    text="RO is offered by every disk",
)
def read_only_always_offered(original: Original, block: Block) -> int:
    return int(original(block)) | Feature.BLK_RO.mask


@defect(
    Block.offered,
    "5.2.3-P-02",
    text="DISCARD and WRITE_ZEROES are offered although they are switched off",
)
def discard_always_offered(original: Original, block: Block) -> int:
    always = mask(Feature.BLK_DISCARD, Feature.BLK_WRITE_ZEROES)
    return int(original(block)) | (0 if block.spec.zoned else always)


@defect(
    Block.offered,
    "5.2.3-P-01",
    text="MQ is not offered by a device with several queues",
)
def multiqueue_not_offered(original: Original, block: Block) -> int:
    return int(original(block)) & ~Feature.BLK_MQ.mask


# --- accepted features


@on_pci(
    Block.acceptable,
    "2.2.2-D-02b",
    text="features that are not offered are accepted, and their requests are served",
)
def unoffered_features_accepted(original: Original, block: Block, features: int) -> bool:
    return bool(original(block, features & block.offered()))


@defect(Block.acceptable, "2.2.2-D-02a", text="TOPOLOGY is refused without BLK_SIZE")
def topology_needs_block_size(original: Original, block: Block, features: int) -> bool:
    size = features & mask(Feature.BLK_BLK_SIZE, Feature.BLK_TOPOLOGY)
    return bool(original(block, features)) and size != Feature.BLK_TOPOLOGY.mask


@defect(
    Block.acceptable,
    "2.2.2-D-04",
    text="a set of features is refused after it was accepted three times",
)
def features_refused_after_a_while(original: Original, block: Block, features: int) -> bool:
    times = vars(block).setdefault("times", {})
    times[features] = times.get(features, 0) + 1
    return bool(original(block, features)) and times[features] <= 3


@defect(
    Block.acceptable,
    "3.1.1-P-01",
    text="a driver has to accept all features that are offered",
    unusable=True,
)
def every_feature_is_needed(original: Original, block: Block, features: int) -> bool:
    return bool(original(block, features)) and features == block.offered()


# --- configuration space


@defect(Block.config, "2.5.2-D-01", text="before FEATURES_OK every field but capacity reads as 0")
def fields_hidden_before_features_ok(original: Original, block: Block) -> bytes:
    space = bytes(original(block))
    return space if block.features else space[:8] + bytes(len(space) - 8)


@defect(Block.config, "5.2.5.2-D-03", text="the padding of the configuration space is not 0")
def padding_not_zero(original: Original, block: Block) -> bytes:
    space = bytearray(original(block))
    space[CONFIG_FIELD["unused1"].offset + 2] = 0x5A
    return bytes(space)


@defect(
    Block.accept,
    "5.2.5.2-D-02",
    text="writeback stays 1 if CONFIG_WCE is accepted without FLUSH",
)
def writeback_without_flush(
    original: Original, block: Block, features: int, legacy: bool = False
) -> None:
    before = block.writeback
    original(block, features, legacy)
    block.writeback = before


@defect(
    Block.configure,
    "5.2.5-P-12",
    text="the driver's writes to writeback are ignored",
)
def writeback_cannot_be_switched(
    original: Original, block: Block, offset: int, data: bytes, legacy: bool = False
) -> bool:
    return offset == WRITEBACK.offset or bool(original(block, offset, data, legacy))


@defect(
    Block.fields,
    "5.2.6.2-D-09",
    text="write_zeroes_may_unmap is 0 although write zeroes unmaps sectors",
)
def may_unmap_denied(original: Original, block: Block) -> dict[str, int]:
    return {**original(block), "write_zeroes_may_unmap": 0}


@defect(
    Block.fields,
    "5.2.4-P-04",
    "5.2.4-P-06",
    text="capacity is one sector too small",
)
def capacity_one_too_small(original: Original, block: Block) -> dict[str, int]:
    return {**original(block), "capacity": block.capacity - 1}


@defect(
    Block.fields,
    "5.2.4-P-04",
    "4.1.3.2-D-01",
    text="only the low 32 bits of capacity are shown",
)
def capacity_of_32_bits(original: Original, block: Block) -> dict[str, int]:
    return {**original(block), "capacity": block.capacity & 0xFFFF_FFFF}


@defect(
    Block.fields,
    "5.2.4-P-04",
    text="capacity is in blocks of the disk's own size",
)
def capacity_in_blocks(original: Original, block: Block) -> dict[str, int]:
    return {**original(block), "capacity": block.capacity * SECTOR // block.block_size}


@defect(
    Block.execute,
    "5.2.3-P-04",
    text="a request of more than 64 elements fails, below seg_max",
)
def seg_max_not_served(original: Original, block: Block, request: Request) -> Status:
    elements = len(request._readable) + len(request._writable)
    return Status(original(block, request)) if elements <= 64 else Status.IOERR


@defect(
    Block.fields,
    "5.2.4-P-05",
    text="num_queues is always 1",
)
def num_queues_always_1(original: Original, block: Block) -> dict[str, int]:
    return {**original(block), "num_queues": 1}


@defect(
    Block.fields,
    "5.2.5-P-03",
    "5.2.5-P-04",
    text="blk_size is always 512",
)
def blk_size_always_512(original: Original, block: Block) -> dict[str, int]:
    return {**original(block), "blk_size": SECTOR}


@defect(
    Block.fields,
    "5.2.5-P-03",
    text="physical_block_exp is relative to 512 bytes",
)
def physical_block_of_sectors(original: Original, block: Block) -> dict[str, int]:
    exponent = (block.physical_size // SECTOR).bit_length() - 1
    return {**original(block), "physical_block_exp": exponent}


@defect(
    Block.fields,
    "5.2.5-P-11",
    text="the limits of discard and write zeroes are swapped",
)
def limits_swapped(original: Original, block: Block) -> dict[str, int]:
    fields = original(block)
    discard, zeroes = "max_discard_sectors", "max_write_zeroes_sectors"
    return {**fields, discard: fields[zeroes], zeroes: fields[discard]}


@defect(
    Block.fields,
    "5.2.3-P-03",
    text="heads and sectors of the geometry are swapped",
)
def geometry_swapped(original: Original, block: Block) -> dict[str, int]:
    fields = original(block)
    return {**fields, "heads": fields["sectors"], "sectors": fields["heads"]}
