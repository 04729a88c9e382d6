"""Every type of request, in every way that a driver may send it (virtio 5.2.2, 5.2.6)."""

from dataclasses import replace
from itertools import product

import pytest

from conformance.contents import Contents
from conformance.data import mib, needed, sectors, shortest
from conformance.kinds import KINDS, act, each_kind, made, needs_served
from conformance.negotiation import insisted_on
from conformance.rings import both_rings, plug_ring, with_statements
from harness.driver.interface import Request
from harness.report import clause, described
from harness.virtio.blk import RequestType, Status, segment
from harness.virtio.features import Feature, mask

SMALL = {"capacity": 64, "queues": 4}
"""A disk that can be compared as a whole, with several queues, where it is made for the test."""

MOST_QUEUES = 4
WRITES_NOTHING = [kind for kind in KINDS if not kind.changes]
OF_SEGMENTS = [
    kind
    for kind in KINDS
    if kind.type in (RequestType.DISCARD, RequestType.WRITE_ZEROES, RequestType.SECURE_ERASE)
]


@both_rings
@each_kind()
def test_every_request_on_every_queue(plug, kind, packed):
    """The queues, direct and indirect chains, and few and many features are all combined."""
    needs = [*kind.features, *([Feature.RING_PACKED] if packed else [])]
    prefer = {**SMALL, **kind.fields, **({"packed": True} if packed else {})}
    disk = plug(start=False, needs=needs, prefer=prefer)
    driver = disk.driver
    offered, few = driver.offered(), insisted_on(driver) | mask(*needs)
    many = driver.negotiate().accepted | mask(*needs)
    turn = 0
    for indirect, features in product((False, True), (few, many)):
        if indirect:
            if not offered & Feature.INDIRECT_DESC.mask:
                continue
            features |= Feature.INDIRECT_DESC.mask
        several = features | offered & Feature.BLK_MQ.mask
        disk.start(several)
        queues = min(driver.config().num_queues or 1, MOST_QUEUES)
        disk.start(several if queues > 1 else features, queues)
        contents = Contents(disk)
        for queue in range(queues):
            turn += 1
            sent = act(kind, driver.config(), contents, turn, made(disk, kind), indirect=indirect)
            way = (
                f"on queue {queue}, {'indirect' if indirect else 'direct'},"
                f" with features {several if queues > 1 else features:#x}"
            )
            sent.check(driver.request(sent.request, queue, timeout=5), way)
            contents.check(f"{kind.type.name} {way}")


@each_kind(OF_SEGMENTS)
def test_segments_are_counted_in_sectors_whatever_the_block_size(plug, kind):
    disk = plug(
        needs=[*kind.features, Feature.BLK_BLK_SIZE],
        prefer={"capacity": 1024, "logical_block_size": 4096, **kind.fields},
    )
    contents = Contents(disk)

    for turn in range(3):
        sent = act(kind, disk.driver.config(), contents, turn)
        way = f"of {sent.count} sectors at {sent.sector}"
        sent.check(disk.send(sent.request), way)
        contents.check(f"{kind.type.name} {way}")


@each_kind(WRITES_NOTHING)
def test_a_request_that_writes_nothing_works_on_a_read_only_disk(plug, kind):
    disk = plug(read_only=True, needs=[Feature.BLK_RO, *kind.features], prefer=kind.fields)
    contents = Contents(disk, fill=False)

    for turn in range(2):
        sent = act(kind, disk.driver.config(), contents, turn, made(disk, kind))
        sent.check(disk.send(sent.request), f"number {turn + 1} on a read-only disk")
    contents.check(kind.type.name)


def plain_answer(disk, kind):
    """Return the answer to an ordinary request about the disk itself, None for other types."""
    requests = {RequestType.GET_ID: disk.get_id, RequestType.GET_LIFETIME: disk.get_lifetime}
    if kind.type not in requests:
        return None
    return needed(requests[kind.type](), kind.type.name).data


