"""Errors of the backing store that stop the machine, are ignored, or are reported.

Who runs QEMU chooses this, for each disk. A request that has stopped the machine is repeated when
the machine continues. The specification does not know any of it, so these tests run on demand.
"""

import pytest

from conformance.data import sectors
from conformance.waiting import let_finish, let_pass
from harness.diskspec import Fault
from harness.driver.interface import Request
from harness.report import hardening
from harness.targets import LacksError, TargetError
from harness.virtio.blk import SECTOR, RequestType, Status, segment
from harness.virtio.features import Feature

BAD = 64
"""The sector (512 bytes) that fails."""

ENOSPC = 28

NEW, OLD = sectors(1, salt=3), sectors(1, salt=4)

ALL = {
    "read": Request(RequestType.IN, BAD, receive=SECTOR),
    "write": Request(RequestType.OUT, BAD, NEW),
    "write-zeroes": Request(RequestType.WRITE_ZEROES, data=segment(BAD, 1)),
}
"""The requests by the operation of the backing store that fails.

Failed discards are reported to the device as a success.
"""

THREADS = [None, 1, 2]


@pytest.fixture(params=THREADS, ids=["no-iothread", "one-iothread", "two-iothreads"])
def plug_failing(plug, request):
    """Factory of a disk that handles the faults with the policy, and has OLD in BAD and after."""
    return failing(plug, request.param)


def failing(plug, threads):
    """Return the factory for disks that `plug` makes, with this number of iothreads."""

    def make(on_error, *faults, **fields):
        fields = {"queues": 2, "write_zeroes": True, "iothreads": threads, **fields}
        disk = plug(on_error=on_error, faults=faults, start=False, **fields)
        disk.backing.write(BAD, OLD * 2)
        disk.driver.start(queues=fields["queues"])
        return disk

    return make


def others():
    """Return reads of sectors that do not fail."""
    return [Request(RequestType.IN, BAD + 8 * n, receive=SECTOR) for n in (1, 2, 3)]


def used(disk, queue=0):
    """Return the number of used buffers of a queue since the start."""
    return disk.driver.queue_state(queue).used_idx


def check_repeated(disk, tokens, operation):
    """Check that requests on queue 1, the last with the operation on sector BAD, are done once."""
    statuses = [completion.status for completion in disk.driver.complete(tokens)]
    assert statuses == [Status.OK] * len(tokens)
    let_pass()
    assert used(disk, 1) == len(tokens), "a request was used more than once"
    expected = {"read": OLD, "write": NEW, "write-zeroes": bytes(SECTOR)}[operation]
    assert disk.backing.read(BAD, 2) == expected + OLD


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize("stops", [1, 2], ids=["once", "twice"])
@hardening("5.2.6", "an error of the backing store that stops the machine")
def test_a_request_that_stops_the_machine_is_repeated(plug_failing, operation, stops):
    disk = plug_failing("stop", *[Fault(operation, BAD, once=True)] * stops)

    tokens = disk.driver.submit([*others(), ALL[operation]], 1)
    for _ in range(stops):
        error = disk.wait_io_error()
        assert error.action == "stop"
        assert tokens[-1] not in disk.driver.completed(), "used, though the machine has stopped"
        disk.resume()

    check_repeated(disk, tokens, operation)


@hardening("5.2.6", "requests in flight on two virtqueues, of which one stops the machine")
def test_requests_on_both_queues_are_used_once(plug_failing):
    disk = plug_failing("stop", Fault("read", BAD, once=True), iops=200)

    tokens = [disk.driver.submit([*others(), ALL["read"], *others()], queue) for queue in (0, 1)]
    assert disk.wait_io_error().action == "stop"
    disk.resume()

    for queue in (0, 1):
        done = disk.driver.complete(tokens[queue])
        assert [completion.status for completion in done] == [Status.OK] * len(done)
        assert done[3].data == OLD
    let_pass()
    assert [used(disk, queue) for queue in (0, 1)] == [len(tokens[0])] * 2


