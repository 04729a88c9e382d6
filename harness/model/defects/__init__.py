"""Planted defects of the model.

Each changes one behaviour, in the model's own process.

They are chosen by name and can be combined: `--target model --defect NAME`.
"""

from harness.model.defects import (  # noqa: F401  # they file their defects
    administration,
    combined,
    configuration,
    forgetting,
    notifications,
    packed,
    pci,
    pci_structures,
    requests,
    running,
    segments,
    split,
    vhost_user,
    ways,
    zone_contents,
    zones,
)
from harness.model.defects.registry import DEFECTS, Defect

__all__ = ["DEFECTS", "Defect"]
