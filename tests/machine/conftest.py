"""Machines without an operating system: QEMU's devices work, the CPU prints a line or halts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.machine import Machine, MachineConfig, Qemu, find_qemu

HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to the hlt
RESET = b"\xba\x64\x00\xb0\xfe\xee"  # the keyboard controller's pulse on the reset line
COM1 = b"\xba\xf8\x03"  # mov dx, 0x3f8
TO_START = b"\xea\x00\x00\x00\xf0"  # jmp f000:0000, the begin of the file


@pytest.fixture
def new_bios(tmp_path: Path) -> Callable[..., Path]:
    """Factory of firmware that writes `says` to the first serial port, then halts or resets."""

    def make(says: str = "", reset: bool = False) -> Path:
        image = bytearray(65536)
        code = COM1 + b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in says.encode())
        code += (RESET if reset else b"") + HALT
        image[: len(code)] = code
        image[0xFFF0 : 0xFFF0 + len(TO_START)] = TO_START
        path = tmp_path / "bios"
        path.write_bytes(image)
        return path

    return make


@pytest.fixture(scope="session")
def qemu() -> Qemu:
    return find_qemu()


@pytest.fixture
def config(qemu: Qemu, new_bios: Callable[..., Path]) -> MachineConfig:
    return MachineConfig(qemu, bios=new_bios(), memory=32)


@pytest.fixture
def new_machine(config: MachineConfig) -> Iterator[Callable[[], Machine]]:
    """Factory of machines that are not started; they stop at the end of the test."""
    with ExitStack() as stack:

        def make(machine_config: MachineConfig = config) -> Machine:
            machine = Machine(machine_config)
            stack.callback(machine.stop)
            return machine

        yield make


@pytest.fixture
def machine(new_machine: Callable[[], Machine]) -> Machine:
    """A started machine with a halted CPU."""
    machine = new_machine()
    machine.start()
    return machine
