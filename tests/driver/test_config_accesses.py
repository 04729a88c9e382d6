"""Widths of reads of the configuration space (virtio 4.1.3.1)."""

from hypothesis import given
from hypothesis import strategies as st

from harness.virtio.blk import CONFIG_FIELDS, CONFIG_SIZE, BlockConfig, config_accesses
from harness.virtio.features import Feature


def test_every_field_gets_its_own_width() -> None:
    widths = {
        field.name: [width for _, width in config_accesses(field.offset, field.size)]
        for field in CONFIG_FIELDS
    }

    assert widths["capacity"] == [4, 4]
    assert widths["seg_max"] == [4]
    assert widths["cylinders"] == [2]
    assert widths["heads"] == [1]
    assert widths["writeback"] == [1]
    assert widths["num_queues"] == [2]
    assert widths["unused1"] == [1, 1, 1]
    assert widths["model"] == [1]


def test_half_a_field_is_one_access() -> None:
    assert list(config_accesses(2, 2)) == [(2, 2)]
    assert list(config_accesses(3, 1)) == [(3, 1)]


def test_the_fields_lie_without_gap_or_overlap() -> None:
    end = 0
    for field in CONFIG_FIELDS:
        assert field.offset == end
        end += field.size
    assert end == CONFIG_SIZE


@given(st.integers(0, CONFIG_SIZE), st.integers(0, 40))
def test_accesses_are_aligned_and_cover_exactly_what_was_asked(offset: int, length: int) -> None:
    at = offset
    for access, width in config_accesses(offset, length):
        assert access == at
        assert access % width == 0
        at += width
    assert at == offset + length


def test_a_field_without_its_feature_is_none() -> None:
    raw = bytes(range(1, 97))

    plain = BlockConfig.parse(raw, 0)
    assert plain.capacity == int.from_bytes(raw[:8], "little")
    assert plain.blk_size is None
    sized = BlockConfig.parse(raw, Feature.BLK_BLK_SIZE.mask)
    assert sized.blk_size == int.from_bytes(raw[20:24], "little")
    assert sized.seg_max is None


def test_a_space_that_ends_early_gives_none_for_what_lies_behind() -> None:
    short = BlockConfig.parse(bytes(36), Feature.BLK_DISCARD.mask | Feature.BLK_MQ.mask)

    assert short.num_queues == 0
    assert short.max_discard_sectors is None
