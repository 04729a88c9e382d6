"""The fate of a device whose driver broke the rules."""

from __future__ import annotations

from enum import StrEnum


class Fate(StrEnum):
    """The states that a device can be left in, the best first."""

    SERVED = "served"
    REJECTED = "rejected"
    FAILED_REQUEST = "failed request"
    NEEDS_RESET = "needs reset"
    RECOVERED = "recovered after reset"
    WROTE_OUTSIDE = "wrote outside"
    GREW = "grew"
    WEDGED = "wedged"
    SPINS = "spins"
    CRASHED = "crashed"

    @property
    def severity(self) -> int:
        """Return the position in the order from the best (0) to the worst."""
        return tuple(Fate).index(self)

    @property
    def tolerable(self) -> bool:
        """Return whether a device may end in this state."""
        return self.severity <= Fate.RECOVERED.severity
