"""Full rings, requests on the same sectors, thousands on one disk (virtio 2.7, 2.8, 5.2.6)."""

import itertools
import random
import time

import pytest

from conformance.contents import Contents
from conformance.data import sectors
from conformance.kinds import KINDS, UNIT, act, each_kind
from conformance.rings import both_rings, plug_ring
from harness.driver.interface import Request
from harness.report import described
from harness.virtio.blk import RequestType, Status, segment
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature

SMALL = {"capacity": 64}
MANY = 1500
"""Requests on one disk: more than the entries of a ring, and than what a device counts to."""

TOGETHER = 12
"""Requests that are in flight together, if the virtqueue has room for them."""


def room(disk, each=3):
    """Return the number of direct chains of `each` descriptors that fill the virtqueue."""
    return max(disk.queues[0].size // each, 1)


@both_rings
@each_kind()
def test_a_full_ring_of_every_request(plug, kind, packed):
    disk = plug_ring(plug, packed, needs=kind.features, prefer={**SMALL, **kind.fields})
    contents, config = Contents(disk), disk.driver.config()
    count = min(room(disk), 128)

    places = max(contents.count // UNIT - 1, 1)
    for turn in range(2):
        # Requests on the same sectors write the same data, so their order makes no difference.
        turns = [turn * places + number % places for number in range(count)]
        acts = [act(kind, config, contents, number) for number in turns]
        tokens = disk.driver.submit([sent.request for sent in acts])
        completions = disk.driver.complete(tokens)
        for number, (sent, completion) in enumerate(zip(acts, completions, strict=True)):
            sent.check(completion, f"number {number} of {count} in a full ring")
        contents.check(f"{count} requests {kind.type.name} in a full ring")


@both_rings
@described("5.2.6-P-12")
def test_thousands_of_requests_on_one_disk(plug, packed):
    """Reads, writes and flushes in flight together, never two on the same sector."""
    disk = plug_ring(plug, packed, prefer=SMALL)
    disk.needs_sectors(2 * TOGETHER)
    contents = Contents(disk)
    together = min(TOGETHER, room(disk))
    chosen = random.Random(20)
    spans = min(contents.count, 64) // 2
    flushes = bool(disk.driver.accepted() & Feature.BLK_FLUSH.mask)

    for first in range(0, MANY, together):
        requests = []
        for number, span in enumerate(chosen.sample(range(spans), together), first):
            count = chosen.randint(1, 2)
            if number % 7 == 0 and flushes:
                requests.append(Request(RequestType.FLUSH))
            elif number % 3:
                data = sectors(count, salt=chosen.randrange(1000))
                requests.append(Request(RequestType.OUT, 2 * span, data))
            else:
                requests.append(Request(RequestType.IN, 2 * span, receive=512 * count))
        completions = disk.driver.complete(disk.driver.submit(requests))
        for number, (request, completion) in enumerate(
            zip(requests, completions, strict=True), first
        ):
            assert completion.status == Status.OK, f"request {number}: {completion.status:#x}"
            assert completion.damage == (), f"request {number}: {completion.damage}"
            if request.type == RequestType.OUT:
                contents.write(request.sector, request.data)
            if request.type == RequestType.IN:
                wrong = completion.data != contents.read(request.sector, request.receive // 512)
                assert not wrong, f"request {number}, a read of sector {request.sector}: other data"
        if first % (8 * together) == 0:
            contents.check(f"request {first + together}")
    contents.check(f"{MANY} requests")
    status = disk.driver.status()
    assert not status & DeviceStatus.NEEDS_RESET, (
        f"after {MANY} legal requests status is {status:#x}"
    )


FAILING = 1200
"""Requests that fail, on one disk: more than the entries of a ring."""

SECONDS = 4.0
"""Seconds after which a slow device skips the other rounds."""


@both_rings
@described("5.2.6-P-12")
def test_thousands_of_failed_requests_use_nothing_up(plug, packed):
    """After requests that fail in every way, the device serves as many at once as before.

    What each of them has to end with is the subject of other tests.
    """
    disk = plug_ring(plug, packed, prefer=SMALL)
    end = disk.driver.config().capacity
    accepted = disk.driver.accepted()
    bad = [
        Request(RequestType.IN, end, receive=512),
        Request(RequestType.OUT, end, sectors(1)),
        Request(RequestType.IN, 2**55, receive=1024),
        Request(99, receive=512),
        Request(99, data=sectors(1)),
        Request(RequestType.OUT, 8, sectors(1)[:100]),
    ]
    for feature, type in (
        (Feature.BLK_DISCARD, RequestType.DISCARD),
        (Feature.BLK_WRITE_ZEROES, RequestType.WRITE_ZEROES),
    ):
        if accepted & feature.mask:
            bad += [
                Request(type, data=segment(end, 8)),
                Request(type, data=segment(8, 8, flags=1 << 9)),
            ]
    failed = {Status.IOERR, Status.UNSUPP}
    bad = [request for request in bad if disk.send(request).status in failed]
    if not bad:
        pytest.skip("the device fails none of these requests")
    contents = Contents(disk)
    together = min(TOGETHER, room(disk))

    end_of_time = time.monotonic() + SECONDS
    for first in range(0, FAILING, together):
        if time.monotonic() > end_of_time:
            break
        requests = [bad[(first + number) % len(bad)] for number in range(together)]
        completions = disk.driver.complete(disk.driver.submit(requests))
        statuses = {completion.status for completion in completions}
        assert statuses <= failed, f"requests {first} and on: {statuses}"
        assert not any(completion.damage for completion in completions)

    reads = [Request(RequestType.IN, number % 8, receive=512) for number in range(room(disk))]
    completions = disk.driver.complete(disk.driver.submit(reads))
    for read, completion in zip(reads, completions, strict=True):
        assert completion.status == Status.OK, f"a read after {FAILING} failed requests"
        assert completion.data == contents.read(read.sector, 1)
    contents.check(f"{FAILING} failed requests")


ACROSS = 40
"""Rounds in which every queue has several requests in flight."""


@both_rings
@described("5.2.2-P-01")
def test_requests_in_flight_on_all_queues_do_not_disturb_each_other(plug, packed):
    """Reads, writes and zeroes of different sectors, spread over the queues at random."""
    disk = plug_ring(plug, packed, needs=[Feature.BLK_MQ], prefer={**SMALL, "queues": 4})
    driver = disk.driver
    queues = min(driver.config().num_queues, 8)
    if queues < 2:
        pytest.skip("the device has 1 request virtqueue")
    disk.start(driver.accepted(), queues)
    zeroes = (
        driver.accepted() & Feature.BLK_WRITE_ZEROES.mask
        and driver.config().max_write_zeroes_sectors != 1
        and disk.write_zeroes(segment(0, 2)).status == Status.OK  # other tests judge this alone
    )
    contents = Contents(disk)
    chosen = random.Random(22)
    spans = min(contents.count, 64) // 2

    end_of_time = time.monotonic() + SECONDS
    for number in range(ACROSS):
        if time.monotonic() > end_of_time:
            break
        together = min(spans, queues * min(8, room(disk)))
        each = [0] * queues
        sent, tokens = [], []
        for span in chosen.sample(range(spans), together):
            queue = chosen.choice([n for n in range(queues) if each[n] < room(disk)])
            each[queue] += 1
            data = sectors(2, salt=chosen.randrange(1000))
            kinds = [
                Request(RequestType.IN, 2 * span, receive=1024),
                Request(RequestType.OUT, 2 * span, data),
                Request(RequestType.WRITE_ZEROES, data=segment(2 * span, 2)),
            ]
            request = chosen.choice(kinds if zeroes else kinds[:2])
            sent.append((queue, span, request))
            tokens += driver.submit([request], queue)
        for (queue, span, request), completion in zip(sent, driver.complete(tokens), strict=True):
            what = f"round {number}, queue {queue}, type {request.type}, sector {2 * span}"
            assert completion.status == Status.OK, f"{what}: {completion.status:#x}"
            assert completion.damage == (), f"{what}: {completion.damage}"
            match request.type:
                case RequestType.IN:
                    wrong = completion.data != contents.read(2 * span, 2)
                    assert not wrong, f"{what}: other data than the sectors have"
                case RequestType.OUT:
                    contents.write(2 * span, request.data)
                case _:
                    contents.write(2 * span, bytes(1024))
        contents.check(f"round {number} of requests on {queues} queues")


ON_SECTORS = [
    kind
    for kind in KINDS
    if kind.type
    in (
        RequestType.OUT,
        RequestType.WRITE_ZEROES,
        RequestType.IN,
        RequestType.DISCARD,
        RequestType.SECURE_ERASE,
    )
]


def mixed(found, wholes):
    """Return True if each byte that was found is the byte of one of the wholes at this place."""
    # The usual case first: the other one takes a step for each byte.
    return found in wholes or all(byte in at for byte, *at in zip(found, *wholes, strict=False))


def outcome(kind, before, salt):
    """Return the contents of the sectors after this request alone."""
    match kind.type:
        case RequestType.OUT:
            return sectors(4, salt=salt)
        case RequestType.WRITE_ZEROES:
            return bytes(4 * 512)
    return before


def limit_of(kind, config):
    """Return the most sectors of a request of this type; 0 or None is no limit."""
    return {
        RequestType.WRITE_ZEROES: config.max_write_zeroes_sectors,
        RequestType.DISCARD: config.max_discard_sectors,
        RequestType.SECURE_ERASE: config.max_secure_erase_sectors,
    }.get(kind.type)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(first, second, id=f"{first.type.name}-{second.type.name}")
        for first, second in itertools.product(ON_SECTORS, repeat=2)
        if first.changes or second.changes
    ],
)
@described("5.2.6-P-12")
def test_two_requests_in_flight_on_the_same_sectors(plug, first, second):
    """They may be done in either order, and each byte is that of one of them.

    In every second round they are on two queues, where there are two.
    """
    fields = {**SMALL, "queues": 2, **first.fields, **second.fields}
    disk = plug(needs={*first.features, *second.features}, prefer=fields)
    queues = min(disk.driver.config().num_queues or 1, 2)
    disk.start(disk.driver.accepted(), queues)
    if room(disk) < 2:
        pytest.skip(f"the virtqueue has {disk.queues[0].size} descriptors: one request fits")
    contents, config = Contents(disk), disk.driver.config()
    if any(0 < (limit_of(kind, config) or 4) < 4 for kind in (first, second)):
        pytest.skip("the device changes less than 4 sectors at once")
    open_end = {first.type, second.type} & {RequestType.DISCARD, RequestType.SECURE_ERASE}
    if RequestType.SECURE_ERASE in open_end and (config.secure_erase_sector_alignment or 1) > 4:
        pytest.skip("the device erases more than 4 sectors at once")

    for turn in range(10):
        before = sectors(4, salt=200 + turn)
        disk.backing.write(8, before)
        contents.write(8, before)
        kinds = [(first, 10 + turn), (second, 90 + turn)]
        tokens = []
        for place, (kind, salt) in enumerate(kinds):
            match kind.type:
                case RequestType.IN:
                    request = Request(RequestType.IN, 8, receive=4 * 512)
                case RequestType.OUT:
                    request = Request(RequestType.OUT, 8, sectors(4, salt=salt))
                case _:
                    request = Request(kind.type, data=segment(8, 4))
            tokens += disk.driver.submit([request], place * turn % queues)
        results = disk.driver.complete(tokens)
        assert [result.status for result in results] == [Status.OK, Status.OK]
        assert [result.damage for result in results] == [(), ()]
        ends = [outcome(kind, before, salt) for kind, salt in kinds if kind.changes]
        after = disk.backing.read(8, 4)
        if not open_end:
            assert mixed(after, ends), f"round {turn}: the sectors have contents of neither request"
            for result in results:
                known = mixed(result.data, [before, *ends])
                assert known, f"round {turn}: a read of other contents"
        contents.write(8, after)
        contents.check(f"round {turn} of two requests on sectors 8 to 11")


@both_rings
@described("5.2.6-P-07")
def test_small_writes_into_one_block_do_not_lose_each_other(plug, packed):
    """Writes of single sectors of a block of 4096 bytes, all in flight together."""
    disk = plug_ring(plug, packed, prefer=SMALL)
    contents = Contents(disk)
    together = min(8, room(disk))

    for turn in range(20):
        writes = [
            Request(RequestType.OUT, 8 + n, sectors(1, salt=turn * 8 + n)) for n in range(together)
        ]
        completions = disk.driver.complete(disk.driver.submit(writes))
        assert {completion.status for completion in completions} == {Status.OK}
        for write in writes:
            contents.write(write.sector, write.data)
        contents.check(f"round {turn} of {together} writes into one block")
