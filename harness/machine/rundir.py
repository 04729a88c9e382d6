"""The directory of one machine: its sockets, logs and raw files.

The owner holds a lock (flock) on the directory. The kernel drops the lock when the
owner dies, however it dies. A directory that can be locked has a dead owner, and the
next run removes it. (A recorded pid would be wrong across containers that share /tmp.)

Each directory has a marker, a file that names the directory by its inode. The sweep
removes a directory only if the marker in it names it. A directory that somebody else
made, or that was copied or renamed, stays, whatever its name is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from harness import interrupt
from harness.machine import cleanup
from harness.machine.errors import MachineError

PREFIX = "vblk-"
MARKER = ".vblk-run-directory"
# sun_path holds 108 bytes with its NUL; the longest name made here is well under 20.
_LONGEST = 107 - 20
ROOM = 16 << 20
"""Bytes that must be free for a run directory: its logs, and what tests write to disks."""

_MARKER_LIMIT = 512  # bytes; a name has at most 255


class RunDir:
    """A fresh directory of mode 0700 with a short path, removed by `remove`.

    MachineError if the file system has less than ROOM left, or takes no directory.
    """

    def __init__(self) -> None:
        base = _base()
        _sweep(base)
        check_room()
        self._fd = -1
        with interrupt.shielded():
            try:
                self._make(base)
            except OSError as error:
                self.remove()
                raise MachineError(
                    f"no directory can be made in {base} ({error.strerror}): put that right, or"
                    " set TMPDIR to another directory"
                ) from error

    def _make(self, base: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        cleanup.at_exit(self.remove)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        # Last, so that a directory with a marker is locked for as long as its owner lives.
        (self.path / MARKER).write_bytes(_marker(self._fd, self.path.name))

    def remove(self) -> None:
        """Remove the directory and its contents. A second call does nothing."""
        if self._fd < 0:
            return
        with interrupt.shielded():
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1
            cleanup.forget(self.remove)


def check_room(directory: Path | None = None, needed: int | None = None) -> None:
    """Raise MachineError if a file system has fewer than `needed` bytes left (None: ROOM).

    `directory` is on it; None is for that of run directories.
    """
    base, needed = directory or _base(), needed or ROOM
    try:
        found = os.statvfs(base)
    except OSError as error:
        raise MachineError(f"{base} cannot be used for temporary files: {error.strerror}") from None
    free = found.f_bavail * found.f_frsize
    if free < needed:
        advice = "" if directory else ", or set TMPDIR to a directory on another file system"
        raise MachineError(
            f"{base} has {free >> 20} MiB left, and {needed >> 20} MiB are needed: free some"
            f"{advice}"
        )


def _base() -> Path:
    base = Path(tempfile.gettempdir())
    return base if len(os.fsencode(base)) + len(PREFIX) + 10 <= _LONGEST else Path("/tmp")


def _marker(directory: int, name: str) -> bytes:
    """Return the marker's contents for a directory (an open descriptor) of this name."""
    info = os.fstat(directory)
    return os.fsencode(f"vblk run directory {info.st_dev}:{info.st_ino} {name}\n")


def _is_marked(directory: int, name: str) -> bool:
    """Return whether the directory has a marker that names this very directory."""
    try:
        marker = os.open(MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(marker).st_mode):
            return False
        return os.read(marker, _MARKER_LIMIT) == _marker(directory, name)
    finally:
        os.close(marker)


def _sweep(base: Path) -> None:
    """Remove the run directories of this user whose owners are gone."""
    for path in base.glob(PREFIX + "*"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # removed in the meantime, another user's, or no directory
        try:
            if os.fstat(fd).st_uid != os.getuid() or not _is_marked(fd, path.name):
                continue
            with suppress(BlockingIOError):  # raised if the owner lives
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
