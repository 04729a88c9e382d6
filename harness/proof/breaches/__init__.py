"""Planted breaches: work of the reference driver that breaks statements, for the witness.

Each breach is a function that does something illegal with a disk of the model, or with one of QEMU
over virtio-mmio. `docs/witness-proof.md` lists which rules it turns red.
"""

from harness.proof.breaches import (
    features,
    legacy,
    mmio,
    notifications,
    packed,
    registers,
    requests,
    split,
    status,
)
from harness.proof.breaches.breach import BREACHES, Breach

__all__ = [
    "BREACHES",
    "Breach",
    "features",
    "legacy",
    "mmio",
    "notifications",
    "packed",
    "registers",
    "requests",
    "split",
    "status",
]
