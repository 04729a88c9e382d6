"""Every type of request, in every way that a driver may send it (virtio 5.2.2, 5.2.6)."""

from itertools import product

from conformance.contents import Contents
from conformance.kinds import KINDS, act, each_kind
from conformance.negotiation import insisted_on
from conformance.rings import both_rings
from harness.virtio.blk import RequestType
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


def made(disk, kind):
    """Return the fields of this type that the disk was really made with."""
    return {name: getattr(disk.spec, name) for name in kind.fields}


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
