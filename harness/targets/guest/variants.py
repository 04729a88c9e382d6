"""Targets whose driver runs in a guest, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import images
from harness.machine.command import Board, Interface

Channel = Literal["serial", "ssh"]


@dataclass(frozen=True)
class Variant:
    """One variant of a target: its board, the interface of its device, and the way it is driven.

    `kind` is the way's name in `harness.driver.attach`, `kernel_args` the kernel's arguments. With
    `vhost_user` the device has a back-end outside QEMU.
    """

    description: str
    board: Board
    interface: Interface
    kind: str
    kernel_args: str
    traits: frozenset[str]
    vhost_user: bool = False
    model: bool = False


MODERN = frozenset({"guest", "pci", "modern"})
LEGACY = frozenset({"guest", "pci", "legacy"})

VARIANTS: dict[str, Variant] = {
    "guest-pci": Variant(
        "QEMU's modern virtio-blk-pci, driven inside a booted Linux guest",
        "pc",
        "modern",
        "pci",
        images.KERNEL_ARGS,
        MODERN,
    ),
    "guest-pci-q35": Variant(
        "QEMU's modern virtio-blk-pci behind a PCIe root port and an IOMMU, driven through vfio",
        "q35",
        "modern",
        "pci-vfio",
        images.KERNEL_ARGS_IOMMU,
        MODERN,
    ),
    "guest-pci-transitional": Variant(
        "QEMU's transitional virtio-blk-pci, driven through its modern interface in a guest",
        "pc",
        "transitional",
        "pci",
        images.KERNEL_ARGS,
        MODERN,
    ),
    "guest-pci-legacy": Variant(
        "QEMU's transitional virtio-blk-pci, driven through its legacy interface in a guest",
        "pc",
        "transitional",
        "pci-legacy",
        images.KERNEL_ARGS,
        LEGACY,
    ),
    "guest-vhost-user": Variant(
        "QEMU's vhost-user-blk-pci with qemu-storage-daemon behind it, driven inside a guest",
        "pc",
        "modern",
        "pci",
        images.KERNEL_ARGS,
        MODERN,
        vhost_user=True,
    ),
    "guest-model-pci": Variant(
        "our own device in Python, a PCI function of a guest (QEMU 10.1 or newer)",
        "pc",
        "modern",
        "pci",
        images.KERNEL_ARGS,
        MODERN,
        model=True,
    ),
    "guest-mmio": Variant(
        "QEMU's virtio-blk on virtio-mmio, driven inside a guest started with the disk",
        "microvm",
        "modern",
        "mmio",
        images.KERNEL_ARGS_MICROVM,
        frozenset({"guest", "mmio", "modern"}),
    ),
}
