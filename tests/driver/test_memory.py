"""The allocator over device-visible memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.driver.errors import BadArgumentError
from harness.driver.memory import DmaMemory, Region


def region(address: int, length: int) -> Region:
    return Region(address, memoryview(bytearray(length)))


def test_memory_is_zeroed_even_where_it_was_used_before() -> None:
    memory = DmaMemory([region(0x1000, 64)])
    first = memory.alloc(64)
    memory.view(first, 64)[:] = b"\xff" * 64
    memory.free(first)

    assert bytes(memory.view(memory.alloc(64), 64)) == bytes(64)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nothing_spans_two_regions_that_touch(order: tuple[int, int]) -> None:
    memory = DmaMemory([region(0x1000, 64), region(0x1040, 64)])

    with pytest.raises(BadArgumentError, match="no 128 bytes"):
        memory.alloc(128)
    held = [memory.alloc(64), memory.alloc(64)]
    for index in order:
        memory.free(held[index])
    with pytest.raises(BadArgumentError, match="no 65 bytes"):
        memory.alloc(65)


def test_more_memory_is_asked_for_when_none_is_left() -> None:
    more = [region(0x9000, 128)]
    memory = DmaMemory([region(0x1000, 64)], lambda: more.pop() if more else None)

    assert memory.alloc(100) == 0x9000
    with pytest.raises(BadArgumentError, match="no 100 bytes"):
        memory.alloc(100)


@pytest.mark.parametrize(("address", "length"), [(0xFFF, 1), (0x1000, 65), (0x2000, 1)])
def test_no_view_outside_the_regions(address: int, length: int) -> None:
    memory = DmaMemory([region(0x1000, 64)])

    with pytest.raises(BadArgumentError, match="not device-visible"):
        memory.view(address, length)


def test_what_was_not_given_out_cannot_be_freed() -> None:
    with pytest.raises(BadArgumentError, match="was not allocated"):
        DmaMemory([region(0x1000, 64)]).free(0x1000)


@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.sampled_from([1, 2, 16, 64, 256]), st.booleans()),
        max_size=40,
    )
)
def test_allocations_are_aligned_disjoint_and_all_come_back(
    steps: list[tuple[int, int, bool]],
) -> None:
    memory = DmaMemory([region(0x1000, 1024), region(0x8000, 512)])
    held: dict[int, int] = {}
    for length, align, keep in steps:
        try:
            address = memory.alloc(length, align)
        except BadArgumentError:
            continue
        assert address % align == 0
        assert all(
            address + length <= other or other + size <= address for other, size in held.items()
        )
        memory.view(address, length)
        held[address] = length
        if not keep:
            memory.free(address)
            del held[address]

    for address in held:
        memory.free(address)
    assert memory.alloc(1024) == 0x1000
    assert memory.alloc(512) == 0x8000


@pytest.mark.parametrize(
    ("length", "align"), [(0, 16), (-1, 16), (8, 0), (8, -16), (8, 3), (8, 12), (0, 0), (-8, -8)]
)
def test_what_is_no_length_or_no_alignment_is_refused(length: int, align: int) -> None:
    memory = DmaMemory([region(0x1000, 64)])
    with pytest.raises(BadArgumentError) as error:
        memory.alloc(length, align)
    assert error.value.message == f"cannot allocate {length} bytes aligned to {align}"


def test_the_smallest_length_and_alignment() -> None:
    memory = DmaMemory([region(0x1000, 64)])
    assert [memory.alloc(1, 1) for _ in range(3)] == [0x1000, 0x1001, 0x1002]


def test_a_new_region_may_be_filled_to_its_end() -> None:
    memory = DmaMemory([region(0x1000, 64)], lambda: region(0x9000, 128))
    assert memory.alloc(128) == 0x9000


def test_the_error_says_how_much_was_given_out_of_what() -> None:
    memory = DmaMemory([region(0x1000, 64), region(0x8000, 32)])
    memory.alloc(48)
    with pytest.raises(BadArgumentError) as error:
        memory.alloc(33)
    assert error.value.state == {"given": 48, "regions": [64, 32]}


def test_a_view_of_nothing_is_empty() -> None:
    assert bytes(DmaMemory([region(0x1000, 64)]).view(0x1010, 0)) == b""


def test_all_that_was_given_out_can_be_taken_back_at_once() -> None:
    memory = DmaMemory([region(0x1000, 64), region(0x8000, 32)])
    held = [memory.alloc(32), memory.alloc(32), memory.alloc(32)]
    memory.free_all()

    assert [memory.alloc(64), memory.alloc(32)] == [0x1000, 0x8000]
    memory.free_all()
    with pytest.raises(BadArgumentError, match="was not allocated"):
        memory.free(held[0])


def test_memory_that_is_freed_is_found_again_by_the_same_search() -> None:
    memory = DmaMemory([Region(0x1000, memoryview(bytearray(4096)))])
    given = [memory.alloc(48, 64) for _ in range(64)]
    memory.free(given[5])
    memory.free(given[20])

    again = [memory.alloc(48, 64), memory.alloc(48, 64)]

    assert again == [given[5], given[20]]
    with pytest.raises(BadArgumentError):
        memory.alloc(48, 64)


def test_memory_below_the_first_address_is_used_last() -> None:
    memory = DmaMemory([region(0x1000, 64)], first=0x1020)

    assert [memory.alloc(16) for _ in range(3)] == [0x1020, 0x1030, 0x1000]


def test_allocation_can_begin_anywhere_in_a_region() -> None:
    memory = DmaMemory([region(0x1000, 64)], first=0x1020)

    memory.begin_at(0x1018)
    assert memory.alloc(16, align=8) == 0x1018  # on both sides of the first address
    memory.begin_at(None)
    assert memory.alloc(16) == 0x1030
    with pytest.raises(BadArgumentError, match="0x2000"):
        memory.begin_at(0x2000)
