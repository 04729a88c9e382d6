"""Directories of the cache: private keys are in them, so they are for their owner only."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

MODE = 0o700


def private_directory(path: Path) -> None:
    """Make a directory, and the parents that are missing, with mode 0700 whatever the umask is.

    What is there already is left alone, as it may be the user's own. OSError if it cannot be made.
    """
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for directory in reversed(missing):
        with suppress(FileExistsError):
            directory.mkdir(MODE)
