"""The lines of QEMU's trace log that tell what a driver of a virtio block device does.

`steps` reads them. Over virtio-mmio a line names the device by its region. Over PCI the address of
an access is compared with the BARs that PCI configuration space has got, as the log shows that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from harness.virtio.mmio import CONFIG, REGISTERS
from harness.virtio.pci import (
    BAR_0,
    BAR_IO_FLAGS,
    BAR_MEMORY_FLAGS,
    BARS,
    CAP,
    CAP_MSIX,
    MSIX_TABLE_SIZE,
    CapType,
)
from harness.witness.events import capabilities

MMIO_BLOCK = 0x200
"""Bytes of the registers of one virtio-mmio device in QEMU."""

PAGE = 0x1000
STRUCTURES = {"common": 0, "isr": PAGE, "device": 2 * PAGE, "notify": 3 * PAGE}
"""Offsets of the structures in their BAR, which are the same for every function of QEMU. All but
the last have one page, and the BAR is aligned to more."""

LEGACY_SIZE = 0x100
"""Bytes of the legacy interface in its BAR at most."""

CONVENTIONAL = 0x100
"""Bytes of PCI configuration space without extended capabilities."""

START = r"(?:\d+@\d+\.\d+:)?"
HEX = "0x[0-9a-f]+"
ACCESS = re.compile(
    rf"{START}memory_region_ops_(?P<kind>read|write) cpu -?\d+ mr (?P<region>{HEX}) "
    rf"addr (?P<address>{HEX}) value (?P<value>{HEX}) size (?P<size>[1248]) name '(?P<name>.*)'"
)
CONFIGURATION = re.compile(
    rf"{START}pci_cfg_(?P<kind>read|write) (?:virtio|vhost-user)-blk-pci\S* (?P<function>\S+) "
    rf"@(?P<offset>{HEX}) (?:->|<-) (?P<value>{HEX})"
)
LEVEL = re.compile(rf"{START}virtio_mmio_setting_irq virtio_mmio setting IRQ ([01])")
STATUS = re.compile(rf"{START}virtio_set_status vdev ({HEX}) val (\d+)")
NOTIFY = re.compile(rf"{START}virtio_queue_notify vdev ({HEX}) n (\d+) vq {HEX}")
MODERN = re.compile(r"virtio-pci-(common|isr|device|notify)-virtio-blk")
LEGACY = "virtio-pci"
WINDOWS = ("pci-conf-data", "pcie-mmcfg-mmio")
"""Names of the regions by which PCI configuration space is accessed."""

RELEVANT = re.compile("virtio|blk-pci|" + "|".join(WINDOWS))


@dataclass(frozen=True)
class Access:
    """One access to registers of a device; offset and width are in bytes.

    `device` is the region of a virtio-mmio device, or the place of a PCI function. `area` is as in
    an event; "bar" is the legacy BAR, whose parts depend on MSI-X. `whole` says that the log shows
    how the function got its BARs, or that the first access to the virtio-mmio device is a read of
    MagicValue: nothing before that is missing.
    """

    device: str
    area: str
    offset: int
    width: int
    value: int
    write: bool
    mmio: bool = False
    whole: bool = True


@dataclass(frozen=True)
class Level:
    """A level of the interrupt line of some virtio-mmio device."""

    high: bool


@dataclass(frozen=True)
class StatusSet:
    """QEMU sets the status of a device, for whatever reason."""

    vdev: str
    value: int


@dataclass(frozen=True)
class QueueNotified:
    """QEMU looks at a virtqueue, because of a notification or at a start."""

    queue: int


Step = Access | Level | StatusSet | QueueNotified


@dataclass
class Function:
    """A PCI function: its BARs, and whether they were written in the log."""

    bars: dict[int, int] = field(default_factory=dict)
    written: bool = False

    def accessed(self, offset: int, width: int, value: int, write: bool) -> None:
        """Note an access to PCI configuration space."""
        number, rest = divmod(offset - BAR_0, 4)
        if 0 <= number < BARS and rest == 0 and width == 4 and (write or number not in self.bars):
            self.bars[number] = value
            self.written |= write

    def bases(self, ports: bool) -> Iterator[int]:
        """Yield the addresses of the BARs in I/O or memory space."""
        for number, value in self.bars.items():
            if ports and number == 0:
                yield value & ~BAR_IO_FLAGS
            elif not ports and number:
                yield (self.bars.get(number + 1, 0) << 32 | value) & ~BAR_MEMORY_FLAGS
                yield value & ~BAR_MEMORY_FLAGS


class Reader:
    """Read lines in their order, with what they have shown of the functions."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}
        self._begun: dict[str, bool] = {}
        self._bases: set[int] = set()
        self._window: tuple[int, int] | None = None
        self._read: tuple[str, int, int] | None = None

    def step(self, line: str) -> Step | None:
        """Return what a line tells, None for nothing.

        Values that are read are cut to the size of the access, which QEMU does not do.
        """
        if found := ACCESS.fullmatch(line):
            width = int(found["size"])
            value = int(found["value"], 16) & (1 << 8 * width) - 1
            write = found["kind"] == "write"
            return self._access(
                found["name"], found["region"], int(found["address"], 16), width, value, write
            )
        if found := CONFIGURATION.fullmatch(line):
            place = (found["function"], int(found["offset"], 16), int(found["value"], 16))
            if found["kind"] == "read":
                self._read = place
                return None
            return self._configured(*place)
        if found := STATUS.fullmatch(line):
            return StatusSet(found[1], int(found[2]) & 0xFF)
        if found := NOTIFY.fullmatch(line):
            return QueueNotified(int(found[2]))
        if found := LEVEL.fullmatch(line):
            return Level(found[1] == "1")
        return None

    def _access(
        self, name: str, region: str, address: int, width: int, value: int, write: bool
    ) -> Step | None:
        if name == "virtio-mmio":
            offset = address % MMIO_BLOCK
            device = offset >= CONFIG
            start = CONFIG if device else 0
            area = "device" if device else "mmio"
            first = not write and offset == REGISTERS["MagicValue"]
            whole = self._begun.setdefault(region, first)
            return Access(region, area, offset - start, width, value, write, True, whole)
        if name in WINDOWS:
            return self._windowed(width, value, write)
        if structure := MODERN.fullmatch(name):
            return self._modern(structure[1], address, width, value, write)
        if name == LEGACY:
            return self._legacy(address, width, value, write)
        return None

    def _windowed(self, width: int, value: int, write: bool) -> Step | None:
        """Note the width of a write, whose function follows, or return a read.

        The line with the function has no width, and this one has no function.
        """
        if write:
            self._window = (width, value)
            return None
        read, self._read = self._read, None
        if read is None or read[2] != value:
            return None
        function, offset, _ = read
        return self._configuration(function, offset, width, value, write=False)

    def _configured(self, function: str, offset: int, value: int) -> Step | None:
        window, self._window = self._window, None
        if window is None or window[1] != value:
            return None
        return self._configuration(function, offset, window[0], value, write=True)

    def _configuration(
        self, function: str, offset: int, width: int, value: int, write: bool
    ) -> Access:
        known = self._functions.setdefault(function, Function())
        known.accessed(offset, width, value, write)
        return Access(function, "pci", offset, width, value, write)

    def _modern(self, area: str, address: int, width: int, value: int, write: bool) -> Access:
        base = address // PAGE * PAGE - STRUCTURES[area]
        if area == "notify":
            known = {place for found in self._functions.values() for place in found.bases(False)}
            base = max((each for each in known | self._bases if each <= base), default=base)
        self._bases.add(base)
        name, whole = f"BAR at {base:#x}", False
        for place, function in self._functions.items():
            if base in function.bases(ports=False):
                name, whole = place, function.written
        offset = address - base - STRUCTURES[area]
        return Access(name, area, offset, width, value, write, whole=whole)

    def _legacy(self, address: int, width: int, value: int, write: bool) -> Access | None:
        for place, function in self._functions.items():
            for base in function.bases(ports=True):
                if base and base <= address < base + LEGACY_SIZE:
                    whole = function.written
                    offset = address - base
                    return Access(place, "bar", offset, width, value, write, whole=whole)
        return None