def cuts(readable, writable):
    """Return pairs of lengths of the readable and of the writable buffers.

    The arguments are the bytes in all. The header, the data and the status byte lie in buffers of
    their own, share one, or are cut in every part.
    """
    of_readable = [
        (readable,),
        (1,) * min(readable, 16) + ((readable - 16,) if readable > 16 else ()),
        (15, readable - 15),
        (8, 8) + ((readable - 16,) if readable > 16 else ()),
        (16, *(n for n in (readable - 17, 1) if n)) if readable > 16 else (4, 12),
    ]
    of_writable = [
        (writable,),
        *([(1, writable - 1), (writable - 1, 1)] if writable > 1 else []),
        *([(writable // 2, 1, writable - writable // 2 - 1)] if writable > 4 else []),
    ]
    pairs = max(len(of_readable), len(of_writable))
    return [
        (of_readable[n % len(of_readable)], of_writable[n % len(of_writable)]) for n in range(pairs)
    ]


@with_statements(split=clause("2.7.4.1-D-01"), packed=clause("2.8.18-D-01"))
@each_kind(marked=False)
def test_every_request_may_be_cut_anywhere(plug, kind, packed):
    disk = plug_ring(plug, packed, needs=kind.features, prefer={**SMALL, **kind.fields})
    needs_served(disk, kind)
    contents, config = Contents(disk), disk.driver.config()
    room = min(config.seg_max or disk.queues[0].size, disk.queues[0].size) + 2
    indirect = bool(disk.driver.accepted() & Feature.INDIRECT_DESC.mask)

    turn, known = 0, plain_answer(disk, kind)
    for in_table in (False, True) if indirect else (False,):
        plain = act(kind, config, contents, turn).request
        for readable, writable in cuts(16 + len(plain.data), plain.receive + 1):
            if len(readable) + len(writable) > min(room, disk.queues[0].size):
                continue
            turn += 1
            framing = {"readable": readable, "writable": writable, "indirect": in_table}
            sent = replace(act(kind, config, contents, turn, **framing), known=known)
            way = f"of buffers of {readable} and {writable} bytes"
            way += " in an indirect table" if in_table else ""
            sent.check(disk.send(sent.request), way)
            contents.check(f"{kind.type.name} {way}")


@each_kind(marked=False)
@described("5.2.6-P-41")
def test_the_second_word_of_every_request_changes_nothing(plug, kind):
    disk = plug(needs=kind.features, prefer={**SMALL, **kind.fields})
    needs_served(disk, kind)
    contents, config = Contents(disk), disk.driver.config()

    known = plain_answer(disk, kind)
    for turn, word in enumerate((1, 2, 0x7FFF, 0x8000_0000, 0xFFFF_FFFF)):
        sent = replace(act(kind, config, contents, turn, reserved=word), known=known)
        way = f"with {word:#x} in the second word"
        sent.check(disk.send(sent.request), way)
        contents.check(f"{kind.type.name} {way}")


FAR = 2**32 + 8
"""Sector whose number does not fit into 32 bits; without its upper half it is sector 8."""

WITH_SECTORS = [kind for kind in KINDS if kind.type in (RequestType.IN, RequestType.OUT)]


@each_kind([*WITH_SECTORS, *OF_SEGMENTS])
def test_a_request_reaches_sectors_beyond_32_bits(plug, kind):
    disk = plug(needs=kind.features, capacity=2**32 + mib(1), **kind.fields)
    near, far = sectors(16, salt=3), sectors(16, salt=120)
    disk.backing.write(0, near)
    disk.backing.write(FAR - 8, far)
    config = disk.driver.config()
    limit = {
        RequestType.DISCARD: config.max_discard_sectors,
        RequestType.WRITE_ZEROES: config.max_write_zeroes_sectors,
        RequestType.SECURE_ERASE: config.max_secure_erase_sectors,
    }
    count = shortest(limit.get(kind.type), 8)
    data = {RequestType.IN: b"", RequestType.OUT: sectors(count, salt=77)}
    align = config.secure_erase_sector_alignment or 1
    if kind.type == RequestType.SECURE_ERASE and (FAR % align or count % align):
        pytest.skip(f"{count} sectors at {FAR} are not aligned to secure_erase_sector_alignment")

    if kind.type in data:
        sent = Request(
            kind.type, FAR, data[kind.type], count * 512 if kind.type == RequestType.IN else 0
        )
    else:
        sent = Request(kind.type, data=segment(FAR, count))
    completion = disk.send(sent)

    assert completion.status is Status.OK, f"{kind.type.name} of sector {FAR}"
    assert completion.damage == ()
    assert disk.backing.read(0, 16) == near, f"{kind.type.name} changed sectors 0 to 15"
    found = disk.backing.read(FAR - 8, 16)
    assert found[: 8 * 512] == far[: 8 * 512], "the 8 sectors before it changed"
    if kind.type == RequestType.IN:
        assert completion.data == far[8 * 512 :]
    elif kind.type == RequestType.OUT:
        assert found[8 * 512 :] == data[kind.type]
    elif kind.type == RequestType.WRITE_ZEROES:
        assert found[8 * 512 :] == bytes(count * 512) + far[(8 + count) * 512 :]


MOST_SEGMENTS = 128


@each_kind(OF_SEGMENTS, marked=False)
@described("5.2.5-P-07")
def test_a_request_has_an_effect_on_as_many_segments_as_the_device_takes(plug, kind):
    disk = plug(needs=kind.features, prefer={"capacity": 2048, **kind.fields})
    needs_served(disk, kind)
    config = disk.driver.config()
    most, align = {
        RequestType.DISCARD: (config.max_discard_seg, 1),
        RequestType.WRITE_ZEROES: (config.max_write_zeroes_seg, 1),
        RequestType.SECURE_ERASE: (
            config.max_secure_erase_seg,
            config.secure_erase_sector_alignment or 1,
        ),
    }[kind.type]
    contents = Contents(disk)
    count = min(most, MOST_SEGMENTS, contents.count // (2 * align))
    if not count:
        pytest.skip("the disk has no room for a segment, or the device takes none")
    places = [2 * align * number for number in range(count)]
    # Neither in the order of the sectors nor backwards.
    places = places[::2] + places[1::2]

    completion = disk.request(kind.type, data=b"".join(segment(at, align) for at in places))

    assert completion.status is Status.OK, f"{count} segments of {most}"
    assert completion.damage == ()
    for at in places:
        if kind.type == RequestType.WRITE_ZEROES:
            contents.write(at, bytes(align * 512))
        else:
            contents.may_have_any_value(at, align)
    contents.check(f"{kind.type.name} of {count} segments of {align} sectors")


@described("5.2.4-P-05")
def test_every_queue_that_num_queues_counts_serves(plug):
    """All of them, also where the device has more than the test asked for."""
    disk = plug(needs=[Feature.BLK_MQ], prefer={"queues": 4})
    count = min(disk.driver.config().num_queues, 64)
    accepted = disk.driver.accepted()
    chosen = min(8, disk.queues[0].size) if accepted & Feature.VERSION_1.mask else None
    disk.start(accepted, count, chosen)
    contents = Contents(disk)

    for queue in range(count):
        kind = WITH_SECTORS[queue % 2]
        sent = act(kind, disk.driver.config(), contents, queue)
        sent.check(disk.driver.request(sent.request, queue, timeout=5), f"on queue {queue}")
    contents.check(f"requests on {count} queues")
