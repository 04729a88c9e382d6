"""The exception for builds and look-ups of the guest image."""

from __future__ import annotations

import shutil
from pathlib import Path


class ImageError(Exception):
    """The guest image cannot be built or used. The message is one line that says what to do."""


def no_space(directory: Path) -> ImageError:
    """Return the error for a full disk."""
    free = shutil.disk_usage(directory).free >> 20
    return ImageError(
        f"no space left in {directory} ({free} MiB free) for the guest image, which takes about "
        "150 MiB to build: free some, or point VBLK_CACHE at another disk"
    )
