"""The reference driver before the witness: legal work, and planted breaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec
from harness.driver.errors import FeaturesRefusedError
from harness.driver.interface import Buffer
from harness.targets.disk import Disk
from harness.targets.model import Model
from harness.virtio.blk import RequestType, segment
from harness.virtio.catalogue import ADVISORY, driver_clauses
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask
from harness.witness.events import Message, Register, read
from harness.witness.judge import Fate, Verdict, judge

OPTIONAL = {"6.1-R-05", "6.1-R-12"}
"""SHOULDs that the work does not follow: it accepts RING_PACKED and NOTIF_CONFIG_DATA not always.

The reference driver uses packed virtqueues on demand only, and the work also asks for small sets
of features.
"""

VERSION = Feature.VERSION_1
EXTRA = (
    mask(VERSION, Feature.RING_PACKED, Feature.INDIRECT_DESC),
    mask(VERSION, Feature.EVENT_IDX, Feature.INDIRECT_DESC),
    mask(VERSION, Feature.IN_ORDER, Feature.INDIRECT_DESC),
)


def observed(
    name: str, path: Path, work: Callable[[Disk], None], **spec: object
) -> dict[str, Verdict]:
    """Return the verdicts on a driver that does this work on a disk of a model."""
    target = Model(name=name, observe=path)
    try:
        disk = Disk(target.plug(DiskSpec(**({"capacity": 2048} | spec))))  # type: ignore[arg-type]
        try:
            work(disk)
        finally:
            disk.unplug()
    finally:
        target.close()
    return judge(read(path))


def broken(verdicts: dict[str, Verdict]) -> dict[str, tuple[str, ...]]:
    return {name: v.evidence for name, v in verdicts.items() if v.fate is Fate.BROKEN}


def use(disk: Disk) -> None:
    """Send a request of each ordinary kind."""
    disk.write(8, b"a" * 2048)
    assert disk.read(8, 4).data == b"a" * 2048
    disk.read(0, 2, writable=(512, 512, 1))
    disk.flush()
    disk.get_id()
    disk.discard(segment(16, 8))
    disk.write_zeroes(segment(16, 8))


def work(disk: Disk) -> None:
    """Use the disk with several sets of features, and across a resize."""
    disk.start()
    use(disk)
    disk.driver.config()
    disk.resize(4096)
    disk.read(2048)
    for features in EXTRA:
        disk.driver.reset()
        disk.start(features)
        use(disk)
        disk.read(0, 2, indirect=True)


def zoned_work(disk: Disk) -> None:
    """Report, open, write, append and reset zones."""
    disk.start()
    size = disk.driver.config().zone_sectors or 0
    disk.request(RequestType.ZONE_OPEN, size)
    disk.request(RequestType.ZONE_APPEND, size, b"a" * 4096, receive=8)
    disk.request(RequestType.ZONE_FINISH, size)
    disk.request(RequestType.ZONE_RESET, size)
    disk.request(RequestType.ZONE_RESET_ALL)


@pytest.mark.parametrize("name", ["model", "model-pci"])
def test_the_reference_driver_breaks_no_rule(name: str, tmp_path: Path) -> None:
    verdicts = observed(name, tmp_path / "it.jsonl", work)

    assert set(broken(verdicts)) <= OPTIONAL, broken(verdicts)
    assert all(driver_clauses()[name].level in ADVISORY for name in OPTIONAL)
    kept = [name for name, verdict in verdicts.items() if verdict.fate is Fate.KEPT]
    assert len(kept) >= (40 if name == "model-pci" else 20), kept


def test_the_reference_driver_breaks_no_rule_of_zones(tmp_path: Path) -> None:
    zones = {"capacity": 65536, "zoned": "host-managed", "zone_sectors": 2048}
    verdicts = observed("model-pci", tmp_path / "it.jsonl", zoned_work, **zones)

    assert set(broken(verdicts)) <= OPTIONAL, broken(verdicts)
    assert verdicts["5.2.6.1-R-20"].fate is Fate.KEPT
    assert verdicts["5.2.6.1-R-22"].fate is Fate.KEPT


# --- planted breaches: what the driver does, and the rules that it breaks


def clears_acknowledge(disk: Disk) -> None:
    disk.driver.reset()
    disk.driver.set_status(DeviceStatus.ACKNOWLEDGE)
    disk.driver.set_status(DeviceStatus.DRIVER)


def skips_the_check_of_features_ok(disk: Disk) -> None:
    disk.driver.reset()
    for value in (1, 3):
        disk.driver.set_status(value)
    disk.driver.offered()
    disk.driver.accept(mask(VERSION))
    for value in (11, 15):
        disk.driver.set_status(value)


def accepts_too_much(disk: Disk) -> None:
    with pytest.raises(FeaturesRefusedError):
        disk.driver.negotiate(mask(VERSION, Feature.BLK_RO))


def reads_beyond_the_end(disk: Disk) -> None:
    disk.start()
    disk.read(2047, 2)


def flushes_a_sector(disk: Disk) -> None:
    disk.start()
    disk.request(RequestType.FLUSH, 5)


def sends_half_a_sector(disk: Disk) -> None:
    disk.start()
    disk.request(RequestType.OUT, 5, b"a" * 256)


def unmaps_in_a_discard(disk: Disk) -> None:
    disk.start()
    disk.discard(segment(0, 8, 1))


def puts_writable_first(disk: Disk) -> None:
    disk.start()
    place = disk.driver.alloc(64)
    head = disk.driver.queue_add(0, [Buffer(place, 16, True), Buffer(place + 16, 16)])
    disk.driver.queue_publish(0, [head])
    disk.driver.queue_kick(0)
    disk.driver.status()


def asks_for_three_descriptors(disk: Disk) -> None:
    disk.driver.negotiate()
    disk.driver.register_write("queue_size", 3)


def disables_a_queue(disk: Disk) -> None:
    disk.start()
    disk.driver.register_write("queue_enable", 0)


def writes_a_read_only_register(disk: Disk) -> None:
    disk.driver.register_write("num_queues", 1)


def maps_a_vector_that_is_not_there(disk: Disk) -> None:
    disk.driver.register_write("config_msix_vector", 500)


BREACHES = {
    clears_acknowledge: {"2.1.1-R-02"},
    skips_the_check_of_features_ok: {"3.1.1-R-01"},
    accepts_too_much: {"2.2.1-R-01a"},
    reads_beyond_the_end: {"5.2.6.1-R-02"},
    flushes_a_sector: {"5.2.6.1-R-04"},
    sends_half_a_sector: {"5.2.6.1-R-06"},
    unmaps_in_a_discard: {"5.2.6.1-R-14"},
    puts_writable_first: {"2.7.4.2-R-01"},
    asks_for_three_descriptors: {"4.1.4.3.2-R-03"},
    disables_a_queue: {"4.1.4.3.2-R-06"},
    writes_a_read_only_register: {"4.1.4.3.2-R-01"},
    maps_a_vector_that_is_not_there: {"4.1.5.1.2.2-R-04"},
}


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: breach.__name__)
def test_a_planted_breach_turns_its_rule_red_and_no_other(
    breach: Callable[[Disk], None], tmp_path: Path
) -> None:
    verdicts = observed("model-pci", tmp_path / "it.jsonl", breach)

    musts = {name for name in broken(verdicts) if driver_clauses()[name].level not in ADVISORY}
    assert musts == BREACHES[breach], broken(verdicts)


def test_a_stream_has_messages_or_registers(tmp_path: Path) -> None:
    for name, kind in (("model", Message), ("model-pci", Register)):
        path = tmp_path / f"{name}.jsonl"
        observed(name, path, reads_beyond_the_end)
        assert any(isinstance(event, kind) for event in read(path))
