"""The properties of a hardening test: the level's name, the device's fate, the evidence."""

from __future__ import annotations

from typing import Literal

LEVEL: Literal["hardening"] = "hardening"

VERDICT = "hardening-verdict"
EVIDENCE = "hardening-evidence"
RING = "hardening-ring"
"""The properties of a test: the fate, the evidence for it, and the kind of virtqueue."""
