"""Devices that differ in nothing that the specification asks: on these, no test may turn red."""

from __future__ import annotations

import time
from dataclasses import replace

from harness.defects.bus import AlteredPci
from harness.defects.registers import defect
from harness.diskspec import DiskSpec

SLOW_IOPS = 25
"""Operations a second: 40 ms each, four times what a rotating disk takes."""

REGISTER_SECONDS = 0.001


def throttled(spec: DiskSpec) -> DiskSpec:
    """The same disk on slow storage."""
    return spec if spec.iops is not None else replace(spec, iops=SLOW_IOPS)


@defect(
    "slow-storage",
    text=f"harmless: the storage does {SLOW_IOPS} operations a second",
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
