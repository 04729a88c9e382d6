"""Raw files that fail, are slow and count commits, for a program that opens a file (needs FUSE).

A process of ours serves a directory over FUSE (`harness.machine.file_server`). It unmounts and ends
when this process ends, however that happens.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import interrupt
from harness.diskspec import DiskSpec
from harness.machine import cleanup
from harness.machine.errors import MachineError
from harness.machine.logs import tail

DEVICE = Path("/dev/fuse")
START_DEADLINE = 20.0
"""Seconds until the files are served."""

ANSWER_DEADLINE = 10.0
"""Seconds for the answer to a command, and for the end of the process."""

HONOURED = frozenset({"faults", "iops"})
"""Fields of `DiskSpec` that a served file provides."""

FAULTY = frozenset({"read", "write", "flush"})
"""Operations of `Fault` that a file can have: it sees no discard and no write zeroes."""


def lacking() -> str:
    """Return in words what this machine lacks for FUSE, "" if nothing."""
    try:
        importlib.import_module("mfusepy")
    except (ImportError, OSError, AttributeError) as error:
        return f"FUSE needs pip install 'virtio-blk-conformance[fuse]' and libfuse ({error})"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"FUSE needs {DEVICE}, which cannot be opened here"
    if os.getuid() and not shutil.which("fusermount3"):
        return "FUSE needs fusermount3, unless you are root: apt-get install fuse3"
    return ""


class ServedFiles:
    """The files of `directory`, served on `mountpoint`, until `close`."""

    def __init__(self, directory: Path, mountpoint: Path, log: Path) -> None:
        """Serve; MachineError if that fails. `log` gets the output of the process."""
        self.mountpoint = mountpoint
        self._log = log
        mountpoint.mkdir()
        link, theirs = socket.socketpair()
        with interrupt.shielded(), theirs:
            line = [sys.executable, "-m", __name__.replace("served_files", "file_server")]
            with log.open("wb") as output:
                # Not killed with its parent, as other children are: it has to unmount.
                self._process = subprocess.Popen(
                    [*line, str(theirs.fileno()), str(mountpoint), str(directory)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            self._link = link
            self._lines = link.makefile("rw", encoding="utf-8")
            cleanup.at_exit(self.close)
        try:
            link.settimeout(START_DEADLINE)
            self._answer()
            link.settimeout(ANSWER_DEADLINE)
        except BaseException:
            self.close()
            raise

    def set(self, name: str, spec: DiskSpec) -> None:
        """Give a file the faults and the limit of operations of a disk. MachineError on failure."""
        faults = [asdict(fault) for fault in spec.faults]
        self._tell("set", name, faults=faults, iops=spec.iops)

    def forget(self, name: str) -> None:
        """End all operations on a file with an error, those under way too."""
        self._tell("forget", name)

    def syncs(self, name: str) -> int:
        """Return how often a file was committed (fsync, fdatasync, writes of O_SYNC files)."""
        return int(self._tell("count", name)["syncs"])

    def _tell(self, command: str, name: str, **values: Any) -> dict[str, Any]:
        try:
            self._lines.write(json.dumps({"do": command, "name": name, **values}) + "\n")
            self._lines.flush()
        except (OSError, ValueError):
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            raise self._ended()
        return dict(json.loads(line))

    def _ended(self) -> MachineError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ANSWER_DEADLINE)  # its channel has ended first
        words = (tail(self._log, 20).splitlines() or ["no output"])[-1]
        status = self._process.poll()
        fate = "does not answer" if status is None else f"ended with {status}"
        return MachineError(f"the process that serves files over FUSE {fate}: {words}")

    def close(self) -> None:
        """Unmount, and end the process. A second call does nothing."""
        with interrupt.shielded():
            cleanup.forget(self.close)
            for end in (self._lines, self._link):
                with suppress(OSError):
                    end.close()
            try:
                self._process.wait(ANSWER_DEADLINE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if os.path.ismount(self.mountpoint) or _is_dead(self.mountpoint):
                _unmount(self.mountpoint)


def _is_dead(mountpoint: Path) -> bool:
    """Return True for a mount whose process has ended."""
    try:
        mountpoint.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _unmount(mountpoint: Path) -> None:
    """Unmount a file system that its process has left, at once, though it is in use."""
    by_root = ["umount", "-l"]
    line = by_root if not os.getuid() else ["fusermount3", "-u", "-z"]
    subprocess.run([*line, str(mountpoint)], capture_output=True, timeout=ANSWER_DEADLINE)
