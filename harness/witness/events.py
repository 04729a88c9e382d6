"""The events of a stream: what crosses the border between a driver and the model device.

The model writes them as JSON lines (`harness/model/observer.py`). `read` accepts such a file with
limits and makes typed events of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from harness.inputs import InputError, WrongValueError, build, matching, read_text, within
from harness.virtio.features import names
from harness.virtio.mmio import REGISTERS as MMIO_REGISTERS
from harness.virtio.pci import (
    CAP,
    CAP_VENDOR,
    CAPABILITIES,
    COMMON_REGISTERS,
    HEADER_SIZE,
    LEGACY_REGISTERS,
)
from harness.virtio.vhost_user import FrontEndRequest

MAX_FILE = 1 << 28
"""Bytes of a file at most."""

MAX_LINES = 1_000_000

LINE = -2
"""`queue` of an interrupt whose reason is not seen."""

MAX_CAPABILITIES = 48
"""Capabilities that fit into 256 bytes of PCI configuration space, one more cannot be there."""

U16 = Annotated[int, within(0, 0xFFFF)]
U32 = Annotated[int, within(0, 0xFFFF_FFFF)]
U64 = Annotated[int, within(0, 0xFFFF_FFFF_FFFF_FFFF)]
Hex = Annotated[str, matching(r"([0-9a-f]{2})*", "hexadecimal digits")]
Entry = tuple[U32, U64, U32, U16, U16]
"""A descriptor: slot, address, length, flags, and next (split) or buffer id (packed)."""


COMMON = ("connection", "time")
"""Fields of every event, which its words leave out."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Anything that happens. `connection` numbers the peers in the order of their arrival.

    `time` is in seconds since 1970. Only an observer at the driver tells it.
    """

    connection: U32 = 0
    time: Annotated[float, within(0, 1e12)] = 0.0

    def __str__(self) -> str:
        values = {name: value for name, value in asdict(self).items() if name not in COMMON}
        text = ", ".join(f"{name} {value}" for name, value in values.items())
        return f"{type(self).__name__.lower()} {text}".strip()


@dataclass(frozen=True)
class PciCapability:
    """A capability of PCI configuration space, `at` bytes from its start.

    `type`, `bar`, `offset` and `length` are those of a virtio capability (virtio 4.1.4).
    """

    at: int
    ident: int
    size: int = 0
    type: int = 0
    bar: int = 0
    offset: int = 0
    length: int = 0

    @property
    def virtio(self) -> bool:
        """Return whether it is a virtio capability."""
        return self.ident == CAP_VENDOR


def capabilities(space: bytes) -> list[PciCapability]:
    """Return the capabilities in the bytes of PCI configuration space, at most MAX_CAPABILITIES."""
    found: list[PciCapability] = []
    at = space[CAPABILITIES] if len(space) > CAPABILITIES else 0
    while HEADER_SIZE <= at < len(space) - CAP.size and len(found) < MAX_CAPABILITIES:
        ident, following, size, kind, bar, _, offset, length = CAP.unpack_from(space, at)
        if ident == CAP_VENDOR:
            found.append(PciCapability(at, ident, size, kind, bar, offset, length))
        else:
            found.append(PciCapability(at, ident))
        at = following & ~3
    return found


@dataclass(frozen=True, kw_only=True)
class Device(Event):
    """The device that a new peer finds. `config` is its configuration space.

    `vectors` is the size of the MSI-X table, -1 if it is unknown.
    `label` says what the disk is for. `space` is PCI configuration space. `sequential` is the first
    sector of the sequential zones of a zoned disk, and `zone_capacity` the writable sectors of
    each; -1 and 0 are unknown. `late` says that the stream may have begun after the driver's start.
    """

    transport: str
    offered: U64
    config: Hex = ""
    queues: U32 = 1
    vectors: Annotated[int, within(-1, 0xFFFF_FFFF)] = 0
    space: Hex = ""
    sequential: Annotated[int, within(-1, 0xFFFF_FFFF_FFFF_FFFF)] = -1
    zone_capacity: U64 = 0
    label: str = ""
    late: bool = False

    @property
    def has_registers(self) -> bool:
        """Return whether the driver's own accesses are seen. vhost-user shows a front-end's."""
        return self.transport.startswith(("pci", "mmio"))

    @property
    def mmio(self) -> bool:
        """Return whether the registers are those of virtio-mmio."""
        return self.transport.startswith("mmio")

    @property
    def capabilities(self) -> list[PciCapability]:
        """Return the capabilities in `space`, in the order of their list."""
        return capabilities(bytes.fromhex(self.space))


@dataclass(frozen=True, kw_only=True)
class Config(Event):
    """A change of the configuration space by the device, with its new bytes."""

    data: Hex


@dataclass(frozen=True, kw_only=True)
class ConfigWrite(Event):
    """A write to the device-specific configuration, `offset` in bytes."""

    offset: U32
    data: Hex

    def __str__(self) -> str:
        return f"wrote {self.data or 'nothing'} to the configuration at {self.offset}"


MMIO_NAMES = {
    "DeviceFeatures": "device_feature",
    "DeviceFeaturesSel": "device_feature_select",
    "DriverFeatures": "driver_feature",
    "DriverFeaturesSel": "driver_feature_select",
    "Status": "device_status",
    "QueueSel": "queue_select",
    "ConfigGeneration": "config_generation",
}
"""Registers of virtio-mmio -> registers of virtio over PCI with the same meaning."""


@dataclass(frozen=True, kw_only=True)
class Register(Event):
    """An access to an area of registers.

    The areas are pci, common, isr, device, notify and msix; legacy and "legacy device" of the
    legacy interface; mmio. The device configuration of virtio-mmio is in the area device.
    `offset` and `width` are in bytes. `value` is -1 if it is wider than 8 bytes. `structure` is 1
    in the second structure of one type, and so on: a session has it from the capabilities.
    """

    area: str
    offset: U32
    width: U32
    value: Annotated[int, within(-1, 0xFFFF_FFFF_FFFF_FFFF)]
    write: bool
    structure: U32 = 0

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the touched registers of the common, the legacy and the mmio area.

        A register of virtio-mmio that has the meaning of one over PCI has the name of that.
        """
        if self.area == "mmio":
            return tuple(
                MMIO_NAMES.get(name, name)
                for name, start in MMIO_REGISTERS.items()
                if start < self.offset + self.width and self.offset < start + 4
            )
        table = {"common": COMMON_REGISTERS, "legacy": LEGACY_REGISTERS}.get(self.area, {})
        return tuple(
            name
            for name, (start, size) in table.items()
            if start < self.offset + self.width and self.offset < start + size
        )

    def __str__(self) -> str:
        place = "/".join(self.names) or f"{self.area} at {self.offset:#x}"
        verb, value = ("wrote", f"{self.value:#x} to ") if self.write else ("read", "")
        result = "" if self.write else f" as {self.value:#x}"
        return f"{verb} {value}{place}{result} ({8 * self.width} bits)"


