"""Named targets: which device, on which machine, over which transport, driven from where.

A target joins the machine, the channel and the driver; a test sees none of
them, only `Disk`.
"""

from .base import Backing, DeviceIdentity, LacksError, Plugged, Progress, Target, TargetError
from .disk import Disk
from .guest_pci import GuestPci

__all__ = [
    "Backing",
    "DeviceIdentity",
    "Disk",
    "GuestPci",
    "LacksError",
    "Plugged",
    "Progress",
    "Target",
    "TargetError",
]
