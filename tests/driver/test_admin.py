"""Commands and answers of an administration virtqueue, without a device."""

from __future__ import annotations

import pytest

from harness.driver.admin import Answer, Command
from harness.virtio.admin import (
    ANSWER,
    AdminStatus,
    Group,
    Opcode,
    Part,
    Qualifier,
    numbers,
    part,
    parts_in,
    words,
)


def test_a_list_has_a_bit_for_each_number() -> None:
    assert words(frozenset({0, 1})) == (3).to_bytes(8, "little")
    assert words(frozenset({0, 1, 64})) == b"\3".ljust(8, b"\0") + b"\1".ljust(8, b"\0")
    assert numbers(words(frozenset({0, 9, 64, 127}))) == {0, 9, 64, 127}
    assert numbers(b"") == set()


def test_a_command_is_laid_out_as_in_the_specification() -> None:
    command = Command.of(Opcode.DEV_MODE_SET, Group.SR_IOV, 2, b"\1", room=16)

    assert command.sent == b"\x11\0\1\0" + bytes(12) + b"\2" + bytes(7) + b"\1"
    assert command.room == 24


def test_bytes_that_the_device_does_not_count_are_zeros() -> None:
    written = ANSWER.pack(AdminStatus.EINVAL, Qualifier.INVALID_GROUP) + b"result.."

    whole, short = Answer(written, 16), Answer(written, 2)

    assert (whole.status, whole.qualifier) == (AdminStatus.EINVAL, Qualifier.INVALID_GROUP)
    assert whole.result == b"result.."
    assert (short.status, short.qualifier, short.result) == (AdminStatus.EINVAL, 0, b"")


def test_device_parts_follow_one_another() -> None:
    first = part(Part.DEV_FEATURES, 1, bytes(8), b"12345678")
    second = part(Part.DEVICE_STATUS, 0, bytes(8), b"\x0f")

    assert parts_in(first + second) == [
        (Part.DEV_FEATURES, 1, bytes(8), b"12345678"),
        (Part.DEVICE_STATUS, 0, bytes(8), b"\x0f"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(15), "15 bytes at 0 are no head"),
        (part(Part.VQ_CFG, 0, bytes(8), bytes(32))[:-1], "part 0x104 of 32 bytes"),
    ],
    ids=["head", "value"],
)
def test_a_device_part_that_is_cut_is_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts_in(data)
