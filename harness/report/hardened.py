"""Names of a hardening test's level and properties."""

from __future__ import annotations

from typing import Literal

LEVEL: Literal["hardening"] = "hardening"

VERDICT = "hardening-verdict"
EVIDENCE = "hardening-evidence"
RING = "hardening-ring"
"""Properties of a hardening test: the fate, the evidence for it, and the kind of virtqueue."""

DRIVER_VERDICT = "driver-verdict"
DRIVER_EVIDENCE = "driver-evidence"
"""Properties of a test with an illegal device: the fate of the driver, and the evidence for it."""
