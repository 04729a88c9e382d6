"""The reference driver before the witness: legal work. Breaches are in test_proof.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.diskspec import DiskSpec
from harness.targets.disk import Disk
from harness.targets.model import Model
from harness.virtio.blk import RequestType, segment
from harness.virtio.catalogue import ADVISORY, driver_clauses
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


def test_a_stream_has_messages_or_registers(tmp_path: Path) -> None:
    for name, kind in (("model", Message), ("model-pci", Register)):
        path = tmp_path / f"{name}.jsonl"
        observed(name, path, lambda disk: disk.start() and None)
        assert any(isinstance(event, kind) for event in read(path))
