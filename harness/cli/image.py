"""`vblk image`: the guest image in its cache."""

from __future__ import annotations

import argparse

import images.foreign
from harness.cli.errors import UsageError
from harness.cli.means import say


def build(_: argparse.Namespace) -> int:
    """Build the image if it does not exist; print its directory."""
    print(images.ensure(say).kernel.parent)
    return 0


def update(_: argparse.Namespace) -> int:
    """Lock the package versions that this machine's apt sources offer now."""
    images.update(say)
    return 0


def path(_: argparse.Namespace) -> int:
    """Print the image's directory, if it contains an image."""
    status = images.status()
    if status.state != "built":
        raise UsageError(f"the guest image is {status.state}; build it: vblk image build")
    print(status.path)
    return 0


def foreign(arguments: argparse.Namespace) -> int:
    """Unpack the programs of another Debian suite; print the directory with bin/ and root/."""
    if arguments.update:
        images.foreign.update(arguments.name, say)
    print(images.foreign.ensure(arguments.name, say))
    return 0
