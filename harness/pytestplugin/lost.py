"""Output that cannot be written: its reader has ended, or its file system is full."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TextIO


def discard(file: TextIO) -> None:
    """Discard the buffer of a file, and all that is written to it later.

    Pytest's capturing puts the original file back at the descriptor. Without this, Python would
    write the buffer to it again at exit.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)
    file.flush()


def report_loss(error: OSError, more: str = "") -> None:
    """Print the reason why nothing more is written to stdout, to stderr if there is one."""
    if sys.stderr is not None:
        print(f"vblk: no more output ({error.strerror}){more}", file=sys.stderr)


def print_listing(lines: Iterable[str]) -> int:
    """Print lines, as many as the reader takes. Return 1 if they cannot be written, else 0."""
    if sys.stdout is None:
        return 0
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        report_loss(error)
        return 1
    return 0
