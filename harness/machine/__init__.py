"""QEMU as a process: its command line, QMP, disks, live resize, faults.

It does not depend on channels to the guest, on the driver, or on pytest.
"""

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
