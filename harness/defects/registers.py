"""Register defects by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from harness.defects.bus import AlteredMmio, AlteredPci
from harness.diskspec import DiskSpec
from harness.driver.bus.base import Bus, MmioWindow, PciFunction
from harness.driver.errors import DriverError

LEGACY = "qtest-pci-legacy"
"""Target for defects that only the legacy interface shows."""

AlteredBus = type[AlteredPci] | type[AlteredMmio]
Altered = TypeVar("Altered", bound=AlteredBus)


def as_asked(spec: DiskSpec) -> DiskSpec:
    """Return the disk that the test asks for."""
    return spec


@dataclass(frozen=True)
class RegisterDefect:
    """One changed behaviour of a device, altered on the way to its driver.

    `statements` are the catalogue ids of what it breaks. `text` says how, `target` is
    a target on which it shows. With `unusable` the driver turns the device down, so that
    a test ends in that error and not at its own expectation. `spec` makes another disk of
    the one that a test asks for. What breaks no statement is harmless: it must turn no
    test red.
    """

    name: str
    statements: tuple[str, ...]
    text: str
    target: str
    bus: AlteredBus
    unusable: bool = False
    spec: Callable[[DiskSpec], DiskSpec] = as_asked

    def can_be_on(self, target: str) -> bool:
        """Return True if a target's device can have this defect."""
        kind = "qtest-pci" if issubclass(self.bus, AlteredPci) else "qtest-mmio"
        return target.startswith(kind)

    def alter(self, bus: Bus) -> AlteredPci | AlteredMmio:
        """Return a bus that plants this defect. Raise DriverError for a bus of another kind."""
        if issubclass(self.bus, AlteredPci) and isinstance(bus, PciFunction):
            return self.bus(bus)
        if issubclass(self.bus, AlteredMmio) and isinstance(bus, MmioWindow):
            return self.bus(bus)
        raise DriverError(f"{self.name} is not a defect of this kind of device; use {self.target}")


REGISTER_DEFECTS: dict[str, RegisterDefect] = {}


def defect(
    name: str,
    *statements: str,
    text: str,
    target: str = "qtest-pci",
    unusable: bool = False,
    spec: Callable[[DiskSpec], DiskSpec] = as_asked,
) -> Callable[[Altered], Altered]:
    """Register the decorated bus under the name of its defect."""

    def file(bus: Altered) -> Altered:
        if name in REGISTER_DEFECTS:
            raise ValueError(f"there is already a defect {name!r}")
        REGISTER_DEFECTS[name] = RegisterDefect(name, statements, text, target, bus, unusable, spec)
        return bus

    return file
