"""`vblk boot`: a guest with disks, its console in the terminal."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import images
from harness.cli import console, sizes
from harness.cli.errors import UsageError
from harness.cli.means import find, say
from harness.cli.running import Running
from harness.diskspec import SECTOR, DiskSpec
from harness.machine import Accel, Drive, Machine, MachineConfig, MachineError
from harness.machine.qcow2 import backing_files

DEFAULT_DISK = "64M"
MEMORY = range(64, 1024 * 1024)


def boot(arguments: argparse.Namespace) -> int:
    """Run a guest until it ends or the user leaves its console."""
    disks: list[str] = arguments.disk or [DEFAULT_DISK]
    if arguments.memory not in MEMORY:
        raise UsageError(f"--memory {arguments.memory}: {MEMORY.start} to {MEMORY.stop - 1} MiB")
    capacities = [_capacity(disk) for disk in disks]
    means = find(arguments)
    kernel_args = f"{images.KERNEL_ARGS} {arguments.kernel_args}".strip()
    config = MachineConfig(
        means.qemu,
        means.image.kernel,
        means.image.initrd,
        kernel_args,
        accel=means.accel.name,
        memory=arguments.memory,
        ssh=True,
    )
    machine = Machine(config)
    try:
        for disk, capacity in zip(disks, capacities, strict=True):
            _add(machine, disk, capacity, arguments.destructive)
        machine.start()
        assert machine.ssh_port is not None
        running = Running(
            str(machine.qmp_path),
            machine.ssh_port,
            str(means.image.ssh_key),
            means.image.ssh_host_key,
        )
        running.announce()
        _describe(machine, means.accel, running)
        if console.attend(machine.console_path) == "left":
            return 0
        return _ended(machine)
    finally:
        machine.stop()


def _capacity(disk: str) -> int | None:
    """Return the sectors of a new disk, or None for an image file, which has to exist."""
    if sizes.looks_like_size(disk):
        return sizes.parse(disk) // SECTOR
    if not Path(disk).is_file():
        raise UsageError(f"--disk {disk}: this is neither a size (like {DEFAULT_DISK}) nor a file")
    return None


def _add(machine: Machine, disk: str, capacity: int | None, writable: bool) -> None:
    if capacity is not None:
        machine.add_disk(DiskSpec(capacity=capacity))
    else:
        path = Path(disk)
        qcow2 = path.suffix == ".qcow2"
        for file in backing_files(path) if qcow2 else []:
            say(f"{disk} is based on {file}, which is opened too, read-only")
        machine.add_image(path, "qcow2" if qcow2 else "raw", writable)


def _describe(machine: Machine, accel: Accel, running: Running) -> None:
    print(f"guest  {machine.config.memory} MiB, {accel.name} ({accel.reason})")
    for drive in machine.drives:
        print(f"{drive.name}  {_store(drive)}, PCI {drive.pci_address}")
    print(f"qmp    {machine.qmp_path}")
    print(f"ssh    {shlex.join(running.ssh_command())}")
    print(f"The console follows; {console.ESCAPE_NAME} ends the guest.", flush=True)


def _store(drive: Drive) -> str:
    if drive.own_file:
        return f"{drive.spec.capacity * SECTOR} bytes, {drive.own_file}"
    access = "read-only" if drive.spec.read_only else "WRITABLE"
    return f"{drive.graph.nodes[0]['filename']}, {access}"


def _ended(machine: Machine) -> int:
    """Return 0 if the guest was switched off; otherwise raise MachineError."""
    try:
        if machine.wait_event("SHUTDOWN", timeout=5)["data"]["reason"] == "guest-shutdown":
            say("the guest was switched off")
            return 0
    except MachineError:
        pass  # it ended without an event: the error below contains its last output
    machine.stop()
    raise MachineError(f"the guest has ended: {machine.last_words().splitlines()[0]}")