@dataclass(frozen=True, kw_only=True)
class Message(Event):
    """A vhost-user message of the front-end, with a number of `files` (descriptors)."""

    request: U32
    payload: Hex
    flags: U32 = 1
    files: U32 = 0

    @property
    def name(self) -> str:
        """Return the message's name, or its number."""
        return message_name(self.request)


@dataclass(frozen=True, kw_only=True)
class Memory(Event):
    """The driver's memory: address on the bus and length in bytes of each region."""

    regions: list[tuple[U64, U64]]


@dataclass(frozen=True, kw_only=True)
class Features(Event):
    """The driver's choice of features, and whether the device takes it."""

    chosen: U64
    accepted: bool = True
    legacy: bool = False

    def __str__(self) -> str:
        return f"chose the features {', '.join(names(self.chosen))}"


@dataclass(frozen=True, kw_only=True)
class Status(Event):
    """A write to the device status. `before` is what the status read before it."""

    value: Annotated[int, within(0, 255)]
    before: Annotated[int, within(0, 255)] = 0

    def __str__(self) -> str:
        return f"wrote {self.value:#x} to a device status of {self.before:#x}"


@dataclass(frozen=True, kw_only=True)
class Reset(Event):
    """A reset of the device, for whatever reason."""


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A virtqueue is used for the first time; addresses are those on the bus.

    `format` is "split" or "packed" where the observer knows it.
    """

    queue: U32
    size: U32
    desc: U64
    driver: U64
    device: U64
    base: U32 = 0
    format: str = ""


@dataclass(frozen=True, kw_only=True)
class Prepared(Event):
    """The rings of a virtqueue that has just started.

    `flags` are those of the used ring, or of the device's event suppression area.
    """

    queue: U32
    flags: U16


@dataclass(frozen=True, kw_only=True)
class Unnoticed(Event):
    """Chains that have been available for more than a second, and no notification has come.

    `flags` and `place` are what the device asks the driver for: flags, and avail_event or
    desc_event_off_wrap.
    """

    queue: U32
    waiting: U32
    flags: U16
    place: U16

    def __str__(self) -> str:
        return f"left {self.waiting} available in virtqueue {self.queue} and did not notify"


@dataclass(frozen=True, kw_only=True)
class BadIndex(Event):
    """The available index of a split virtqueue says that more is available than the queue has room.

    `position` is the one of the next chain that the device takes.
    """

    queue: U32
    index: U16
    position: U16

    def __str__(self) -> str:
        return f"set the available index of virtqueue {self.queue} to {self.index}"


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """The buffers in a virtqueue that are not taken when the device is suspended or resumed.

    `count` is in chains, for a packed virtqueue in descriptors.
    """

    queue: U32
    count: U32


@dataclass(frozen=True, kw_only=True)
class Changed(Event):
    """Descriptors have changed between the moments when the device took and used them."""

    queue: U32
    before: list[Entry]
    after: list[Entry]

    def __str__(self) -> str:
        slots = [old[0] for old, new in zip(self.before, self.after, strict=False) if old != new]
        return f"changed the descriptors {slots} of virtqueue {self.queue} before they were used"


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """A virtqueue is used no longer."""

    queue: U32


@dataclass(frozen=True, kw_only=True)
class Notified(Event):
    """A notification of an available buffer. `width` (bytes) is 0 if the transport hides it.

    `flags` and `place` are what the device asks for when it comes; -1 before the first one.
    """

    queue: U32
    width: U32 = 0
    value: U64 = 0
    flags: Annotated[int, within(-1, 0xFFFF)] = -1
    place: Annotated[int, within(-1, 0xFFFF)] = -1

    def __str__(self) -> str:
        return f"notified virtqueue {self.queue} by {self.value:#x} ({8 * self.width} bits)"


@dataclass(frozen=True, kw_only=True)
class Chain(Event):
    """A chain as it lies in memory when the device takes it, or when the driver writes it.

    `table` is the indirect table at its end, and `table_at` its address if that is known.
    `index` and `flags` are those of the available ring; `flags` are the event suppression flags
    in a packed virtqueue.
    """

    queue: U32
    descriptors: list[Entry]
    table: list[Entry]
    head: U32 = 0
    position: int = 0
    index: U16 = 0
    flags: U16 = 0
    table_at: U64 = 0

    def __str__(self) -> str:
        parts = ", ".join(f"{slot}: flags {flags:#x}" for slot, _, _, flags, _ in self.descriptors)
        return f"made a chain available in virtqueue {self.queue} ({parts})"


@dataclass(frozen=True, kw_only=True)
class Request(Event):
    """A request. `sent` and `room` are the bytes of data that the device reads and may write."""

    queue: U32
    type: U32 | None
    sector: U64 = 0
    sent: int = 0
    room: int = 0
    data: Hex = ""

    def __str__(self) -> str:
        return (
            f"sent a request of type {self.type}, sector {self.sector}, "
            f"{self.sent} bytes of data to read and {self.room} to write"
        )


@dataclass(frozen=True, kw_only=True)
class Used(Event):
    """A chain was used, with `length` bytes written."""

    queue: U32
    id: U32
    length: U32


@dataclass(frozen=True, kw_only=True)
class Interrupt(Event):
    """A notification by the device: of used buffers in `queue`, or of the configuration (-1).

    `queue` is LINE if only the interrupt line is seen, which does not show the reason. With
    MSI-X (`vector`, else -1) the queue is not known either. `count` is how often it came.
    """

    queue: int
    vector: int = -1
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Broken(Event):
    """The device needs a reset because of what the driver did; `text` says what it was."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Illegal(Event):
    """The device does something that no device may do (`harness/model/illegal.py`)."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Cut(Event):
    """The stream ends here, because it has too many events."""


# --- events that only an observer at the driver has


@dataclass(frozen=True, kw_only=True)
class About(Event):
    """The test of a trace. It is the first event.

    `statement` has a line for each statement: id, level, words. `disk` has the properties of the
    disk, `versions` the implementations of the device.
    """

    test: str
    target: str
    transport: str = ""
    statement: str = ""
    disk: str = ""
    versions: str = ""
    dropped: U32 = 0


@dataclass(frozen=True, kw_only=True)
class Made(Event):
    """A part that carries the device: "machine", "disk" or "export", with its options as JSON."""

    part: str
    options: str


@dataclass(frozen=True, kw_only=True)
class Place(Event):
    """The place of an area of registers: a BAR (-1 for none) and the bytes of the area there.

    `base` is the physical address of the area, or its first port; -1 if that is not known.
    """

    area: str
    bar: int
    offset: U64
    length: U64
    base: int = -1
    ports: bool = False


@dataclass(frozen=True, kw_only=True)
class Stored(Event):
    """Bytes that the driver has written to memory; `data` are the first of `length` bytes."""

    address: U64
    length: U64
    data: Hex

    def __str__(self) -> str:
        return f"stored {self.length} bytes at {self.address:#x}{_bytes(self.data)}"


@dataclass(frozen=True, kw_only=True)
class Loaded(Event):
    """Bytes that the driver has read from memory; `data` are the first of `length` bytes."""

    address: U64
    length: U64
    data: Hex

    def __str__(self) -> str:
        return f"loaded {self.length} bytes at {self.address:#x}{_bytes(self.data)}"


@dataclass(frozen=True, kw_only=True)
class Zeroed(Event):
    """Memory that the driver has taken for a test, and set to zero."""

    address: U64
    length: U64

    def __str__(self) -> str:
        return f"zeroed {self.length} bytes at {self.address:#x}"


@dataclass(frozen=True, kw_only=True)
class Contents(Event):
    """Bytes that the test has written to the disk's file on the host, from a `sector` on."""

    sector: U64
    length: U64
    data: Hex

    def __str__(self) -> str:
        return f"the test wrote {self.length} bytes to the file of the disk, sector {self.sector}"


