"""A process that serves raw files over FUSE, which fail, are slow and count as a disk asks for.

    python -m harness.machine.file_server FD MOUNTPOINT DIRECTORY

It serves the files of DIRECTORY on MOUNTPOINT until the control channel on the descriptor FD ends,
and then unmounts. The channel ends with the process that has its other end, also if that is killed.
Each line of the channel is a JSON object, answered by one:

- `{"do": "set", "name": ..., "faults": [...], "iops": ...}` gives a file its faults.
- `{"do": "forget", "name": ...}` ends all operations on a file with an error at once.
- `{"do": "count", "name": ...}` returns how often a file was committed.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.diskspec import SECTOR, Fault, Operation

SYNCHRONOUS = os.O_SYNC | os.O_DSYNC
"""Flags of open(2) with which each write is committed before it ends."""


class File:
    """A file with faults and a limit of operations per second, and a count of its commits."""

    def __init__(self, faults: Iterable[Fault] = (), iops: int | None = None) -> None:
        self._faults = list(faults)
        self._pause = 1 / iops if iops else 0.0
        self._next = 0.0
        self._dirty = False
        self._lock = threading.Lock()
        self._gone = threading.Event()
        self.syncs = 0

    def forget(self) -> None:
        """End every operation that waits for its turn with an error, and all later ones."""
        self._gone.set()

    def access(self, on: Operation, offset: int, length: int) -> None:
        """Wait for the turn of a read or write. OSError if a fault applies, or after `forget`."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._pause
            self._dirty |= on == "write"
        if self._gone.wait(turn - now) if turn > now else self._gone.is_set():
            raise OSError(errno.EIO, "the file was removed")
        self._fail(on, offset // SECTOR, -(-(offset + length) // SECTOR))

    def commit(self) -> None:
        """Count a commit. OSError if a fault applies and something was written before it."""
        with self._lock:
            self.syncs += 1
            dirty, self._dirty = self._dirty, False
        if dirty:
            self._fail("flush", 0, 0)

    def _fail(self, on: Operation, start: int, end: int) -> None:
        with self._lock:
            for fault in self._faults:
                if fault.on == on and (fault.sector is None or start <= fault.sector < end):
                    if fault.once:
                        self._faults.remove(fault)
                    raise OSError(fault.errno, os.strerror(fault.errno))


class Files:
    """The file system, as operations of mfusepy: the files of a directory, nothing can be added."""

    use_ns = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, File] = {}
        self._ready = threading.Event()
        self.ending = False

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Execute a command of the control channel, and return the answer."""
        name = command["name"]
        match command["do"]:
            case "set":
                faults = [Fault(**fault) for fault in command["faults"]]
                self._files[name] = File(faults, command["iops"])
            case "forget":
                self._file(name).forget()
            case "count":
                return {"syncs": self._file(name).syncs}
        return {}

    def end(self) -> None:
        """End every operation that waits."""
        self.ending = True
        for file in [*self._files.values()]:
            file.forget()

    def wait_until_mounted(self, seconds: float) -> bool:
        """Return True once the kernel uses the file system, False after `seconds`."""
        return self._ready.wait(seconds)

    def _file(self, path: str) -> File:
        return self._files.setdefault(path.lstrip("/"), File())

    def _path(self, path: str) -> Path:
        return self._directory / path.lstrip("/")

    # --- operations that mfusepy calls

    def init_with_config(self, connection: object, config: Any) -> None:
        """Keep nothing in the kernel: the size changes from outside."""
        del connection
        if config:
            config.attr_timeout = config.entry_timeout = 0
        self._ready.set()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """Return the attributes of a file."""
        del fh
        info = os.lstat(self._path(path))
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
        return {name: getattr(info, name) for name in names}

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        """Yield the names in the directory."""
        del path, fh
        yield from (".", "..", *(file.name for file in self._directory.iterdir()))

    def open(self, path: str, info: Any) -> int:
        """Open a file, so that each read and write of a program is one operation here."""
        # The kernel's own flags, such as O_DIRECT, would ask for aligned buffers here.
        access = info.flags & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
        info.fh = os.open(self._path(path), access | os.O_CLOEXEC)
        info.direct_io = True
        return 0

    def read(self, path: str, length: int, offset: int, info: Any) -> bytes:
        """Read bytes, at their turn."""
        self._file(path).access("read", offset, length)
        return os.pread(info.fh, length, offset)

    def write(self, path: str, data: bytes, offset: int, info: Any) -> int:
        """Write bytes, at their turn. They are committed if the file was opened so."""
        file = self._file(path)
        file.access("write", offset, len(data))
        written = os.pwrite(info.fh, data, offset)
        if info.flags & SYNCHRONOUS:
            file.commit()
        return written

    def fsync(self, path: str, only_data: int, info: Any) -> int:
        """Commit what was written. The file itself need not outlive a crash of this machine."""
        del only_data, info
        self._file(path).commit()
        return 0

    def truncate(self, path: str, length: int, info: Any = None) -> int:
        """Set the size."""
        del info
        os.truncate(self._path(path), length)
        return 0

    def release(self, path: str, info: Any) -> int:
        """Close a file."""
        del path
        os.close(info.fh)
        return 0


def obey_until_end(link: socket.socket, files: Files) -> None:
    """Execute commands until the channel ends, then end this process, which unmounts."""
    try:
        with link.makefile("rw", encoding="utf-8") as lines:
            files.wait_until_mounted(60)
            lines.write("{}\n")
            lines.flush()
            for line in lines:
                lines.write(json.dumps(files.obey(json.loads(line))) + "\n")
                lines.flush()
    except OSError:
        pass
    finally:
        files.end()
        os.kill(os.getpid(), signal.SIGTERM)  # libfuse's own handler leaves its loop and unmounts


def main() -> None:
    """Serve until the control channel ends."""
    from mfusepy import FUSE  # only with the extra "fuse"

    fd, mountpoint, directory = sys.argv[1:]
    files = Files(Path(directory))
    link = socket.socket(fileno=int(fd))
    threading.Thread(target=obey_until_end, args=[link, files], daemon=True).start()
    try:
        FUSE(files, mountpoint, raw_fi=True, foreground=True, fsname="vblk")
    except RuntimeError as error:  # libfuse's status, also after the signal that ends it
        if not files.ending:
            raise SystemExit(f"libfuse has ended with {error}") from None


if __name__ == "__main__":
    main()
