"""Functions that need a guest: removal of a disk, and a kernel panic."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import images
from harness.diskspec import DiskSpec, Fault
from harness.machine import Machine, MachineConfig, MachineError, Qemu

BOOT_DEADLINE = 60.0  # seconds


class Shell:
    """The shell on the guest's console, used line by line."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(BOOT_DEADLINE)
        self._socket.connect(str(path))

    def until(self, text: str) -> str:
        """Return the console's output up to `text`. TimeoutError after 60 s."""
        heard = b""
        while text.encode() not in heard:
            data = self._socket.recv(4096)
            assert data, f"the console closed before {text!r} came: {heard!r}"
            heard += data
        return heard.decode(errors="replace")

    def say(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\n")

    def close(self) -> None:
        self._socket.close()


def test_disks_come_and_go_and_a_panic_is_reported(
    qemu: Qemu, new_machine: Callable[..., Machine]
) -> None:
    image = images.ensure()
    machine = new_machine(MachineConfig(qemu, image.kernel, image.initrd, images.KERNEL_ARGS))
    cold = machine.add_disk(DiskSpec())
    machine.start()
    shell = Shell(machine.console_path)
    shell.say("")  # for another prompt, if the first came before the connection
    shell.until("vblk# ")

    live = machine.add_disk(DiskSpec(iops=1000, faults=(Fault("read"),)))
    vendor = f"/sys/bus/pci/devices/{live.pci_address}/vendor"
    shell.say(f"until [ -e {vendor} ]; do sleep 0.05; done; echo seen $(cat {vendor})")
    shell.until("seen 0x1af4")
    files = [drive.backing.path for drive in (cold, live)]
    for drive in (live, cold):
        machine.remove_disk(drive)

    assert machine.drives == ()
    assert not any(path.exists() for path in files)
    assert machine.qmp("query-named-block-nodes") == []
    assert machine.add_disk(DiskSpec()).pci_address == cold.pci_address
    assert machine.alive()

    shell.say("echo c > /proc/sysrq-trigger")
    shell.until("Kernel panic - not syncing")
    shell.close()  # output that nobody reads would block the kernel
    with pytest.raises(MachineError, match=r"kernel panicked \(sysrq triggered crash\)") as caught:
        machine.wait_event("RESET", timeout=BOOT_DEADLINE)
    assert "Kernel panic - not syncing" in caught.value.details
