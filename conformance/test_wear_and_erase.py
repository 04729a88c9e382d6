"""GET_LIFETIME and SECURE_ERASE (virtio 5.2.5, 5.2.6)."""

import pytest

from conformance.data import needed, sectors, shortest
from harness.report import clause, described
from harness.virtio.blk import (
    LIFETIME,
    LIFETIME_EST_MOST,
    PRE_EOL_INFO_MOST,
    RequestType,
    Status,
    segment,
)
from harness.virtio.features import Feature, names


def by_values(wear):
    return "-".join(map(str, wear))


ERASES = {"secure_erase": True, "needs": [Feature.BLK_SECURE_ERASE]}


# --- wear


@clause("5.2.6.2-D-13")
def test_lifetime_is_offered_over_storage_that_reports_its_wear(plug):
    disk = plug(lifetime=(1, 3, 7), start=False)

    assert "BLK_LIFETIME" in names(disk.driver.offered())


@pytest.mark.parametrize("wear", [(0, 0, 0), (1, 3, 7), (3, 11, 11)], ids=by_values)
@described("5.2.6-P-04")
def test_get_lifetime_gives_the_wear_of_the_storage(plug, wear):
    disk = plug(lifetime=wear, needs=[Feature.BLK_LIFETIME])

    completion = disk.get_lifetime()

    assert completion.status is Status.OK
    assert completion.damage == ()
    assert LIFETIME.unpack(completion.data) == wear


@pytest.mark.parametrize(
    "wear", [(4, 0, 0), (0, 12, 0), (1, 2, 0xFFFF), (9, 99, 999)], ids=by_values
)
@clause("5.2.6.2-D-15")
def test_reserved_values_of_the_storage_are_not_passed_on(plug, wear):
    disk = plug(lifetime=wear, needs=[Feature.BLK_LIFETIME])

    completion = disk.get_lifetime()

    assert completion.damage == ()
    if completion.status is Status.OK:
        pre_eol_info, *estimates = LIFETIME.unpack(completion.data)
        assert pre_eol_info <= PRE_EOL_INFO_MOST
        assert max(estimates) <= LIFETIME_EST_MOST


# --- secure erase


@described("5.2.6-P-09")
def test_secure_erase_leaves_nothing_of_its_segment_and_the_rest_alone(plug):
    disk = plug(**ERASES)
    config = disk.driver.config()
    size = config.secure_erase_sector_alignment or 8
    assert config.max_secure_erase_sectors >= size
    old = sectors(3 * size)
    disk.backing.write(0, old)

    completion = disk.secure_erase(segment(size, size))

    assert completion.status is Status.OK
    assert completion.damage == ()
    erased = disk.backing.read(size, size)
    kept = old[size * 512 : 2 * size * 512]
    assert all(erased[n : n + 512] != kept[n : n + 512] for n in range(0, len(kept), 512))
    assert needed(disk.read(size, size), "the read of the erased sectors").data == erased
    assert disk.backing.read(0, size) == old[: size * 512]
    assert disk.backing.read(2 * size, size) == old[2 * size * 512 :]


@clause("5.2.6.2-D-04")
def test_every_reserved_flag_of_a_secure_erase_ends_with_unsupp(plug):
    disk = plug(**ERASES)
    disk.backing.write(0, sectors(16))
    count = shortest(disk.driver.config().max_secure_erase_sectors, 8)

    for bit in range(1, 32):
        completion = disk.secure_erase(segment(0, count, 1 << bit))
        assert completion.status is Status.UNSUPP, f"flag bit {bit}"
        assert completion.damage == ()
    assert disk.backing.read(0, 16) == sectors(16)


@described("5.2.5-P-08")
def test_more_than_the_device_erases_at_once_does_not_succeed(plug):
    disk = plug(**ERASES)
    config = disk.driver.config()
    most, segments = config.max_secure_erase_sectors, config.max_secure_erase_seg
    assert most > 0 and segments > 0
    disk.backing.write(0, sectors(16))
    requests = []
    if most < 2**32 - 1:
        requests.append(segment(0, most + 1))
    if segments <= 64:
        requests.append(segment(0, 8) * (segments + 1))
    if not requests:
        pytest.skip(f"the device erases {segments} segments of {most} sectors at once")

    for data in requests:
        completion = disk.request(RequestType.SECURE_ERASE, data=data)
        assert completion.status in (Status.UNSUPP, Status.IOERR)
        assert completion.damage == ()
    assert disk.backing.read(0, 16) == sectors(16)


@described("5.2.4-P-06")
def test_a_secure_erase_beyond_the_end_fails_and_changes_nothing(plug):
    disk = plug(**ERASES)
    end = disk.driver.config().capacity
    disk.backing.write(end - 8, sectors(8))

    for sector, count in ((end, 8), (end - 4, 8), (2**55, 8), (2**64 - 4, 8)):
        completion = disk.secure_erase(segment(sector, count))
        assert completion.status in (Status.UNSUPP, Status.IOERR), f"{sector:#x}, {count}"
        assert completion.damage == ()
    assert disk.backing.read(end - 8, 8) == sectors(8)


@described("5.2.5-P-09")
def test_a_read_only_disk_is_not_erased(plug):
    disk = plug(read_only=True, secure_erase=True, needs=[Feature.BLK_RO])
    before = disk.backing.read(0, 8)

    completion = disk.secure_erase(segment(0, 8))

    assert completion.status in (Status.UNSUPP, Status.IOERR)
    assert completion.damage == ()
    assert disk.backing.read(0, 8) == before
