"""Command-line options: their names and types."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest


def add_option(parser: pytest.Parser, name: str, **attributes: Any) -> None:
    """Add `--vblk-NAME`, and `--NAME` if no other plugin has an option of this name.

    The value is `config.option.vblk_NAME`.
    """
    names = [f"--vblk-{name}"]
    if f"--{name}" not in _taken(parser):
        names.append(f"--{name}")
    group = parser.getgroup("virtio-blk", "virtio-blk conformance")
    group.addoption(*names, dest=f"vblk_{name.replace('-', '_')}", **attributes)


def _taken(parser: pytest.Parser) -> set[str]:
    """Return the names of the options that pytest and other plugins have added."""
    groups = {parser._anonymous, *parser._groups}
    return {name for group in groups for option in group.options for name in option.names()}


def seconds(text: str) -> float:
    """Return a number of seconds greater than 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds greater than 0")
    return number


def existing_directory(text: str) -> Path:
    """Return the path of a directory that exists."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {text}")
    return path
