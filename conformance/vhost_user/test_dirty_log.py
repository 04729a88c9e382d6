"""The log of written pages, which a front-end reads in a migration (LOG_SHMFD, LOG_ALL)."""

import mmap
import os

import pytest

from conformance.data import needed
from conformance.vhost_user.front_end import APART, BUS, read
from harness.driver.interface import Request
from harness.report import clause, on, reads_only
from harness.virtio.blk import ID_LENGTH, SECTOR, RequestType
from harness.virtio.vhost_user import LOG, LOG_PAGE, FrontEndRequest, ProtocolFeature

pytestmark = on("vhost-user")

SHMFD = ProtocolFeature.LOG_SHMFD

OFFSET = 0x2000
"""Offset of the log in its file, in bytes."""

SPARE = BUS + 5 * APART
"""A bus address in the log where there is no memory."""

LENGTH = (BUS + 8 * APART) // LOG_PAGE // 8
"""Bytes of the log: enough for all addresses that are used here."""

REQUESTS = [
    read(0),
    read(1, 40),
    Request(RequestType.GET_ID, receive=ID_LENGTH),
    read(3, 9),
    Request(RequestType.IN, 0, receive=8 * 512, writable=(512, 3 * 512, 4 * 512 + 1)),
]


class Log:
    """A log, and its place in a file."""

    def __init__(self):
        self.fd = os.memfd_create("log")
        os.truncate(self.fd, OFFSET + LENGTH)
        self._bits = memoryview(mmap.mmap(self.fd, OFFSET + LENGTH))[OFFSET:]

    def give(self, vmm):
        """Send the log (SET_LOG_BASE). Return the payload of the reply."""
        vmm.send(FrontEndRequest.SET_LOG_BASE, LOG.pack(LENGTH, OFFSET), [self.fd])
        return vmm.reply(FrontEndRequest.SET_LOG_BASE)

    def pages(self):
        """Return the numbers of the marked pages."""
        return {
            8 * at + bit
            for at, byte in enumerate(self._bits)
            if byte
            for bit in range(8)
            if byte >> bit & 1
        }

    def clear(self):
        """Clear all marks."""
        self._bits[:] = bytes(LENGTH)

    def close(self):
        """Close the file."""
        os.close(self.fd)


@pytest.fixture
def log():
    """A log that the back-end was not told of."""
    new_log = Log()
    yield new_log
    new_log.close()


def run(ring, requests):
    """Execute requests. Return the numbers of the pages that the device wrote to in buffers.

    The test is skipped if a request fails.
    """
    region = ring.region
    flights = [ring.add(request) for request in requests]
    rings = ring.queue.layout.device // LOG_PAGE
    before = bytes(region.view)
    ring.publish(*flights)
    ring.notify()
    for number, completion in enumerate(ring.wait(flights)):
        needed(completion, f"request {number}")
    after = bytes(region.view)
    first = region.bus // LOG_PAGE
    changed = {
        first + at // LOG_PAGE
        for at in range(0, region.size, LOG_PAGE)
        if before[at : at + LOG_PAGE] != after[at : at + LOG_PAGE]
    }
    return {page for page in changed if page > rings}


def prepared(front, log, logging=True, place=None):
    """Return a running ring whose used ring is logged at `place`, and whose buffers lie apart."""
    vmm = front(needs=[SHMFD])
    front.disk.needs_sectors(max(asked.sector + asked.receive // SECTOR for asked in REQUESTS))
    vmm.agree(log=logging)
    vmm.share()
    log.give(vmm)
    ring = vmm.ring()
    ring.region.memory.alloc(2 * LOG_PAGE)  # no buffer is on a page with the rings
    ring.start(log=place if place is not None else ring.queue.layout.device)
    vmm.ready()
    return ring


@reads_only
@clause("VU-log-01")
def test_the_log_is_acknowledged(front, log):
    vmm = front(needs=[SHMFD])
    vmm.agree(log=True)
    vmm.share()

    log.give(vmm)

    vmm.barrier()


@reads_only
@clause("VU-log-02")
def test_every_page_that_is_written_is_marked(front, log):
    ring = prepared(front, log)

    for _ in range(3):
        log.clear()
        written = run(ring, REQUESTS)

        assert written
        assert not (lost := written - log.pages()), f"pages {sorted(lost)} are not in the log"


@reads_only
@clause("VU-log-03")
def test_writes_to_the_used_ring_are_marked_where_the_front_end_says(front, log):
    # The first three elements are on one page of the log, and the others on the next.
    place = SPARE + LOG_PAGE - 4 - 3 * 8
    ring = prepared(front, log, place=place)
    first = place // LOG_PAGE

    run(ring, REQUESTS[:2])
    assert first in log.pages(), "the page of the first used elements is not marked"
    log.clear()
    for _ in range(3):
        run(ring, REQUESTS[:1])
    assert {first, first + 1} <= log.pages(), "the pages of the used index and element differ"


@reads_only
@clause("VU-log-04")
def test_logging_starts_and_stops_while_the_device_runs(front, log):
    ring = prepared(front, log, logging=False)
    vmm = ring.front
    run(ring, REQUESTS)
    for _ in range(3):
        vmm.features(log=True)
        ring.place(log=ring.queue.layout.device)
        vmm.barrier()
        log.clear()
        written = run(ring, REQUESTS)
        assert not (lost := written - log.pages()), f"pages {sorted(lost)} are not in the log"
        assert ring.queue.layout.device // LOG_PAGE in log.pages(), "the used ring is not marked"

        vmm.features(log=False)
        ring.place()
        vmm.barrier()
        run(ring, REQUESTS)
