"""The one exception that building or looking up the guest image raises."""

from __future__ import annotations

import shutil
from pathlib import Path


class ImageError(Exception):
    """The guest image can't be built or used; the message is one line that says what to do."""


def no_space(directory: Path) -> ImageError:
    """The error for a full disk."""
    free = shutil.disk_usage(directory).free >> 20
    return ImageError(
        f"no space left in {directory} ({free} MiB free) for the guest image, which takes about "
        "150 MiB to build: free some, or point VBLK_CACHE at another disk"
    )
