"""Report files. The suffix of a file selects its format."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from harness.report.page import rendered
from harness.report.results import Results, dumped, relocated

WRITERS = {".json": dumped, ".html": rendered}
"""File suffix -> function that makes the file's text."""


def report_file(text: str) -> Path:
    """Return the path for a report, and make its directory if needed.

    Raise argparse.ArgumentTypeError if the path cannot be used.
    """
    path = Path(text)
    if path.suffix not in WRITERS:
        raise argparse.ArgumentTypeError(f"{text!r} has to end with {' or '.join(WRITERS)}")
    make_directory(path.parent)
    return path


def make_directory(path: Path) -> None:
    """Make a directory if it does not exist. Raise argparse.ArgumentTypeError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror
        raise argparse.ArgumentTypeError(
            f"{str(path)!r} cannot be made a directory: {why}"
        ) from None


def write(path: Path, results: Results) -> None:
    """Write a report in the format of its suffix, completely or not at all."""
    top = path.absolute().parent
    beside = path.with_name(path.name + ".part")
    # The paths of artifacts are relative to the report, so that both can be moved together.
    results = relocated(results, lambda place: os.path.relpath(place, top))
    beside.write_text(WRITERS[path.suffix](results), encoding="utf-8")
    beside.replace(path)