@pytest.mark.parametrize("operation", ALL)
@hardening("2.4", "a save and a restore while a request waits for the machine to continue")
def test_a_request_that_waits_is_repeated_after_a_save_and_restore(plug_failing, operation):
    disk = plug_failing("stop", Fault(operation, BAD, once=True))
    tokens = disk.driver.submit([*others(), ALL[operation]], 1)
    assert disk.wait_io_error().action == "stop"

    disk.move()
    # The new process has the fault as well.
    try:
        error = disk.wait_io_error()
    except TargetError as none:
        if isinstance(none, LacksError) or not all(each.alive() for each in disk.processes()):
            raise
        raise AssertionError(f"the request was not repeated: {none}") from None
    assert error.action == "stop"
    assert tokens[-1] not in disk.driver.completed(), "used, though the machine has stopped"
    disk.resume()

    check_repeated(disk, tokens, operation)


@pytest.mark.parametrize("operation", ALL)
@hardening("2.4", "a reset while a request waits for the machine to continue")
def test_a_reset_while_the_machine_is_stopped_drops_the_request(plug_failing, operation):
    disk = plug_failing("stop", Fault(operation, BAD))
    disk.driver.submit([ALL[operation]])
    assert disk.wait_io_error().action == "stop"

    disk.driver.reset()
    disk.resume()

    disk.driver.start(queues=2)
    assert [disk.read(BAD + 1).data, used(disk)] == [OLD, 1]
    let_finish(disk)
    assert used(disk) == 1, "a buffer from before the reset was used"


@hardening("2.6.1", "the reset of a virtqueue while a request waits for the machine to continue")
def test_a_queue_reset_while_the_machine_is_stopped_drops_the_request(plug_failing):
    disk = plug_failing("stop", Fault("read", BAD, once=True), needs=[Feature.RING_RESET])
    if not disk.driver.accepted() & Feature.RING_RESET.mask:
        disk.driver.start(disk.driver.accepted() | Feature.RING_RESET.mask, queues=2)
    disk.driver.submit([ALL["read"]], 1)
    assert disk.wait_io_error().action == "stop"

    disk.driver.queue_reset(1)
    disk.driver.queue_setup(1)
    disk.resume()
    let_finish(disk)

    assert used(disk, 1) == 0, "a buffer from before the queue's reset was used"
    (done,) = disk.driver.complete(disk.driver.submit([ALL["read"]], 1))
    assert (done.status, done.data) == (Status.OK, OLD)


@pytest.mark.parametrize("operation", ALL)
@hardening("5.2.6", "an error of the backing store that is reported")
def test_a_reported_error_is_the_requests_status(plug_failing, operation):
    disk = plug_failing("report", Fault(operation, BAD))

    (done,) = disk.driver.complete(disk.driver.submit([ALL[operation]]))

    assert done.status == Status.IOERR
    assert disk.wait_io_error().action == "report"
    assert disk.read(BAD + 1).data == OLD


@pytest.mark.parametrize("operation", ["write", "write-zeroes"])
@hardening("5.2.6", "an error of the backing store that is ignored")
def test_an_ignored_error_is_a_success(plug_failing, operation):
    disk = plug_failing("ignore", Fault(operation, BAD))

    (done,) = disk.driver.complete(disk.driver.submit([ALL[operation]]))

    assert done.status == Status.OK
    assert disk.wait_io_error().action == "ignore"
    assert disk.backing.read(BAD, 2) == OLD * 2


@hardening("5.2.6", "a backing store that is full, which stops the machine")
def test_only_a_full_store_stops_the_machine_with_enospc(plug_failing):
    full, broken = Fault("write", BAD, ENOSPC, once=True), Fault("write", BAD + 8)
    disk = plug_failing("enospc", full, broken)
    write = Request(RequestType.OUT, BAD + 8, NEW)

    (done,) = disk.driver.complete(disk.driver.submit([write]))
    assert done.status == Status.IOERR
    assert disk.wait_io_error().action == "report"

    tokens = disk.driver.submit([ALL["write"]])
    error = disk.wait_io_error()
    assert (error.action, error.full) == ("stop", True)
    disk.resume()
    (done,) = disk.driver.complete(tokens)
    assert done.status == Status.OK
    assert disk.backing.read(BAD, 2) == NEW + OLD
