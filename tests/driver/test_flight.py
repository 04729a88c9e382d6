"""A request in memory: its framing, and the parts that a device must not change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.driver.errors import BadArgumentError
from harness.driver.flight import Flight, Sent
from harness.driver.interface import CANARY, Completion, Request
from harness.driver.memory import DmaMemory, Region
from harness.driver.virtqueue.split import SplitQueue
from harness.virtio.blk import STATUS_UNWRITTEN


def memory() -> DmaMemory:
    return DmaMemory([Region(0x10000, memoryview(bytearray(1 << 20)))])


def lengths(flight: Flight, writable: bool) -> list[int]:
    return [buffer.length for buffer in flight.buffers if buffer.writable is writable]


def prepare(request: Request) -> tuple[DmaMemory, Flight]:
    shared = memory()
    return shared, Flight.prepare(request, shared, SplitQueue(shared, 0, 64))


def test_the_usual_cut_is_header_data_status() -> None:
    _, write = prepare(Request(1, data=bytes(512)))
    _, read = prepare(Request(0, receive=512))
    _, flush = prepare(Request(4))

    assert (lengths(write, False), lengths(write, True)) == ([16, 512], [1])
    assert (lengths(read, False), lengths(read, True)) == ([16], [512, 1])
    assert (lengths(flush, False), lengths(flush, True)) == ([16], [1])


def cuts(total: int) -> st.SearchStrategy[tuple[int, ...]]:
    borders = st.sets(st.integers(1, total - 1), max_size=5) if total > 1 else st.just(set())
    return borders.map(
        lambda chosen: tuple(
            end - start
            for start, end in zip([0, *sorted(chosen)], [*sorted(chosen), total], strict=True)
        )
    )


@given(cuts(16 + 24), cuts(36 + 1))
def test_any_cut_carries_the_same_bytes(
    readable: tuple[int, ...], writable: tuple[int, ...]
) -> None:
    data = bytes(range(24))
    request = Request(7, sector=9, data=data, receive=36, readable=readable, writable=writable)
    shared, flight = prepare(request)

    sent = b"".join(
        bytes(shared.view(buffer.address, buffer.length))
        for buffer in flight.buffers
        if not buffer.writable
    )
    expected = bytes([7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]) + data
    assert sent == expected
    answer = bytes(range(100, 136)) + b"\x00"
    for buffer in flight.buffers:
        if buffer.writable:
            piece, answer = answer[: buffer.length], answer[buffer.length :]
            shared.view(buffer.address, buffer.length)[:] = piece
    completion = flight.complete(37, shared)
    assert completion.data == bytes(range(100, 136))
    assert completion.status == 0
    assert completion.damage == ()


def test_untouched_memory_shows_as_untouched() -> None:
    shared, flight = prepare(Request(0, receive=512))

    completion = flight.complete(0, shared)

    assert completion.status == STATUS_UNWRITTEN
    assert completion.data == bytes([CANARY]) * 512


def landed_after(offset: int) -> Completion:
    """Return a completed read whose device also changed the byte at this offset."""
    shared, flight = prepare(Request(0, receive=16))
    shared.view(flight.block + offset, 1)[0] ^= 0xFF
    return flight.complete(17, shared)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0, "guard byte 64 before buffer 0"),
        (64 + 5, "byte 5 of device-readable buffer 0"),
        (64 + 16, "guard byte 64 before buffer 1"),
        (64 + 16 + 64 + 16, "guard byte 64 before buffer 2"),
        (64 + 16 + 64 + 16 + 64 + 1, "guard byte 0 after buffer 2"),
    ],
)
def test_every_byte_that_must_stay_is_watched(offset: int, expected: str) -> None:
    (damage,) = landed_after(offset).damage
    assert damage.endswith(expected)


@pytest.mark.parametrize("offset", [64 + 16 + 64, 64 + 16 + 64 + 16 + 64])
def test_bytes_that_the_device_may_write_are_no_damage(offset: int) -> None:
    assert landed_after(offset).damage == ()


@pytest.mark.parametrize("indirect", [False, True])
def test_a_changed_descriptor_is_damage(indirect: bool) -> None:
    shared = memory()
    queue = SplitQueue(shared, 0, 8)
    flight = Flight.prepare(Request(0, receive=16, indirect=indirect), shared, queue)
    table = queue.layout.desc + 16 * flight.head
    if indirect:
        table = int.from_bytes(shared.view(table, 8), "little")
    shared.view(table + 12, 1)[0] ^= 0x80

    assert flight.complete(17, shared).damage == ("the descriptors or the indirect table changed",)


@pytest.mark.parametrize("cut", [(15,), (16, 0), (17,), (-1, 17)])
def test_a_cut_that_does_not_add_up_is_refused(cut: tuple[int, ...]) -> None:
    with pytest.raises(BadArgumentError, match="16 bytes"):
        prepare(Request(0, readable=cut))


def test_a_full_queue_costs_no_memory() -> None:
    shared = memory()
    queue = SplitQueue(shared, 0, 2)
    with pytest.raises(BadArgumentError, match="free descriptors"):
        Flight.prepare(Request(0, receive=1 << 19), shared, queue)
    assert shared.alloc(1 << 19)


def test_the_pieces_are_those_that_were_asked_for() -> None:
    request = Request(0, receive=512, readable=(1, 15), writable=(1, 511, 1))

    _, flight = prepare(request)

    assert (lengths(flight, False), lengths(flight, True)) == ([1, 15], [1, 511, 1])
    assert flight.request is request


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ({"readable": (15,)}, "header and data is 16 bytes"),
        ({"writable": (512,)}, "data and status is 513 bytes"),
    ],
)
def test_a_refused_cut_is_named(cut: dict[str, tuple[int, ...]], expected: str) -> None:
    with pytest.raises(BadArgumentError) as error:
        prepare(Request(0, receive=512, **cut))
    assert error.value.message.startswith(expected)


def test_a_status_that_shares_its_piece_shows_as_untouched_too() -> None:
    shared, flight = prepare(Request(0, receive=512, writable=(513,)))

    completion = flight.complete(0, shared)

    assert completion.status == STATUS_UNWRITTEN
    assert completion.data == bytes([CANARY]) * 512


def test_a_completion_has_the_used_length_and_the_time_since_it_was_sent() -> None:
    shared, flight = prepare(Request(0, receive=512))
    flight.sent -= 1000.0

    completion = flight.complete(77, shared)

    assert completion.used_len == 77
    assert 1000.0 <= completion.seconds < 2000.0


def test_a_request_that_has_landed_leaves_its_queue() -> None:
    shared, flight = prepare(Request(0, receive=512))
    flight.complete(0, shared)

    assert flight.queue.state().in_flight == 0
    assert flight.queue.state().free_descriptors == 64


def test_damage_is_reported_by_its_address() -> None:
    shared, flight = prepare(Request(0, receive=16))
    first = flight.buffers[1]
    shared.view(first.address, first.length)[:] = bytes(16)
    shared.view(first.address + first.length + 3, 1)[0] ^= 0xFF

    (damage,) = flight.complete(17, shared).damage

    assert damage.startswith(f"memory at {first.address + first.length + 3:#x} changed")
    assert damage.endswith("guard byte 61 before buffer 2")


def test_the_first_byte_of_a_readable_buffer_is_its_own() -> None:
    (damage,) = landed_after(64).damage
    assert damage.endswith("byte 0 of device-readable buffer 0")


def sent(request: Request) -> Sent:
    """Return the properties of a request that is ready to be sent."""
    _, flight = prepare(request)
    return Sent.of(flight, packed=False, after_reset=False)


@pytest.mark.parametrize("shift, align", [(0, 4096), (512, 512), (2048, 2048), (8, 8), (1, 1)])
def test_the_alignment_of_a_request_is_that_of_its_data(shift: int, align: int) -> None:
    assert sent(Request(0, receive=512, shift=shift)).align == align
    assert sent(Request(1, data=bytes(512), shift=shift)).align == align


def test_header_and_status_have_no_part_in_the_alignment() -> None:
    assert sent(Request(4)).align == 0
    assert sent(Request(1, data=bytes(512), readable=(528,), shift=0)).align == 16
    assert sent(Request(0, receive=512, writable=(256, 257), shift=0)).align == 4096
    assert sent(Request(0, receive=513, writable=(512, 1, 1), shift=512)).align == 512


def test_a_request_keeps_its_result_for_reports() -> None:
    shared, flight = prepare(Request(0, receive=512))
    flight.record = record = Sent.of(flight, packed=True, after_reset=True)
    before = record.status, record.used
    shared.view(flight.status_address, 1)[0] = 1
    flight.complete(513, shared)

    assert before == (-1, -1)
    assert record == Sent(0, 0, 0, 512, record.align, 3, False, True, True, 1, 513)
