"""Harmless changes of a device, which violate nothing: no test may fail because of them."""

from __future__ import annotations

import time
from dataclasses import replace

from harness.defects.bus import AlteredPci
from harness.defects.registers import defect
from harness.diskspec import DiskSpec

SLOW_IOPS = 25
"""Operations per second: 40 ms each, four times as long as a hard disk needs."""

REGISTER_SECONDS = 0.001


def throttled(spec: DiskSpec) -> DiskSpec:
    """Return the same disk with slow storage."""
    return spec if spec.iops is not None else replace(spec, iops=SLOW_IOPS)


@defect(
    "slow-storage",
    text=f"harmless: the storage executes {SLOW_IOPS} operations per second",
    spec=throttled,
)
class SlowStorage(AlteredPci):
    pass


@defect(
    "slow-registers",
    text="harmless: every access to a register takes a millisecond longer",
)
class SlowRegisters(AlteredPci):
    def alter_read(self, name: str, offset: int, width: int, value: int) -> int:
        time.sleep(REGISTER_SECONDS)
        return value

    def alter_write(self, name: str, value: int) -> int | None:
        time.sleep(REGISTER_SECONDS)
        return value
