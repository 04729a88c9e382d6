"""Geometry and media from the configuration space, in blocks and as device_geometry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.haiku.geometry import (
    GEOMETRY_SIZE,
    DeviceGeometry,
    Media,
    compute_geometry_size,
    get_geometry,
)
from harness.virtio.blk import BlockConfig

TIB = 2**31
"""Sectors of a tebibyte."""

block_sizes = st.integers(9, 22).map(lambda exponent: 1 << exponent)


@pytest.mark.parametrize(
    ("blocks", "sectors", "heads"),
    [
        (0, 0, 1),
        (1, 1, 1),
        (16385, 16385, 1),
        (2 * TIB - 1, 2**32 - 1, 1),
        (2 * TIB, 2**31, 2),
        (2 * TIB + 1, 2**31, 2),
        (5 * TIB, 5 * TIB // 4, 4),
        (2**54, 2**31, 2**23),
    ],
)
def test_heads_double_where_the_blocks_outgrow_32_bits(blocks, sectors, heads):
    assert compute_geometry_size(blocks) == (sectors, 1, heads)


@given(st.integers(0, 2**55))
def test_geometry_never_has_more_blocks_than_the_disk_and_loses_less_than_a_head(blocks):
    sectors, cylinders, heads = compute_geometry_size(blocks)

    assert 0 <= sectors < 2**32
    assert blocks - heads < sectors * cylinders * heads <= blocks
    assert heads == 1 or sectors >= 2**31


@given(st.integers(0, 2**64 - 1), block_sizes, st.integers(0, 255))
def test_media_hold_whole_blocks_that_an_off_t_reaches(capacity, blk_size, exponent):
    config = BlockConfig(capacity, blk_size=blk_size, physical_block_exp=exponent)

    media = Media.from_config(config)

    assert media.block_size == blk_size
    assert media.size < 2**63
    left = capacity * 512 - media.size
    assert left >= 0
    assert left < blk_size or media.size > 2**63 - 1 - blk_size
    assert media.physical_block_size in (blk_size, blk_size << exponent)
    assert media.physical_block_size < 2**32
    assert len(get_geometry(media, False).pack()) == GEOMETRY_SIZE


def test_without_blk_size_and_topology_blocks_are_sectors():
    assert Media.from_config(BlockConfig(17)) == Media(17, 512, 512)


def test_the_physical_block_is_a_power_of_the_logical_one():
    config = BlockConfig(4096, blk_size=512, physical_block_exp=3)

    assert Media.from_config(config).physical_block_size == 4096


def test_a_tail_shorter_than_a_block_is_not_part_of_the_disk():
    assert Media.from_config(BlockConfig(17, blk_size=4096)).size == 8192


@pytest.mark.parametrize("blk_size", [0, 1, 256, 513, 4095, 2**32 - 1])
def test_a_block_size_that_sectors_do_not_fit_is_refused(blk_size):
    with pytest.raises(ValueError, match=f"blk_size is {blk_size}"):
        Media.from_config(BlockConfig(17, blk_size=blk_size))


def test_device_geometry_is_packed_as_the_c_structure():
    geometry = get_geometry(Media(0x01020304, 512, 4096), read_only=True)

    raw = geometry.pack()

    assert raw.hex(" ", 4) == "00020000 04030201 01000000 01000000 00000100 00100000"
    assert DeviceGeometry.unpack(raw) == geometry
