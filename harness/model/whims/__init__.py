"""Whims: each is a small legal variation of the model, in a process of its own.

They are chosen by name, and several add up: `--target model --whim NAME`. A conforming device may
be like any of them, so no test may fail on one (`tox -e shapes`).
"""

from harness.model.whims import (  # noqa: F401  # they file their whims
    administration,
    disks,
    features,
    function,
    notifications,
    requests,
    rings,
    transport,
)
from harness.model.whims.registry import MODEL, OWNED, PCI, WHIMS, Whim, reshaped

__all__ = ["MODEL", "OWNED", "PCI", "WHIMS", "Whim", "reshaped"]
