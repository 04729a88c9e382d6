"""Planted defects: each changes one behaviour of the model, in a process of its own.

They are put in by name, and several add up: `--target model --defect NAME`.
"""

from . import configuration, packed, requests, running, split, zones  # noqa: F401  # file theirs
from .registry import DEFECTS, Defect

__all__ = ["DEFECTS", "Defect"]
