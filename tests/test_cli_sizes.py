"""Sizes on the command line: 64M, 2G, +512M."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli import sizes
from harness.cli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("1048576", 2**20),
        ("64K", 64 * 1024),
        ("64M", 64 * 2**20),
        ("2G", 2 * 2**30),
        ("2g", 2 * 2**30),
        ("1T", 2**40),
    ],
)
def test_a_size_is_bytes_or_has_a_unit_of_a_power_of_1024(text: str, size: int) -> None:
    assert sizes.parse(text) == size
    assert sizes.parse(text, now=4096) == size


@pytest.mark.parametrize(
    ("text", "now", "size"),
    [
        ("+512M", 2**30, 2**30 + 512 * 2**20),
        ("-1G", 3 * 2**30, 2 * 2**30),
        ("+512", 512, 1024),
        ("-512", 1024, 512),
    ],
)
def test_a_sign_makes_it_a_change(text: str, now: int, size: int) -> None:
    assert sizes.parse(text, now) == size


@pytest.mark.parametrize("text", ["", "G", "1.5G", "2 G", "1GB", "0x200", "--1G", "+", "²", "1e9"])
def test_what_is_no_size_is_said_to_be_none(text: str) -> None:
    assert not sizes.looks_like_size(text)
    with pytest.raises(UsageError, match=r"is not a size; write it like 64M, 2G or"):
        sizes.parse(text, now=512)


@pytest.mark.parametrize(
    ("text", "now", "reason"),
    [
        ("0", None, "0 bytes: a disk has at least one sector"),
        ("0G", 512, "0 bytes: a disk has at least one sector"),
        ("-1G", 2**30, "-1G makes 0 bytes: a disk has at least one sector"),
        ("-2G", 2**30, "-2G makes -1073741824 bytes: a disk has at least one sector"),
        ("513", None, "513 bytes: a disk's size is a multiple of 512"),
        ("+1", 512, r"\+1 makes 513 bytes: a disk's size is a multiple of 512"),
        ("8388608T", None, "this is larger than a file can be"),
        ("+1G", None, "a new disk has no size that could change"),
    ],
)
def test_a_size_that_no_disk_has(text: str, now: int | None, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        sizes.parse(text, now)


@given(st.text(max_size=12), st.none() | st.integers(1, 2**40))
def test_any_text_is_a_size_in_whole_sectors_or_a_usage_error(text: str, now: int | None) -> None:
    try:
        size = sizes.parse(text, now)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert size > 0
        assert size % 512 == 0
