"""Stable writes: their data is on persistent storage (virtio 5.2.5, 5.2.6.2).

The backing store cannot commit data: its flush fails. A device that reports success for a
stable write has not asked for the commit or has not waited for it.
"""

import pytest

from conformance.data import sectors
from harness.diskspec import Fault
from harness.report import clause, described, on
from harness.virtio.blk import CONFIG_FIELD, REQUEST_FLAG_FUA, RequestType, Status
from harness.virtio.features import Feature

WRITEBACK = CONFIG_FIELD["writeback"].offset

NOTHING_LASTS = (Fault("flush"),)


@clause("5.2.6.2-D-11")
def test_a_flush_succeeds_only_if_the_writes_before_it_were_committed(plug):
    disk = plug(faults=NOTHING_LASTS, needs=[Feature.BLK_FLUSH])
    if disk.driver.accepted() & Feature.BLK_CONFIG_WCE.mask:
        disk.driver.config_write(WRITEBACK, b"\1")
    written = disk.write(8, sectors(8))

    flushed = disk.flush()

    # A device without a volatile cache has failed the write already.
    assert Status.IOERR in (written.status, flushed.status)
    assert (written.damage, flushed.damage) == ((), ())


@clause("5.2.6.2-D-11")
def test_without_flush_and_config_wce_a_write_succeeds_only_if_it_was_committed(plug):
    cache = [Feature.BLK_FLUSH, Feature.BLK_CONFIG_WCE]
    disk = plug(faults=NOTHING_LASTS, needs=[Feature.BLK_FLUSH], without=cache)

    completion = disk.write(8, sectors(8))

    assert completion.status is Status.IOERR, "a write was not committed, and its status is OK"
    assert completion.damage == ()


@clause("5.2.6.2-D-11")
def test_once_writeback_was_set_to_0_a_write_succeeds_only_if_it_was_committed(plug):
    disk = plug(faults=NOTHING_LASTS, needs=[Feature.BLK_CONFIG_WCE])
    disk.driver.config_write(WRITEBACK, b"\1")
    disk.driver.config_write(WRITEBACK, b"\0")
    assert disk.driver.config().writeback == 0

    completion = disk.write(8, sectors(8))

    assert completion.status is Status.IOERR, "a write was not committed, and its status is OK"
    assert completion.damage == ()


@pytest.mark.parametrize("fields", [{}, {"write_cache": False}], ids=["as-it-comes", "cache-off"])
@clause("5.2.6.2-D-11")
def test_where_writeback_is_0_from_the_start_a_write_succeeds_only_if_it_was_committed(
    plug, fields
):
    disk = plug(faults=NOTHING_LASTS, needs=[Feature.BLK_CONFIG_WCE], **fields)
    if disk.driver.config().writeback:
        pytest.skip("writeback is 1 after a reset")

    completion = disk.write(8, sectors(8))

    assert completion.status is Status.IOERR, "a write was not committed, and its status is OK"
    assert completion.damage == ()


FUA = [Feature.BLK_REQ_FLAGS, Feature.BLK_REQ_FLAGS_OUT_FUA]


@described("5.2.6-P-42")
def test_a_write_with_forced_unit_access_succeeds_only_if_it_was_committed(plug):
    """A draft of a later version: tested only where it is offered."""
    disk = plug(faults=NOTHING_LASTS, prefer={"fua": True}, extra=FUA)
    if disk.driver.accepted() & Feature.BLK_CONFIG_WCE.mask:
        disk.driver.config_write(WRITEBACK, b"\1")

    completion = disk.write(8, sectors(8), reserved=REQUEST_FLAG_FUA)

    assert completion.status is Status.IOERR, "a write was not committed, and its status is OK"
    assert completion.damage == ()


@pytest.mark.parametrize("accepted", [True, False], ids=["accepted", "not-accepted"])
@described("5.2.6-P-42")
def test_a_write_with_forced_unit_access_writes_its_data(plug, accepted):
    """Without the features, the second word of the header changes nothing."""
    disk = plug(prefer={"fua": True}, needs=FUA, extra=FUA if accepted else [])
    disk.backing.write(0, sectors(16))

    for sector in (8, 9):
        completion = disk.write(sector, sectors(2, salt=40), reserved=REQUEST_FLAG_FUA)
        assert completion.status is Status.OK
        assert completion.damage == ()
    reading = disk.read(8, reserved=REQUEST_FLAG_FUA)

    assert reading.data == sectors(1, salt=40)
    assert disk.backing.read(9, 2) == sectors(2, salt=40)
    assert disk.backing.read(0, 8) == sectors(8)
    assert disk.backing.read(11, 5) == sectors(16)[11 * 512 :]


@on("legacy")
@clause("5.2.6.3-L-03")
def test_flush_out_is_a_flush(plug):
    disk = plug(faults=(Fault("flush", once=True),), needs=[Feature.BLK_FLUSH])
    assert disk.write(8, sectors(8)).status is Status.OK

    bad = disk.request(RequestType.FLUSH_OUT)
    good = disk.request(RequestType.FLUSH_OUT)

    assert bad.status is Status.IOERR
    assert good.status is Status.OK
    assert (bad.damage, good.damage) == ((), ())
