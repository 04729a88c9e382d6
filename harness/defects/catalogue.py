"""All defects by name."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from harness.defects import (  # noqa: F401  # they file their defects
    harmless,
    legacy,
    legacy_rings,
    machine_events,
    mmio,
    msix,
    pci_capabilities,
    pci_function,
    pci_registers,
)
from harness.defects.registers import REGISTER_DEFECTS
from harness.model.defects import DEFECTS as MODEL_DEFECTS


class Defect(Protocol):
    """Common attributes of defects: see `registers.RegisterDefect` and `model.defects.Defect`."""

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
    """Return name -> defect, in the order of definition. Raise ValueError for a duplicate name."""
    if both := REGISTER_DEFECTS.keys() & MODEL_DEFECTS.keys():
        raise ValueError(
            f"defects of the registers and of the model have the same names: {sorted(both)}"
        )
    return {**REGISTER_DEFECTS, **MODEL_DEFECTS}
