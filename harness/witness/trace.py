"""QEMU's trace log as a second source of events.

    qemu-system-x86_64 ... -trace memory_region_ops_read -trace memory_region_ops_write \
        -trace pci_cfg_read -trace pci_cfg_write -trace virtio_set_status \
        -trace virtio_queue_notify -trace virtio_mmio_setting_irq -D trace.log

The log has each access to a register, with address, value and size. It has no requests: QEMU's
device, or its vhost-user back-end, works on the virtqueues. Each virtio block device is a peer of
its own in the stream. The log does not say whose interrupt line of virtio-mmio rises, so it counts
only if one device is in use. Interrupts over PCI are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

from harness.inputs import InputError, read_text
from harness.virtio.blk import CONFIG_SIZE
from harness.virtio.device import DeviceStatus
from harness.virtio.mmio import LEGACY_VERSION
from harness.virtio.pci import LEGACY_CONFIG, LEGACY_CONFIG_MSIX, MSIX_ENABLE
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
from harness.witness.trace_lines import (
    RELEVANT,
    Access,
    Level,
    QueueNotified,
    StatusSet,
    Step,
    msix_control,
    space_of,
    steps,
    vectors_of,
)


def register_of(access: Access, number: int = 0, msix: bool = False) -> Register:
    """Return the event of an access. The parts of the legacy BAR depend on MSI-X."""
    area, offset = access.area, access.offset
    if area == "bar":
        start = LEGACY_CONFIG_MSIX if msix else LEGACY_CONFIG
        area = "legacy" if offset < start else "legacy device"
        offset -= 0 if offset < start else start
    return Register(
        connection=number,
        area=area,
        offset=offset,
        width=access.width,
        value=access.value,
        write=access.write,
    )


def sets_status(step: Step) -> bool:
    """Return whether a step is a write to a device status."""
    if not isinstance(step, Access) or not step.write:
        return False
    return "device_status" in register_of(step).names


@dataclass
class Peer:
    """The driver of one device, as far as its accesses show it.

    `control` is the offset of MSI-X Message Control in PCI configuration space, if it is known.
    While `waiting`, nothing is known of the driver's state, as the log may have begun after its
    start.
    """

    number: int
    control: int | None = None
    legacy: bool = False
    msix: bool = False
    status: int = 0
    waiting: bool = False
    select: dict[str, int] = field(default_factory=dict)
    words: dict[int, int] = field(default_factory=dict)

    def events(self, access: Access, following: Step | None = None) -> Iterator[Event]:
        """Yield the events of an access: the access itself, and what it does to the device."""
        register = register_of(access, self.number, self.msix)
        if access.area == "pci":
            self._configured(access)
        name = register.names[0] if len(register.names) == 1 else ""
        if name == "Version" and not access.write:
            self.legacy = access.value == LEGACY_VERSION
        resets = name == "device_status" and access.write and access.value & 0xFF == 0
        if self.waiting and not resets:
            return
        self.waiting = False
        yield register
        if access.write:
            yield from self._written(register, name, following)
        elif name == "device_status":
            self.status = access.value & 0xFF

    def _configured(self, access: Access) -> None:
        """Note a write to MSI-X Message Control, on which the places of the legacy BAR depend."""
        if self.control is not None and access.write:
            at = self.control + 1 - access.offset
            if 0 <= at < access.width:
                self.msix = bool(access.value >> 8 * at << 8 & MSIX_ENABLE)

    def _written(self, register: Register, name: str, following: Step | None) -> Iterator[Event]:
        number, value, width = self.number, register.value, register.width
        if register.area in ("common", "legacy"):
            self.legacy = register.area == "legacy"
        if register.area in ("device", "legacy device"):
            data = value.to_bytes(8, "little")[:width].hex()
            yield ConfigWrite(connection=number, offset=register.offset, data=data)
        elif name == "driver_feature_select":
            self.select["driver"] = value
        elif name == "driver_feature":
            self.words[self.select.get("driver", 0)] = value
        elif name == "driver_features":
            self.words = {0: value}
            yield self._features()
        elif name in ("QueueNotify", "queue_notify"):
            yield Notified(connection=number, queue=value & 0xFFFF, width=width, value=value)
        elif register.area == "notify" and isinstance(following, QueueNotified):
            yield Notified(connection=number, queue=following.queue, width=width, value=value)
        elif name == "device_status":
            yield from self._status(value & 0xFF)

    def _features(self) -> Features:
        chosen = sum(word << 32 * select for select, word in self.words.items() if select < 2)
        return Features(connection=self.number, chosen=chosen, legacy=self.legacy)

    def _status(self, value: int) -> Iterator[Event]:
        # A legacy device has no FEATURES_OK: its driver is told apart by the first status.
        step = 0xFF if self.legacy else DeviceStatus.FEATURES_OK
        if value & step and not self.status & step:
            yield self._features()
        yield Status(connection=self.number, value=value, before=self.status)
        self.status = value
        if value == 0:
            yield from self._reset()

    def status_set(self, value: int) -> Iterator[Event]:
        """Yield the reset that QEMU does without the driver, for example of the whole machine."""
        before, self.status = self.status, value
        if before and not value and not self.waiting:
            yield from self._reset()

    def _reset(self) -> Iterator[Event]:
        self.words.clear()
        yield Reset(connection=self.number)


def grouped(found: Sequence[Step]) -> dict[str, list[Access]]:
    """Return the accesses to each device, by its name, in the order of the first ones."""
    groups: dict[str, list[Access]] = {}
    for step in found:
        if isinstance(step, Access):
            groups.setdefault(step.device, []).append(step)
    return groups


def device_of(number: int, accesses: Sequence[Access]) -> Device:
    """Return a device with what all reads of the log have shown of it.

    Feature bits that the driver has chosen, and whose word nobody has read, count as offered.
    """
    words: dict[int, int] = {}
    chosen: dict[int, int] = {}
    select = {"device_feature": 0, "driver_feature": 0}
    config = bytearray(CONFIG_SIZE)
    queues = 1
    for access in accesses:
        register = register_of(access)
        name = register.names[0] if len(register.names) == 1 else ""
        if name.endswith("_feature_select") and access.write:
            select[name.removesuffix("_select")] = access.value
        elif name == "device_feature" and not access.write:
            words[select[name]] = access.value
        elif name == "driver_feature" and access.write:
            chosen[select[name]] = access.value
        elif name == "device_features" and not access.write:
            words[0] = access.value
        elif name == "driver_features" and access.write:
            chosen[0] = access.value
        elif name == "num_queues" and not access.write:
            queues = access.value
        elif access.area == "device" and not access.write:
            end = access.offset + access.width
            if end <= CONFIG_SIZE:
                config[access.offset : end] = access.value.to_bytes(8, "little")[: access.width]
    reads = [access for access in accesses if access.area == "pci" and not access.write]
    space = space_of(reads)
    offered = {**chosen, **words}
    return Device(
        connection=number,
        transport="mmio" if accesses[0].mmio else "pci",
        offered=sum(word << 32 * index for index, word in offered.items() if index < 2),
        config=config.hex(),
        queues=queues,
        vectors=vectors_of(reads, space),
        late=any(not access.whole for access in accesses),
        space=space.hex(),
    )


def _owners(found: Sequence[Step]) -> dict[str, str]:
    """Return the device of each VirtIODevice of QEMU: the one whose status was written just before.

    The addresses of VirtIODevice are those in the log.
    """
    return {
        after.vdev: step.device
        for step, after in pairwise(found)
        if isinstance(step, Access)
        and isinstance(after, StatusSet)
        and sets_status(step)
        and step.value & 0xFF == after.value
    }


def events(lines: Iterable[str]) -> Iterator[Event]:
    """Yield the events of a log."""
    found = list(steps(lines))
    groups = grouped(found)
    known = {name: device_of(at, group) for at, (name, group) in enumerate(groups.items())}
    yield from known.values()
    peers: dict[str, Peer] = {}
    for name, device in known.items():
        control = msix_control(bytes.fromhex(device.space))
        peers[name] = Peer(device.connection, control, waiting=device.late)
    owners = _owners(found)
    used = {name for name, group in groups.items() if any(map(sets_status, group))}
    line = peers[next(iter(used))].number if len(used) == 1 else None
    high = False
    for step, following in pairwise([*found, None]):
        match step:
            case Access():
                yield from peers[step.device].events(step, following)
            case StatusSet() if owner := owners.get(step.vdev):
                yield from peers[owner].status_set(step.value)
            case Level():
                if step.high and not high and line is not None:
                    yield Interrupt(connection=line, queue=LINE)
                high = step.high


def seen_in(path: Path) -> list[Event]:
    """Return the events of the log of a run that has just ended, none if there is no log."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as log:
        return list(events(islice(filter(RELEVANT.search, log), MAX_LINES)))


def read_any(path: Path) -> list[Event]:
    """Read a file of events, or a trace log of QEMU. Raises InputError for anything else."""
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError:
        return read(path)  # which says what is wrong
    return read(path) if first in (b"{", b"") else read_trace(path)


def read_trace(path: Path) -> list[Event]:
    """Read a trace log. Raises InputError if it has no access to a virtio block device."""
    lines = list(filter(RELEVANT.search, read_text(path, MAX_FILE).splitlines()))
    if len(lines) > MAX_LINES:
        raise InputError(f"{path}: more than {MAX_LINES} lines about virtio and PCI")
    found = list(events(lines))
    if not found:
        raise InputError(
            f"{path}: no events of the model, and no access to a virtio block device; run QEMU with"
            " -trace memory_region_ops_read -trace memory_region_ops_write"
            " (docs/witness.md has all options)"
        )
    return found
