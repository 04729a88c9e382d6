"""The directory of one machine: its sockets, logs and raw files.

The owner holds a lock (flock) on the directory. The kernel drops it when the
owner dies, however it dies, so a directory that can be locked is a dead one's
and the next run removes it. (A recorded pid would lie across containers that
share /tmp.)
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "vblk-"
# sun_path holds 108 bytes with its NUL; the longest name made here is well under 20.
_LONGEST = 107 - 20


class RunDir:
    """A fresh directory of mode 0700 with a short path, removed by `remove`."""

    def __init__(self) -> None:
        base = _base()
        _sweep(base)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
            # Between mkdtemp and flock a sweep may have taken the directory for a dead one's.
            with suppress(FileNotFoundError):
                self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(self._fd, fcntl.LOCK_EX)
                if self.path.exists():
                    return
                os.close(self._fd)

    def remove(self) -> None:
        """Remove the directory and all that is in it; once is enough."""
        if self._fd < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._fd)
        self._fd = -1


def _base() -> Path:
    base = Path(tempfile.gettempdir())
    return base if len(os.fsencode(base)) + len(PREFIX) + 10 <= _LONGEST else Path("/tmp")


def _sweep(base: Path) -> None:
    """Remove the directories of owners that are gone."""
    for path in base.glob(PREFIX + "*"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # removed meanwhile, or another user's
        try:
            if os.fstat(fd).st_uid == os.getuid():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(fd)