@dataclass(frozen=True, kw_only=True)
class Available(Event):
    """Chains that the driver has made available together. `index` is the next position then.

    It is the value that NOTIFICATION_DATA has (virtio 2.9).
    """

    queue: U32
    heads: list[U32]
    index: U32

    def __str__(self) -> str:
        chains = ", ".join(map(str, self.heads))
        return f"made available in virtqueue {self.queue}: {chains} (next {self.index:#x})"


@dataclass(frozen=True, kw_only=True)
class Completed(Event):
    """A request is used: its status byte, and the start of the data that the device may write.

    `status_at` is the address of the status byte. `damage` is what changed and must not.
    """

    queue: U32
    id: U32
    status: Annotated[int, within(0, 255)]
    data: Hex
    status_at: U64
    damage: list[str]

    def __str__(self) -> str:
        damage = "".join(f"; {line}" for line in self.damage)
        return f"completed {self.id} of virtqueue {self.queue}, status {self.status:#x}{damage}"


@dataclass(frozen=True, kw_only=True)
class Answer(Event):
    """An answer of a vhost-user back-end."""

    request: U32
    payload: Hex

    def __str__(self) -> str:
        return f"answered {message_name(self.request)}{_bytes(self.payload)}"


@dataclass(frozen=True, kw_only=True)
class Qmp(Event):
    """A QMP command, with arguments and answer as JSON."""

    command: str
    arguments: str
    answer: str

    def __str__(self) -> str:
        return f"QMP {self.command} {self.arguments}: {self.answer}"


