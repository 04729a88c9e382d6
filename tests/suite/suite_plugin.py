"""Targets `fake...`: FakeFunction, healthy and with one defect each, for `pytest -p suite_plugin`.

On a target with a defect only the tests run that are about the statement it breaks, on a
healthy one those about all of these statements.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
from function import FakeFunction

import harness.target.registry
from harness.disks import SECTOR, DiskSpec
from harness.driver.block import BlockDriver
from harness.driver.transport.pci import PciModern
from harness.report import statement_of
from harness.target import Backing, DeviceIdentity, LacksError, Plugged, Target

DEFECTS = {
    "unoffered-accepted": "2.2.2-D-02b",
    "length-late": "2.7.8.2-D-01",
    "shared-over-structures": "2.10.2-D-01",
    "suspend-early": "3.4.2-D-01",
    "suspend-writes": "3.4.2-D-02",
    "suspend-serves": "3.4.2-D-03",
    "suspend-leaves": "3.4.2-D-03",
    "suspend-config": "3.4.2-D-03",
    "suspend-announces": "3.4.2-D-04",
    "resume-forgets": "3.4.2-D-05",
    "suspend-never": "3.4.2-D-06",
    "resume-never": "3.4.2-D-07",
    "suspend-drops": "3.4.2-D-08",
    "capability-loop": "4.1.1-D-01",
    "capability-unaligned": "4.1.1-D-01",
    "bar-type": "4.1.1-D-01",
    "queue-reset-outlives-reset": "4.1.4.3.1-D-09",
    "queue-reset-early": "4.1.4.3.1-D-12",
    "admin-index": "4.1.4.3.1-D-16a",
    "admin-number": "4.1.4.3.1-D-16b",
    "notify-far": "4.1.4.4.1-D-04b",
    "notify-far+notification-data": "4.1.4.4.1-D-08b",
    "shared-beyond-bar": "4.1.4.7.1-D-01",
    "shared-ids": "4.1.4.7.1-D-02",
    "vendor-side-effect": "4.1.4.8.1-D-03",
    "vendor-id": "4.1.4.8.1-D-01",
    "vendor-length": "4.1.4.8.1-D-02",
    "no-access-platform": "6.2-D-03",
    "sr-iov-withheld": "6.2-D-09a",
    "sr-iov-unfounded": "6.2-D-09b",
    "looks-transitional": "7.4-T-01",
}
"""Defects of FakeFunction, several joined by +, and the statement that each breaks."""

HEALTHY = ("fake", "fake:notification-data")

HAS = {"capacity", "backing", "queues", "iops", "write_cache", "config_wce", "serial", "faults"}
"""What of a DiskSpec the fake can do, or leave undone without anybody noticing."""


class Contents(Backing):
    """The bytes behind the fake."""

    def __init__(self, raw: bytearray) -> None:
        self._raw = raw

    @property
    def size(self) -> int:
        return len(self._raw)

    def read(self, sector: int, count: int) -> bytes:
        return bytes(self._raw[sector * SECTOR : (sector + count) * SECTOR])

    def write(self, sector: int, data: bytes) -> None:
        self._raw[sector * SECTOR : sector * SECTOR + len(data)] = data


class FakeDisk(Plugged):
    def __init__(self, spec: DiskSpec, defects: frozenset[str]) -> None:
        usual = asdict(DiskSpec())
        lacks = [
            name for name, value in vars(spec).items() if value != usual[name] and name not in HAS
        ]
        if lacks or spec.faults or spec.capacity > 1 << 20 or spec.config_wce is False:
            raise LacksError(f"the fake has no such disk: {', '.join(lacks) or spec}")
        self.spec = spec
        self._raw = bytearray(spec.capacity * SECTOR)
        self._function = FakeFunction(
            self._raw, spec.queues or 1, spec.iops, spec.write_cache is not False, defects
        )
        self.driver = BlockDriver(PciModern(self._function))

    @property
    def backing(self) -> Contents:
        return Contents(self._raw)

    def resize(self, capacity: int) -> None:
        del self._raw[capacity * SECTOR :]
        self._raw.extend(bytes(capacity * SECTOR - len(self._raw)))
        self._function.resized()

    def unplug(self) -> None:
        self.driver.close()


class FakeTarget(Target):
    description = "a PCI function in this process"
    traits = frozenset({"pci", "modern"})

    def __init__(self, name: str) -> None:
        self.name = name
        self._defects = frozenset(name.partition(":")[2].split("+")) - {""}

    def plug(self, spec: DiskSpec, writes: bool = True) -> Plugged:
        return FakeDisk(spec, self._defects)

    def close(self) -> None:
        pass

    def identities(self) -> tuple[DeviceIdentity, ...]:
        return (DeviceIdentity("fake", (1,)),)

    def facts(self) -> dict[str, str]:
        return {}

    def evidence(self) -> dict[str, str]:
        return {}

    def check(self) -> None:
        pass


for name in (*HEALTHY, *(f"fake:{defects}" for defects in DEFECTS)):
    harness.target.registry._MAKERS[name] = (
        FakeTarget.description,
        lambda settings, name=name: FakeTarget(name),
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def wanted(item: pytest.Item) -> bool:
        statement = statement_of(item)
        callspec = getattr(item, "callspec", None)
        target = callspec.params.get("_bench", "") if callspec else ""
        defects = target.partition(":")[2]
        about = {DEFECTS[defects]} if defects in DEFECTS else set(DEFECTS.values())
        return statement is not None and not about.isdisjoint(statement.clauses)

    items[:] = [item for item in items if wanted(item)]
