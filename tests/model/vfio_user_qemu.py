"""The QEMU that has a vfio-user client, for tests that put the model's function into a machine."""

from __future__ import annotations

import pytest

from harness.machine import Qemu, find_qemu
from images import ImageError, foreign


def qemu_with_vfio_user() -> Qemu:
    """Return QEMU 11 from its locked packages; skip if it cannot be downloaded."""
    try:
        return find_qemu(str(foreign.ensure("qemu-11", print) / "bin/qemu-system-x86_64"))
    except ImageError as error:
        pytest.skip(f"needs QEMU 10.1 or newer: {error}")
