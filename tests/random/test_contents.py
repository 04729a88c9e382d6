"""The model of a disk: the data that a device may return, and data that it may not."""

from harness.random.contents import ANYTHING, ZEROES, Contents, mismatch, sectors_of


def read(contents, number, sector, count=1):
    contents.read_begins(number, sector, count)
    return contents.read_ends(number)


def written(contents, number, sector, count, salt=None):
    contents.write_begins(number, sector, count, number if salt is None else salt)
    contents.write_ends(number, sector, count, done=True)


def test_a_disk_holds_zeroes_and_then_what_was_written():
    contents = Contents()
    written(contents, 1, 4, 2)

    assert read(contents, 2, 3, 3) == [{ZEROES}, {1}, {1}]


def test_while_a_write_is_in_flight_a_read_may_see_both():
    contents = Contents()
    contents.write_begins(1, 0, 1, 1)
    assert read(contents, 2, 0) == [{ZEROES, 1}]
    contents.write_ends(1, 0, 1, done=True)
    assert read(contents, 3, 0) == [{1}]


def test_a_write_that_comes_during_a_read_may_be_seen():
    contents = Contents()
    contents.read_begins(1, 0, 4)
    written(contents, 2, 2, 8)
    assert contents.read_ends(1) == [{ZEROES}, {ZEROES}, {ZEROES, 2}, {ZEROES, 2}]


def test_writes_that_overlapped_have_no_order():
    contents = Contents()
    contents.write_begins(1, 0, 1, 1)
    contents.write_begins(2, 0, 1, 2)
    contents.write_ends(2, 0, 1, done=True)
    contents.write_ends(1, 0, 1, done=True)
    assert read(contents, 3, 0) == [{1, 2}]
    written(contents, 4, 0, 1)
    assert read(contents, 5, 0) == [{4}]


def test_after_a_write_that_failed_anything_goes_until_the_next():
    contents = Contents()
    contents.write_begins(1, 0, 1, 1)
    contents.write_ends(1, 0, 1, done=False)
    assert ANYTHING in read(contents, 2, 0)[0]
    written(contents, 3, 0, 1)
    assert read(contents, 4, 0) == [{3}]


def test_discarded_sectors_hold_anything_and_zeroed_ones_zeroes():
    contents = Contents()
    written(contents, 1, 0, 4)
    written(contents, 2, 1, 1, ANYTHING)
    written(contents, 3, 2, 1, ZEROES)
    assert read(contents, 4, 0, 4) == [{1}, {ANYTHING}, {ZEROES}, {1}]


def test_what_a_resize_took_comes_back_with_anything_also_during_a_write():
    contents = Contents()
    written(contents, 1, 0, 8)
    contents.write_begins(2, 6, 1, 2)
    contents.lost(4, 8)
    contents.write_ends(2, 6, 1, done=True)
    may = read(contents, 3, 0, 8)
    assert may[:4] == [{1}] * 4
    assert all(ANYTHING in allowed for allowed in may[4:])


def test_what_was_written_and_its_surroundings_are_named_as_ranges():
    contents = Contents(ZEROES)
    assert contents.touched(2, 1 << 40) == []
    for number, (sector, count) in enumerate([(0, 1), (5, 2), (100, 1), (1 << 35, 1)]):
        contents.write_begins(number, sector, count, salt=1)

    assert contents.touched(1, 1 << 40) == [
        (0, 2),
        (4, 8),
        (99, 102),
        ((1 << 35) - 1, (1 << 35) + 2),
    ]
    assert contents.touched(2, 101) == [(0, 9), (98, 101)]


def test_data_in_the_wrong_sector_is_a_mismatch():
    may = [frozenset({7})] * 2
    assert mismatch(sectors_of(7, 4, 2), 4, may) is None
    assert "sector 5 at byte" in str(mismatch(sectors_of(7, 4, 1) * 2, 4, may))


def test_each_byte_may_come_from_either_of_two_writes_and_from_no_third():
    mixed = sectors_of(1, 0, 1)[:100] + sectors_of(2, 0, 1)[100:]
    assert mismatch(mixed, 0, [frozenset({1, 2})]) is None
    assert mismatch(mixed, 0, [frozenset({1})]) is not None
    assert mismatch(mixed, 0, [frozenset({1, ANYTHING})]) is None


def test_data_that_ends_early_is_a_mismatch():
    assert mismatch(sectors_of(1, 0, 1)[:-1], 0, [frozenset({1})]) is not None
