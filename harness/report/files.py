"""Report files. The suffix of a file selects its format."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from harness.inputs import printable
from harness.outputs import check_directory, check_writable, reason, replace_text
from harness.report.page import rendered
from harness.report.results import Results, dumped, relocated

WRITERS = {".json": dumped, ".html": rendered}
"""File suffix -> function that makes the file's text."""


def report_file(text: str) -> Path:
    """Return a path that a report can be written to; its directory is made if need be.

    Raises argparse.ArgumentTypeError, in one line, for any other: a run of an hour must not end
    with a report that cannot be written.
    """
    path = Path(text)
    if path.suffix not in WRITERS:
        raise argparse.ArgumentTypeError(f"{text!r} has to end with {' or '.join(WRITERS)}")
    return writable(path)


def writable(path: Path) -> Path:
    """Return a path that a file can be written to; argparse.ArgumentTypeError for any other."""
    directory(path.parent)
    try:
        check_writable(path)
    except OSError as error:
        why = printable(reason(error))
        raise argparse.ArgumentTypeError(f"{str(path)!r} cannot be written: {why}") from None
    return path


def directory(path: Path) -> Path:
    """Return a directory that files can be made in, made if need be.

    Raises argparse.ArgumentTypeError if there can be none.
    """
    try:
        check_directory(path)
    except OSError as error:
        why = printable(reason(error))
        raise argparse.ArgumentTypeError(
            f"{str(path)!r} cannot be made a directory: {why}"
        ) from None
    return path


def write(path: Path, results: Results) -> None:
    """Write a report in the form that its suffix names, whole or not at all. Raises OSError."""
    top = path.absolute().parent
    # The paths of artifacts are relative to the report, so that both can be moved together.
    results = relocated(results, lambda place: os.path.relpath(place, top))
    replace_text(path, WRITERS[path.suffix](results))


def complaint(path: Path, write: Callable[[], None]) -> str:
    """Write a report; return "", or why it could not be written, in one line."""
    try:
        write()
    except OSError as error:
        return printable(f"{path} is not written: {reason(error)}")
    return ""
