"""Reports as files: a suffix says which."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from harness.report.page import rendered
from harness.report.results import Results, dumped, relocated

WRITERS = {".json": dumped, ".html": rendered}
"""What a file's suffix asks for."""


def report_file(text: str) -> Path:
    """A file that a report can be written to, its directory made if need be.

    argparse.ArgumentTypeError for any other.
    """
    path = Path(text)
    if path.suffix not in WRITERS:
        raise argparse.ArgumentTypeError(f"{text!r} ends in none of {', '.join(WRITERS)}")
    make_directory(path.parent)
    return path


def make_directory(path: Path) -> None:
    """Make a directory, unless it is there; argparse.ArgumentTypeError if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror
        raise argparse.ArgumentTypeError(f"{str(path)!r} can be no directory: {why}") from None


def write(path: Path, results: Results) -> None:
    """Write a report in the form that its suffix names, whole or not at all."""
    top = path.absolute().parent
    beside = path.with_name(path.name + ".part")
    # Moved together, a report and the artifacts of its failures find each other.
    results = relocated(results, lambda place: os.path.relpath(place, top))
    beside.write_text(WRITERS[path.suffix](results), encoding="utf-8")
    beside.replace(path)
