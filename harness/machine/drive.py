"""A disk of a machine, and access to its backing file from the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.diskspec import SECTOR, DiskSpec
from harness.machine.blockgraph import BlockGraph
from harness.machine.errors import MachineError
from harness.machine.qcow2 import make_qcow2

MAX_CAPACITY = (2**63 - 1) // SECTOR
"""Most sectors (512 bytes) of a disk: the range of a file offset."""


class Backing:
    """The raw file of a drive, accessed without the device. It has all that the device wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Current size in bytes."""
        return self.path.stat().st_size

    @property
    def allocated(self) -> int:
        """Bytes that the file uses on the host's disk now; holes use none."""
        return self.path.stat().st_blocks * 512

    def read(self, sector: int, count: int) -> bytes:
        """Read `count` sectors of 512 bytes. Raises ValueError beyond the end of the file."""
        self._check(sector, count)
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), count * SECTOR, sector * SECTOR)

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors of 512 bytes. Raises ValueError beyond the end of the file."""
        count, rest = divmod(len(data), SECTOR)
        if rest:
            raise ValueError(f"{len(data)} bytes are not whole sectors of {SECTOR}")
        self._check(sector, count)
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), data, sector * SECTOR)

    def _check(self, sector: int, count: int) -> None:
        end = self.size // SECTOR
        if sector < 0 or count < 0 or sector + count > end:
            raise ValueError(f"sectors {sector} to {sector + count} are not within 0 to {end}")


@dataclass(frozen=True)
class IoError:
    """QEMU's report of an error of the backing store: the operation, and what was done about it.

    `operation` is "read" or "write" (which stands for everything else), `action` is "report",
    "ignore" or "stop". `full` is True if the host has no space left (ENOSPC).
    """

    operation: str
    action: str
    full: bool


class Volume:
    """Block nodes of a disk, by the name of the top node, and the raw file created for them."""

    def __init__(
        self,
        name: str,
        spec: DiskSpec,
        graph: BlockGraph,
        own_file: Path | None,
        resize: Callable[[str, int], None],
    ) -> None:
        self.name = name
        self.spec = spec
        self.graph = graph
        self.own_file = own_file
        self._resize = resize

    @property
    def backing(self) -> Backing:
        """The raw file that was created for this disk.

        Raises MachineError for a null disk and a user's image, which have none, and for a qcow2
        image, whose blocks are elsewhere in the file.
        """
        if self.own_file is None:
            raise MachineError(f"{self.name} has no backing file of its own")
        if self.spec.image != "raw":
            raise MachineError(f"the backing file of {self.name} is not raw: {self.spec.image}")
        return Backing(self.own_file)

    def resize(self, capacity: int) -> None:
        """Resize the disk to `capacity` sectors of 512 bytes; the device notifies the driver.

        Raises MachineError, without a change of the disk, for a negative size, a size that
        the host cannot store, and for a null or read-only disk.
        """
        if not 0 <= capacity <= MAX_CAPACITY:
            raise MachineError(
                f"{self.name}: {capacity} sectors is no capacity; 0 to {MAX_CAPACITY} is"
            )
        self._resize(self.name, capacity * SECTOR)


class Drive(Volume):
    """A disk with its virtio-blk device, from `Machine.add_disk` or `Machine.add_image`.

    `pci_address` is its address in the guest: domain:bus:slot.function.
    """

    def __init__(
        self,
        name: str,
        spec: DiskSpec,
        slot: int,
        pci_address: str,
        graph: BlockGraph,
        own_file: Path | None,
        resize: Callable[[str, int], None],
    ) -> None:
        super().__init__(name, spec, graph, own_file, resize)
        self.slot = slot
        self.pci_address = pci_address


def make_image(path: Path, spec: DiskSpec) -> None:
    """Create the file of a disk, in which nothing is allocated."""
    if spec.image == "qcow2":
        make_qcow2(path, spec.capacity * SECTOR)
    else:
        make_raw(path, spec.capacity)


def make_raw(path: Path, capacity: int) -> None:
    """Create a sparse raw file of `capacity` sectors of 512 bytes."""
    try:
        with path.open("xb") as file:
            file.truncate(capacity * SECTOR)
    except (OSError, ValueError, OverflowError) as error:
        path.unlink(missing_ok=True)
        raise MachineError(f"no disk of {capacity} sectors could be made: {error}") from error
