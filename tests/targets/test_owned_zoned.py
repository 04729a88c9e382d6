"""A zoned disk that the user owns: the model, reached by its socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from harness.diskspec import DiskSpec
from harness.targets import Disk, LacksError
from harness.targets.model import ModelProcess
from harness.targets.vhost_user import VhostUserSocket
from harness.virtio.blk import RequestType, Status, zones_of

Reach = Callable[..., VhostUserSocket]

ZONED = {"zoned": "host-managed", "zone_sectors": 512, "max_open_zones": 3}


@pytest.fixture
def reach() -> Iterator[Reach]:
    """Factory of disks that the user owns, and of targets for them."""
    with ExitStack() as stack:
        model = ModelProcess()
        stack.callback(model.stop)

        def make(destructive: bool = False, **fields: Any) -> VhostUserSocket:
            _, path, _ = model.add(DiskSpec(**fields))
            target = VhostUserSocket(str(path), destructive)
            stack.callback(target.close)
            return target

        yield make


def test_its_zones_are_what_they_are(reach: Reach) -> None:
    target = reach(destructive=True, **ZONED)

    disk = Disk(target.plug(DiskSpec(zoned="host-managed", zone_sectors=64, max_open_zones=9)))
    disk.start()

    config = disk.driver.config()
    assert (config.zone_sectors, config.max_open_zones) == (512, 3)
    assert disk.write(0, bytes(512)).status is Status.OK


def test_its_zones_are_reported_to_who_only_reads(reach: Reach) -> None:
    disk = Disk(reach(**ZONED).plug(DiskSpec(zoned="host-managed"), writes=False))
    disk.start()

    report = disk.request(RequestType.ZONE_REPORT, receive=64 * 3)

    assert [zone.start for zone in zones_of(report.data)[1]] == [0, 512]


@pytest.mark.parametrize(
    ("is_", "wanted"),
    [
        ({}, "host-managed"),
        ({"zoned": "host-aware"}, "host-managed"),
        (ZONED, "host-aware"),
        (ZONED, None),
    ],
    ids=["plain", "host-aware", "host-managed", "host-managed-for-any-test"],
)
def test_a_disk_of_another_model_is_lacking(reach: Reach, is_: dict[str, Any], wanted: Any) -> None:
    target = reach(destructive=True, **is_)

    with pytest.raises(LacksError, match=r"host-managed|the test needs host-"):
        target.plug(DiskSpec(zoned=wanted))


@pytest.mark.parametrize(("is_", "writes"), [(ZONED, False), ({"zoned": "host-aware"}, True)])
def test_a_zoned_disk_is_a_disk_too(reach: Reach, is_: dict[str, Any], writes: bool) -> None:
    disk = Disk(reach(destructive=True, **is_).plug(DiskSpec(), writes))
    disk.start()

    assert disk.read(40, 2).status is Status.OK
