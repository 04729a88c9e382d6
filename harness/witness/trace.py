"""QEMU's trace log as a second source of events, for virtio-mmio.

    qemu-system-x86_64 -M microvm ... -trace memory_region_ops_read -trace memory_region_ops_write \
        -trace virtio_mmio_setting_irq -D trace.log

The log has each access to a register, with address, value and size. It has no requests: QEMU's
device works on the virtqueues. Each virtio-mmio device is a peer of its own in the stream. The log
does not say whose interrupt line rises, so it counts only if one device is in use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from harness.inputs import InputError, read_text
from harness.virtio.blk import CONFIG_SIZE
from harness.virtio.device import DeviceStatus
from harness.virtio.mmio import CONFIG, LEGACY_VERSION, REGISTERS
from harness.witness.events import (
    LINE,
    MAX_FILE,
    MAX_LINES,
    ConfigWrite,
    Device,
    Event,
    Features,
    Interrupt,
    Notified,
    Register,
    Reset,
    Status,
    read,
)

BLOCK = 0x200
"""Bytes of the registers of one virtio-mmio device in QEMU."""

ACCESS = re.compile(
    r"(?:\d+@\d+\.\d+:)?memory_region_ops_(?P<kind>read|write) cpu -?\d+ "
    r"mr (?P<region>0x[0-9a-f]+) addr (?P<address>0x[0-9a-f]+) "
    r"value (?P<value>0x[0-9a-f]+) size (?P<size>[1248]) name 'virtio-mmio'"
)
LEVEL = re.compile(r"(?:\d+@\d+\.\d+:)?virtio_mmio_setting_irq virtio_mmio setting IRQ ([01])")


@dataclass(frozen=True)
class Access:
    """One access to a register of a virtio-mmio device; offset and width are in bytes."""

    region: str
    offset: int
    width: int
    value: int
    write: bool

    def at(self, name: str, write: bool) -> bool:
        """Return whether it is an access to this register."""
        return self.write == write and self.offset == REGISTERS[name]


@dataclass
class Peer:
    """The driver of one device, as far as its accesses show it."""

    number: int
    legacy: bool = False
    status: int = 0
    select: dict[str, int] = field(default_factory=dict)
    words: dict[int, int] = field(default_factory=dict)

    def events(self, access: Access) -> Iterator[Event]:
        """Yield the events of an access: the access itself, and what it does to the device."""
        number = self.number
        device = access.offset >= CONFIG
        yield Register(
            connection=number,
            area="device" if device else "mmio",
            offset=access.offset - (CONFIG if device else 0),
            width=access.width,
            value=access.value,
            write=access.write,
        )
        if not access.write:
            if access.at("Status", write=False):
                self.status = access.value & 0xFF
            if access.at("Version", write=False):
                self.legacy = access.value == LEGACY_VERSION
            return
        value = access.value
        if device:
            data = value.to_bytes(8, "little")[: access.width].hex()
            yield ConfigWrite(connection=number, offset=access.offset - CONFIG, data=data)
        elif access.at("DriverFeaturesSel", write=True):
            self.select["driver"] = value
        elif access.at("DriverFeatures", write=True):
            self.words[self.select.get("driver", 0)] = value
        elif access.at("QueueNotify", write=True):
            yield Notified(connection=number, queue=value & 0xFFFF, width=access.width, value=value)
        elif access.at("Status", write=True):
            yield from self._status(value & 0xFF)

    def _status(self, value: int) -> Iterator[Event]:
        # A legacy device has no FEATURES_OK: its driver is told apart by the first status.
        step = 0xFF if self.legacy else DeviceStatus.FEATURES_OK
        if value & step and not self.status & step:
            chosen = sum(word << 32 * select for select, word in self.words.items() if select < 2)
            yield Features(connection=self.number, chosen=chosen, legacy=self.legacy)
        yield Status(connection=self.number, value=value, before=self.status)
        self.status = value
        if value == 0:
            self.words.clear()
            yield Reset(connection=self.number)


def accesses(lines: Iterable[str]) -> Iterator[Access | bool]:
    """Yield accesses to virtio-mmio devices, and levels of an interrupt line as True or False.

    Values that are read are cut to the size of the access, which QEMU does not do.
    """
    for line in lines:
        if level := LEVEL.fullmatch(line.strip()):
            yield level[1] == "1"
        if found := ACCESS.fullmatch(line.strip()):
            width = int(found["size"])
            yield Access(
                region=found["region"],
                offset=int(found["address"], 16) % BLOCK,
                width=width,
                value=int(found["value"], 16) & (1 << 8 * width) - 1,
                write=found["kind"] == "write",
            )


def devices(found: Iterable[Access]) -> dict[str, Device]:
    """Return the devices by the address of their region, with what all reads have shown of them."""
    offered: dict[str, dict[int, int]] = {}
    select: dict[str, int] = {}
    space: dict[str, bytearray] = {}
    for access in found:
        words = offered.setdefault(access.region, {})
        config = space.setdefault(access.region, bytearray(CONFIG_SIZE))
        if access.at("DeviceFeaturesSel", write=True):
            select[access.region] = access.value
        elif access.at("DeviceFeatures", write=False):
            words[select.get(access.region, 0)] = access.value
        place = access.offset - CONFIG
        if not access.write and 0 <= place <= CONFIG_SIZE - access.width:
            config[place : place + access.width] = access.value.to_bytes(access.width, "little")
    return {
        region: Device(
            connection=number,
            transport="mmio",
            offered=sum(word << 32 * index for index, word in words.items() if index < 2),
            config=space[region].hex(),
        )
        for number, (region, words) in enumerate(offered.items())
    }


def events(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of a log."""
    found = list(accesses(lines))
    register_accesses = [access for access in found if isinstance(access, Access)]
    known = devices(register_accesses)
    yield from known.values()
    peers = {region: Peer(device.connection) for region, device in known.items()}
    used = {access.region for access in register_accesses if access.at("Status", write=True)}
    connection = known[next(iter(used))].connection if len(used) == 1 else None
    high = False
    for step in found:
        if isinstance(step, Access):
            yield from peers[step.region].events(step)
        else:
            if step and not high and connection is not None:
                yield Interrupt(connection=connection, queue=LINE)
            high = step


def seen_in(path: Path) -> list[Event]:
    """Return the events of the log of a run that has just ended, none if there is no log."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as log:
        lines = (line for line in log if "virtio" in line)
        return list(events(islice(lines, MAX_LINES)))


def read_any(path: Path) -> list[Event]:
    """Read a file of events, or a trace log of QEMU. Raises InputError for anything else."""
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError:
        return read(path)  # which says what is wrong
    return read(path) if first in (b"{", b"") else read_trace(path)


def read_trace(path: Path) -> list[Event]:
    """Read a trace log. Raises InputError if it has no access to a virtio-mmio device."""
    lines = read_text(path, MAX_FILE).splitlines()
    if len(lines) > MAX_LINES:
        raise InputError(f"{path}: more than {MAX_LINES} lines")
    found = list(events(lines))
    if not found:
        raise InputError(
            f"{path}: no events of the model, and no access to a virtio-mmio device; run QEMU with"
            " -trace memory_region_ops_read -trace memory_region_ops_write"
            " -trace virtio_mmio_setting_irq"
        )
    return found
