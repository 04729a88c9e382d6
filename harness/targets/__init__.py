"""Named targets: each combines a device, a machine, a transport and a place where the driver runs.

A target connects the machine, the channel and the driver. A test sees only `Disk`.
"""

from harness.targets.base import (
    Backing,
    DeviceIdentity,
    LacksError,
    Plugged,
    Progress,
    StartError,
    Target,
    TargetError,
)
from harness.targets.disk import Disk
from harness.targets.guest.target import GuestTarget

__all__ = [
    "Backing",
    "DeviceIdentity",
    "Disk",
    "GuestTarget",
    "LacksError",
    "Plugged",
    "Progress",
    "StartError",
    "Target",
    "TargetError",
]
