"""Configuration of a machine, and its QEMU command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.machine.blockgraph import BlockGraph
from harness.machine.qemu import Qemu

NETWORK_SLOT = 3

Board = Literal["pc", "q35", "microvm", "virt", "virt-mmio"]
Interface = Literal["modern", "transitional", "legacy"]

DISK_SLOTS: dict[Board, Sequence[int]] = {
    # Bridge, ISA and power management use slots 0 and 1, the network card uses 3. Without ACPI's
    # routing, the kernel knows the interrupts of slots 1 to 6 and of devices present at boot.
    "pc": (4, 5, 6, 2, *range(7, 32)),
    # Each slot has a root port, which firmware and kernel have to scan, so there are few.
    "q35": range(4, 12),
    # With one I/O APIC there are 8 windows; the bus numbers increase with the addresses.
    "microvm": range(8),
    "virt": range(1, 8),
    "virt-mmio": range(8),
}
"""Slots of PCI bus 0 (on q35, of the root ports) or virtio-mmio buses, in the order of use."""

PARKED = b"\xfa\xf4\xeb\xfd"
"""Machine code that halts the CPU: `cli`, `hlt`, and a jump back to the `hlt`."""

TRACED = (
    "memory_region_ops_read",
    "memory_region_ops_write",
    "pci_cfg_read",
    "pci_cfg_write",
    "virtio_set_status",
    "virtio_queue_notify",
    "virtio_mmio_setting_irq",
)
"""Events of QEMU's trace: accesses to registers, resets, and interrupts of virtio-mmio."""

FIRMWARE_SIZE = 65536
RESET_VECTOR = 0xFFF0


@dataclass(frozen=True)
class Saved:
    """Files of a saved machine: its RAM, and the state of its devices."""

    ram: Path
    state: Path


@dataclass(frozen=True)
class MachineConfig:
    """Configuration of a machine, without its disks.

    `memory` is in MiB; `above_4_gib` of them are above 4 GiB, on the board "pc". With `ssh` the
    guest has a network card without access to networks; a port of 127.0.0.1, chosen by the
    kernel, is forwarded to its port 22. `bios` replaces the firmware, for a machine that boots
    nothing. With `parked` the CPU is halted and there are no serial ports: the driver uses the
    file of guest RAM and a qtest socket (see `Machine`). `interface` is the virtio interface of
    all disks. The board "q35" has an IOMMU between devices and memory, which all devices use,
    unless the machine is parked. The boards "virt" and "virt-mmio" are one of QEMU for arm64, with
    the disks on PCI or virtio-mmio.

    `trace` is a file for QEMU's trace of all accesses to registers.

    A machine with a `ram_file` can be saved. A machine with `saved` continues from there without
    a boot, if its configuration is otherwise the same. Its RAM is mapped copy-on-write; with
    `shared_memory` (other processes map it too) it is a copy. A parked machine keeps its RAM.
    """

    qemu: Qemu
    kernel: Path | None = None
    initrd: Path | None = None
    kernel_args: str = ""
    bios: Path | None = None
    accel: Literal["tcg", "kvm"] = "tcg"
    memory: int = 256
    above_4_gib: int = 0
    ssh: bool = False
    name: str = "guest"
    parked: bool = False
    board: Board = "pc"
    interface: Interface = "modern"
    shared_memory: bool = False
    ram_file: Path | None = None
    saved: Saved | None = None
    trace: Path | None = None

    @property
    def arm64(self) -> bool:
        """Return whether it is a machine for arm64."""
        return self.board in ("virt", "virt-mmio")

    @property
    def mmio(self) -> bool:
        """Return whether its disks are on virtio-mmio."""
        return self.board in ("microvm", "virt-mmio")

    @property
    def ram(self) -> Path | None:
        """File for guest RAM, if the configuration has one."""
        return self.saved.ram if self.saved else self.ram_file


@dataclass(frozen=True)
class Paths:
    """Files of a machine in its run directory; names are short, as sun_path is limited."""

    directory: Path

    @property
    def console(self) -> Path:
        return self.directory / "console"

    @property
    def stream(self) -> Path:
        return self.directory / "stream"

    @property
    def qmp(self) -> Path:
        return self.directory / "qmp"

    @property
    def qtest(self) -> Path:
        return self.directory / "qtest"

    @property
    def firmware(self) -> Path:
        return self.directory / "firmware"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"


