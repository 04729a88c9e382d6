"""All defects by name, wherever they are made."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from harness.defects import (  # noqa: F401  # they file their defects
    harmless,
    legacy,
    legacy_rings,
    mmio,
    msix,
    pci_capabilities,
    pci_function,
    pci_registers,
)
from harness.defects.registers import REGISTER_DEFECTS
from harness.model.defects import DEFECTS as MODEL_DEFECTS


class Defect(Protocol):
    """What every defect says of itself: see `registers.RegisterDefect`, `model.defects.Defect`."""

    @property
    def name(self) -> str: ...
    @property
    def statements(self) -> tuple[str, ...]: ...
    @property
    def text(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def unusable(self) -> bool: ...
    def can_be_on(self, target: str) -> bool: ...


@cache
def defects() -> dict[str, Defect]:
    """Name -> defect, in the order in which they were written. ValueError for a name of two."""
    if both := REGISTER_DEFECTS.keys() & MODEL_DEFECTS.keys():
        raise ValueError(f"defects of the registers and of the model share names: {sorted(both)}")
    return {**REGISTER_DEFECTS, **MODEL_DEFECTS}
