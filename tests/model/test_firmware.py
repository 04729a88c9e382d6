"""SeaBIOS boots from the model's PCI function; OVMF reads and writes it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness.diskspec import SECTOR, DiskSpec
from harness.drivers.base import NotHereError, Scenario
from harness.drivers.registry import MAKERS
from harness.machine import Machine, MachineConfig
from harness.machine.command import Board
from harness.targets.model import ModelProcess
from tests.model.vfio_user_qemu import qemu_with_vfio_user

DEADLINE = 120.0
"""Seconds that the firmware may take on a busy machine."""

WORDS = "booted from the model"


def boot_sector() -> bytes:
    """Return a boot sector that writes WORDS to the first serial port, and halts."""
    port = b"\xba\xf8\x03"  # mov dx, 0x3f8
    written = b"".join(
        b"\xb0" + bytes([byte]) + b"\xee" for byte in WORDS.encode()
    )  # mov al; out dx, al
    return (port + written + b"\xfa\xf4\xeb\xfd").ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize("board", ["pc", "q35"])
@pytest.mark.parametrize("way", ["pci", "pci-transitional"])
def test_seabios_boots_from_the_function(model: ModelProcess, way: str, board: Board) -> None:
    spec = DiskSpec(capacity=2048)
    _, link, file = model.add(spec, way)
    assert file
    with file.open("r+b") as disk:
        disk.write(boot_sector())
    config = MachineConfig(qemu_with_vfio_user(), shared_memory=True, board=board)
    machine = Machine(config)
    try:
        machine.add_vfio_user(link, spec)  # the firmware looks for disks once
        machine.start()
        deadline = time.monotonic() + DEADLINE
        while WORDS not in machine.console_tail(5):
            assert time.monotonic() < deadline, f"console: {machine.console_tail(5)!r}"
            machine.check()
            time.sleep(0.05)
    finally:
        machine.stop()
    model.check()


@pytest.mark.parametrize("name", ["ovmf", "ovmf-transitional"])
def test_ovmf_reads_and_writes_the_function(name: str, tmp_path: Path) -> None:
    launcher = MAKERS[name]()
    try:
        launcher.prepare()
    except NotHereError as error:
        pytest.skip(str(error))

    watched = launcher.watch(Scenario("twice", "", ("use", "rebind")), tmp_path)

    assert not watched.trouble
