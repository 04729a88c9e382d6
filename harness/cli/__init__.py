"""The command line, `vblk`."""

from harness.cli.main import main

__all__ = ["main"]
