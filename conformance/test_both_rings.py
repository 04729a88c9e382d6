"""Behaviour that both virtqueue formats share, with other statements for each (virtio 2.7, 2.8)."""

import pytest

from conformance.answers import ANSWERS, FAULTS, check_used_length
from conformance.data import sectors
from conformance.rings import plug_ring, with_statements
from harness.driver.interface import Request
from harness.report import clause, described
from harness.virtio.blk import RequestType, Status
from harness.virtio.features import Feature

UNKNOWN_TYPE = 99

INDIRECT = pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])


def needs(indirect):
    return [Feature.INDIRECT_DESC] if indirect else []


@INDIRECT
@with_statements(split=clause("2.7.4.1-D-01"), packed=clause("2.8.18-D-01"))
def test_a_read_may_be_cut_anywhere(plug, packed, indirect):
    disk = plug_ring(plug, packed, needs=needs(indirect))
    if not indirect:
        disk.needs_descriptors(57)
    disk.backing.write(40, sectors(2))

    for header, area in (
        ((1, 15), (1024, 1)),
        ((15, 1), (1, 1024)),
        ((1,) * 16, (1025,)),
        ((16,), (511, 513, 1)),
        ((3, 13), (1023, 2)),
        ((8, 8), (19,) * 53 + (18,)),
    ):
        completion = disk.read(40, 2, readable=header, writable=area, indirect=indirect)
        assert completion.status is Status.OK, (header, area)
        assert completion.data == sectors(2), (header, area)
        assert completion.damage == (), (header, area)


@INDIRECT
@with_statements(split=clause("2.7.4.1-D-01"), packed=clause("2.8.18-D-01"))
def test_a_write_may_be_cut_anywhere(plug, packed, indirect):
    disk = plug_ring(plug, packed, needs=needs(indirect))
    if not indirect:
        disk.needs_descriptors(81)
    before, after = disk.backing.read(39, 1), disk.backing.read(42, 1)

    cuts = [(1040,), (15, 1025), (17, 1023), (1,) * 16 + (1024,), (16, 511, 513), (13,) * 80]
    for salt, cut in enumerate(cuts):
        completion = disk.write(40, sectors(2, salt), readable=cut, indirect=indirect)
        assert completion.status is Status.OK, cut
        assert completion.damage == (), cut
        assert disk.backing.read(39, 4) == before + sectors(2, salt) + after, cut


@FAULTS
@INDIRECT
@with_statements(split=clause("2.7.5.1-D-01a", "2.7.5.1-D-02"), packed=clause("2.8.15-D-01a"))
def test_memory_that_only_the_driver_may_write_is_unchanged(plug, packed, indirect, faults):
    disk = plug_ring(plug, packed, needs=needs(indirect), faults=faults)

    completions = [
        disk.read(0, 4, indirect=indirect),
        disk.write(8, sectors(4), indirect=indirect),
        disk.read(64, indirect=indirect),
        disk.write(2**40, sectors(1), indirect=indirect),
        disk.request(UNKNOWN_TYPE, data=sectors(1), indirect=indirect),
    ]

    assert [completion.damage for completion in completions] == [()] * 5


@ANSWERS
@with_statements(split=clause("2.7.8.2-D-02"), packed=described("2.8.4-P-01"))
def test_the_used_length_covers_only_bytes_that_were_written(plug, packed, answer):
    needed, faults = answer.needs, answer.faults
    disk = plug_ring(plug, packed, needs=needed, faults=faults, **answer.fields)
    if answer.reads:
        disk.backing.write(0, sectors(70))

    for request in answer.requests:
        check_used_length(disk.send(request))


@with_statements(split=described("2.7.13-P-01"), packed=described("2.8.21-P-01"))
def test_a_batch_is_used_chain_by_chain(plug, packed):
    disk = plug_ring(plug, packed)
    disk.needs_sectors(32)
    disk.needs_descriptors(16 * 3)
    requests = [Request(RequestType.OUT, 2 * n, sectors(1, salt=n)) for n in range(16)]

    tokens = disk.driver.submit(requests)
    completions = disk.driver.complete(tokens)

    assert [completion.status for completion in completions] == [Status.OK] * 16
    assert [completion.damage for completion in completions] == [()] * 16
    if not packed:
        assert disk.driver.queue_state(0).used_idx == 16
    assert all(disk.backing.read(2 * n, 1) == sectors(1, salt=n) for n in range(16))
