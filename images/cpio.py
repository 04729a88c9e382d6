"""A file tree in memory, and its cpio archive ("newc"), which the kernel unpacks as initramfs.

The archive depends only on the tree: entries are sorted, times are 0, the owner is root, and
inode numbers count from 1. So the same tree gives the same bytes on every machine.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGN = 4


@dataclass(frozen=True)
class Entry:
    """A file: its mode with the type bits, and its content (for a link: its target)."""

    mode: int
    data: bytes = b""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Tree:
    """Files by their path, relative to the root and without a leading slash."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._add(path, Entry(stat.S_IFREG | mode, data))

    def link(self, path: str, target: str) -> None:
        self._add(path, Entry(stat.S_IFLNK | 0o777, target.encode()))

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._add(path, Entry(stat.S_IFDIR | mode))

    def _add(self, path: str, entry: Entry) -> None:
        for parent in list(PurePosixPath(path).parents)[-2::-1]:
            self._entries.setdefault(str(parent), Entry(stat.S_IFDIR | 0o755))
        self._entries[path] = entry

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield all entries, a directory before its contents."""
        yield from sorted(self._entries.items())


def write(tree: Tree, out: BinaryIO) -> None:
    """Write `tree` as a newc archive, padded to 512 bytes so that another one can follow it."""
    size = 0
    for inode, (path, entry) in enumerate(tree.entries(), start=1):
        size += _write_entry(out, path, entry, inode)
    size += _write_entry(out, _TRAILER, Entry(0), 0)
    out.write(bytes(-size % 512))


def _write_entry(out: BinaryIO, path: str, entry: Entry, inode: int) -> int:
    name = path.encode() + b"\0"
    links = 2 if entry.is_directory else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    header += bytes(-len(header) % _ALIGN)
    data = entry.data + bytes(-len(entry.data) % _ALIGN)
    out.write(header)
    out.write(data)
    return len(header) + len(data)
