"""Write files that a user asked for: checked before the work, and whole or not at all.

A file is written under a temporary name in the same directory, and renamed when it is complete. A
name that stands for another file (a symbolic link) keeps standing for it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from harness.inputs import InputError, read_text


def check_writable(path: Path) -> None:
    """Raise OSError if a file of this name cannot be written; makes its directory if need be.

    What is there already is not changed.
    """
    where = path.resolve()
    if where.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    if where.exists() and not where.is_file():
        raise OSError(errno.EINVAL, "It is not a regular file", str(path))
    if where.exists() and not os.access(where, os.W_OK):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    where.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=where.parent) as probe:
        probe.write(b"\n")


def check_directory(path: Path) -> None:
    """Raise OSError unless files can be made in a directory, which is made if need be."""
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass


def check_directory_can_be(path: Path) -> None:
    """Raise OSError unless a directory is there to make files in, or can be made. Makes nothing."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    with tempfile.TemporaryFile(dir=there):
        pass


def replace_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises OSError; then what was there is there still."""
    where = path.resolve()
    beside = where.with_name(f".{where.name[:64]}.{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if where.exists():
                os.fchmod(file.fileno(), where.stat().st_mode & 0o777)
            file.write(text)
        beside.replace(where)
    except BaseException:
        beside.unlink()
        raise


MARKER = ".vblk-made"
"""The file that says that a directory is ours, to be removed if its owner was killed."""


def mark(directory: Path) -> None:
    """Mark a directory as ours; its name is part of the mark, so that a copy has none."""
    (directory / MARKER).write_text(f"made by vblk: {directory.name}\n", encoding="utf-8")


def remove_leftovers(directory: Path, prefix: str) -> None:
    """Remove directories that begin with a prefix and have our mark; others are left alone."""
    for path in directory.glob(f"{prefix}*"):
        try:
            marked = read_text(path / MARKER) == f"made by vblk: {path.name}\n"
        except InputError:
            continue
        if marked and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def reason(error: OSError) -> str:
    """Return why a file could not be written, in words."""
    return error.strerror or str(error)
