"""Types of command-line options."""

from __future__ import annotations

import argparse


def seconds(text: str) -> float:
    """Return a number of seconds greater than 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds greater than 0")
    return number
