"""Planted defects: each changes one behaviour of the model, in a process of its own.

They are put in by name, and several add up: `--target model --defect NAME`.
"""

from harness.model.defects import (  # noqa: F401  # they file their defects
    configuration,
    packed,
    pci,
    requests,
    running,
    segments,
    split,
    ways,
    zone_contents,
    zones,
)
from harness.model.defects.registry import DEFECTS, Defect

__all__ = ["DEFECTS", "Defect"]