def steps(lines: Iterable[str]) -> Iterator[Step]:
    """Yield what the lines of a log tell, in their order."""
    reader = Reader()
    for line in lines:
        if (step := reader.step(line.strip())) is not None:
            yield step


def space_of(reads: Iterable[Access]) -> bytes:
    """Return the first 256 bytes of PCI configuration space, as the first reads have shown them.

    Bytes that nobody has read are 0. A virtio capability that was not read as a whole gets no
    length, and one of type PCI_CFG no type, so nobody is judged by what the log does not show.
    """
    space = bytearray(CONVENTIONAL)
    known: set[int] = set()
    for access in reads:
        data = access.value.to_bytes(8, "little")
        for at in range(access.width):
            place = access.offset + at
            if place < CONVENTIONAL and place not in known:
                known.add(place)
                space[place] = data[at]
    for capability in capabilities(bytes(space)):
        whole = set(range(capability.at, capability.at + CAP.size)) <= known
        if capability.virtio and not whole:
            space[capability.at + 2] = 0
            if capability.type == CapType.PCI_CFG:
                space[capability.at + 3] = 0
    return bytes(space) if known else b""


def msix_control(space: bytes) -> int | None:
    """Return the offset of MSI-X Message Control, None if the log does not show it."""
    found = (each.at + 2 for each in capabilities(space) if each.ident == CAP_MSIX)
    return next(found, None)


def vectors_of(reads: Iterable[Access], space: bytes) -> int:
    """Return the number of MSI-X vectors, -1 if the log does not show it."""
    control = msix_control(space)
    if control is None:
        return -1
    for access in reads:
        at = control - access.offset
        if 0 <= at <= access.width - 2:
            return (access.value >> 8 * at & MSIX_TABLE_SIZE) + 1
    return -1