@dataclass(frozen=True, kw_only=True)
class Waited(Event):
    """A wait that has ended without what was awaited."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The end of the test: the line of the test that failed, and what was seen."""

    expected: str
    seen: str

    def __str__(self) -> str:
        return f"the test failed: {self.seen}"


SHOWN = 32
"""Bytes of memory that the words of an event show."""


def _bytes(data: str) -> str:
    more = "..." if len(data) > 2 * SHOWN else ""
    return f": {data[: 2 * SHOWN]}{more}" if data else ""


def message_name(number: int) -> str:
    """Return the name of a message of a front-end, or its number if it is unknown."""
    known = number in FrontEndRequest._value2member_map_
    return FrontEndRequest(number).name if known else f"message {number}"


KINDS: dict[str, type[Event]] = {
    "device": Device,
    "config": Config,
    "config_write": ConfigWrite,
    "register": Register,
    "message": Message,
    "memory": Memory,
    "features": Features,
    "status": Status,
    "reset": Reset,
    "started": Started,
    "prepared": Prepared,
    "stopped": Stopped,
    "unnoticed": Unnoticed,
    "waiting": Waiting,
    "bad_index": BadIndex,
    "changed": Changed,
    "notified": Notified,
    "chain": Chain,
    "request": Request,
    "used": Used,
    "interrupt": Interrupt,
    "broken": Broken,
    "illegal": Illegal,
    "cut": Cut,
    "about": About,
    "made": Made,
    "place": Place,
    "stored": Stored,
    "loaded": Loaded,
    "zeroed": Zeroed,
    "contents": Contents,
    "available": Available,
    "completed": Completed,
    "answer": Answer,
    "qmp": Qmp,
    "waited": Waited,
    "failed": Failed,
}


def dumped(event: Event) -> str:
    """Return an event as a line of JSON, without its end of line."""
    (kind,) = (name for name, known in KINDS.items() if type(event) is known)
    values = asdict(event)
    for name in ("time", "structure"):
        if not values.get(name, True):
            del values[name]
    return json.dumps({"event": kind, **values}, separators=(",", ":"))


def parsed(line: str) -> Event:
    """Make an event from a line of JSON. Raises ValueError for anything else."""
    value: Any = json.loads(line)
    if not isinstance(value, dict) or value.get("event") not in KINDS:
        raise ValueError(f"no event; known events: {', '.join(KINDS)}")
    return build(KINDS[value.pop("event")], value)


def read(path: Path) -> list[Event]:
    """Read a file of events. Raises InputError with the line of the first bad one."""
    found: list[Event] = []
    for number, line in enumerate(_lines(path), 1):
        if number > MAX_LINES:
            raise InputError(f"{path}: more than {MAX_LINES} lines")
        try:
            found.append(parsed(line))
        except (ValueError, RecursionError, WrongValueError) as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    return found


def _lines(path: Path) -> Iterable[str]:
    return read_text(path, MAX_FILE).splitlines()
