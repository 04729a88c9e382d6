"""The ends of log files, which may be long, or still be written to."""

from __future__ import annotations

from pathlib import Path

TAIL = 64 << 10
"""Bytes that the last lines of a log are looked for in."""


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
