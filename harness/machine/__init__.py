"""QEMU as a process: its command line, QMP, disks, live resize, faults.

It does not depend on channels to the guest, on the driver, or on pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.machine.accel import Accel, choose_accel
    from harness.machine.command import MachineConfig
    from harness.machine.drive import Backing, Drive
    from harness.machine.errors import MachineError
    from harness.machine.machine import Machine
    from harness.machine.qemu import Qemu, find_qemu

__all__ = [
    "Accel",
    "Backing",
    "Drive",
    "Machine",
    "MachineConfig",
    "MachineError",
    "Qemu",
    "choose_accel",
    "find_qemu",
]

_MODULES = {
    "Accel": "accel",
    "Backing": "drive",
    "Drive": "drive",
    "Machine": "machine",
    "MachineConfig": "command",
    "MachineError": "errors",
    "Qemu": "qemu",
    "choose_accel": "accel",
    "find_qemu": "qemu",
}


def __getattr__(name: str) -> Any:
    """Import the module of a name when the name is first used.

    A command for a storage daemon runs for each disk, and starts in half the time without QMP.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