def command_line(
    config: MachineConfig,
    paths: Paths,
    disks: Iterable[BlockGraph] = (),
    ram: Path | None = None,
) -> list[str]:
    """Return QEMU's command line, without our own QMP session, which `Process` adds.

    `ram` is the file of guest RAM, if it is another one than in `config`.
    """
    line = [
        str(config.qemu.path),
        *("-name", config.name.replace(",", ",,")),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none", "-vga", "none"),
        *("-machine", _machine(config)),
        *("-accel", config.accel),
        *("-cpu", _processor(config)),
        *("-smp", "1", "-m", str(config.memory)),
        # Stopped until `Machine.start` can handle all events.
        "-S",
        # A kernel that panics reboots (panic=-1), and a reboot ends QEMU: a panic is seen at once.
        "-no-reboot",
        *_socket("visitor", paths.qmp),
        *("-mon", "chardev=visitor,mode=control"),
    ]
    if file := ram or config.ram:
        shared = config.shared_memory or config.parked or not config.saved
        share = "on" if shared else "off"
        ram_options = f"size={config.memory}M,share={share},mem-path={_escape(file)}"
        line += ["-object", f"memory-backend-file,id=ram,{ram_options}"]
    elif config.shared_memory:
        line += ["-object", f"memory-backend-memfd,id=ram,size={config.memory}M,share=on"]
    if config.parked:
        line += ["-bios", str(paths.firmware)]
        line += [*_socket("qtest", paths.qtest), "-qtest", "chardev:qtest"]
        line += ["-qtest-log", "/dev/null"]
    else:
        line += _socket("console", paths.console, f",logfile={_escape(paths.console_log)}")
        line += ["-serial", "chardev:console"]
        line += _socket("stream", paths.stream)
        if config.board == "microvm":
            # The board has only one serial port.
            line += ["-device", "isa-serial,chardev=stream,index=1"]
        elif not config.arm64:
            line += ["-serial", "chardev:stream"]
    if config.board == "q35":
        if not config.parked:
            # vfio needs interrupt remapping for MSI-X. With the caching mode, the IOMMU is notified
            # of every new mapping.
            line += ["-device", "intel-iommu,intremap=on,caching-mode=on"]
        for slot in DISK_SLOTS["q35"]:
            port = f"id={_root_port(slot)},chassis={slot},slot={slot}"
            line += ["-device", f"pcie-root-port,bus=pcie.0,addr=0x{slot:x},{port}"]
    if config.mmio:
        legacy = "off" if config.interface == "modern" else "on"
        line += ["-global", f"virtio-mmio.force-legacy={legacy}"]
    if config.bios:
        line += ["-bios", str(config.bios)]
    if config.saved:
        line += ["-incoming", "defer"]
    elif config.kernel:
        line += ["-kernel", str(config.kernel), "-append", config.kernel_args]
    if config.initrd and not config.saved:
        line += ["-initrd", str(config.initrd)]
    if config.ssh:
        # Port 0: the kernel chooses a free port, so machines never conflict.
        line += ["-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"]
        line += ["-device", f"vmxnet3,netdev=net,addr=0x{NETWORK_SLOT:x},romfile="]
    if config.trace:
        line += [word for event in TRACED for word in ("-trace", event)]
        line += ["-D", str(config.trace)]
    for disk in disks:
        for options in disk.objects:
            line += ["-object", json.dumps(options)]
        for options in disk.nodes:
            line += ["-blockdev", json.dumps(options)]
        if disk.socket:
            where = f"id={disk.device['id']},path={_escape(disk.socket)}"
            again = "".join(f",{key}={value}" for key, value in reconnect(config.qemu).items())
            line += ["-chardev", f"socket,{where}{again}"]
        line += ["-device", json.dumps(disk.device)]
    return line


def reconnect(qemu: Qemu) -> dict[str, int]:
    """Return options that make a socket's character device reconnect after it was closed.

    A back-end closes the connection when a driver breaks the rules. Without a new connection,
    the device would not work any more.
    """
    return {"reconnect-ms": 100} if qemu.version >= (9, 2) else {"reconnect": 1}


def _processor(config: MachineConfig) -> str:
    if config.arm64:
        return "cortex-a72"
    return "host" if config.accel == "kvm" else "max"


def _machine(config: MachineConfig) -> str:
    options: list[str] = [config.board.removesuffix("-mmio")]
    if config.board == "microvm":
        # qtest cannot use the second I/O APIC.
        options.append("ioapic2=off")
    if config.board == "q35":
        # intel-iommu needs this for interrupt remapping with KVM.
        options.append("kernel-irqchip=split")
    if config.above_4_gib:
        options.append(f"max-ram-below-4g={config.memory - config.above_4_gib}M")
    if config.board != "microvm" and not (config.parked or config.kernel or config.bios):
        # SeaBIOS writes its messages to the serial port, too.
        options.append("graphics=off")
    if config.parked or config.shared_memory or config.ram:
        options.append("memory-backend=ram")
    return ",".join(options)


def attachment(config: MachineConfig, slot: int) -> dict[str, Any]:
    """Return the arguments of device_add that put a disk into a slot of this machine."""
    if config.mmio:
        return {"driver": "virtio-blk-device", "bus": f"virtio-mmio-bus.{slot}"}
    options: dict[str, Any] = {
        "driver": "virtio-blk-pci",
        "disable-legacy": "on" if config.interface == "modern" else "off",
        "disable-modern": config.interface == "legacy",
    }
    if config.board == "q35":
        return {**options, "bus": _root_port(slot), "iommu_platform": not config.parked}
    bus = "pcie.0" if config.board == "virt" else "pci.0"
    return {**options, "bus": bus, "addr": f"0x{slot:x}"}


def pci_address(config: MachineConfig, slot: int) -> str:
    """Return the guest's address of the disk in a slot: domain:bus:slot.function."""
    if config.board == "q35":
        # The firmware numbers the buses behind the root ports in the order of their slots.
        return f"0000:{DISK_SLOTS['q35'].index(slot) + 1:02x}:00.0"
    return f"0000:00:{slot:02x}.0"


def _root_port(slot: int) -> str:
    return f"port{slot}"


def parked_firmware() -> bytes:
    """Return firmware that halts the CPU, and so uses no CPU time of the host."""
    image = bytearray(FIRMWARE_SIZE)
    image[RESET_VECTOR : RESET_VECTOR + len(PARKED)] = PARKED
    return bytes(image)


def _socket(name: str, path: Path, more: str = "") -> list[str]:
    return ["-chardev", f"socket,id={name},path={_escape(path)},server=on,wait=off{more}"]


def _escape(path: Path) -> str:
    return str(path).replace(",", ",,")
