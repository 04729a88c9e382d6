"""Named targets: which device, on which machine, over which transport, driven from where.

A target joins the machine, the channel and the driver; a test sees none of
them, only `Disk`.
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
from harness.targets.guest.target import GuestPci

__all__ = [
    "Backing",
    "DeviceIdentity",
    "Disk",
    "GuestPci",
    "LacksError",
    "Plugged",
    "Progress",
    "StartError",
    "Target",
    "TargetError",
]
