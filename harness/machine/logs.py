"""The end of log files, which may be long, or still be written."""

from __future__ import annotations

from pathlib import Path

TAIL = 64 << 10
"""Bytes at the end of a log that are searched for its last lines."""


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a log, at most its last 64 KiB."""
    return "\n".join(end_of(path, TAIL).splitlines()[-lines:])


def end_of(path: Path, size: int) -> str:
    """Return the last `size` bytes of a log as text; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read(size).decode(errors="replace").replace("\r", "")
    except FileNotFoundError:
        return ""
