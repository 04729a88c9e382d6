"""Sessions: the parts of a stream from one reset to the next, with the state at each event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from harness.virtio.blk import BlockConfig
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.pci import BARS, CapType
from harness.witness.events import (
    Config,
    Device,
    Event,
    Features,
    Memory,
    PciCapability,
    Register,
    Reset,
    Started,
    Status,
)


@dataclass(frozen=True)
class State:
    """The state before an event.

    `features` are those of the last choice that the device has taken, `config` the bytes of the
    configuration space, `capacity` the largest one of the session in sectors (a driver may learn
    late that a disk has become smaller), `status` the last status that the driver has written.
    `memory` is None while the stream does not say where it is.
    """

    device: Device
    config: bytes = b""
    capacity: int = 0
    features: int = 0
    legacy: bool = False
    status: int = 0
    queues: dict[int, Started] = field(default_factory=dict)
    memory: Memory | None = None

    def has(self, feature: Feature) -> bool:
        """Return whether a feature was negotiated."""
        return bool(self.features & feature.mask)

    @property
    def live(self) -> bool:
        """Return whether the driver has set DRIVER_OK."""
        return bool(self.status & DeviceStatus.DRIVER_OK)

    @property
    def suspended(self) -> bool:
        """Return whether the driver has set SUSPEND, which it may, and not resumed the device."""
        return bool(self.status & DeviceStatus.SUSPEND) and self.has(Feature.SUSPEND)

    @cached_property
    def fields(self) -> BlockConfig:
        """Return the fields of the configuration that the offered features make valid."""
        return BlockConfig.parse(self.config.ljust(8, b"\0"), self.device.offered)

    def after(self, event: Event) -> State:
        """Return the state after an event, which is this one if the event does not change it."""
        match event:
            case Features(accepted=True):
                return replace(self, features=event.chosen, legacy=event.legacy)
            case Status():
                value = event.value
                resumed = event.before & DeviceStatus.SUSPEND and value & DeviceStatus.DRIVER_OK
                return replace(self, status=value & ~DeviceStatus.SUSPEND if resumed else value)
            case Started():
                return replace(self, queues={**self.queues, event.queue: event})
            case Config():
                return self.shown(bytes.fromhex(event.data))
            case Memory():
                return replace(self, memory=event)
        return self

    def shown(self, config: bytes) -> State:
        """Return the state with these bytes of the configuration space."""
        capacity = max(self.capacity, int.from_bytes(config[:8], "little"))
        return replace(self, config=config, capacity=capacity)


@dataclass(frozen=True)
class Session:
    """The events from a reset to the next. `reset` is false if it begins with the connection.

    `memory` is the driver's memory at its start. `before` is the session before it of the same
    peer. `ended` is true if a reset follows.
    """

    device: Device
    events: tuple[Event, ...]
    reset: bool = True
    memory: Memory | None = None
    before: Session | None = field(default=None, repr=False, compare=False)
    ended: bool = False

    def walk(self, *kinds: type[Event]) -> Iterator[tuple[Event, State]]:
        """Yield each event, or those of some kinds, with the state before it."""
        if not kinds:
            return iter(self._steps)
        if kinds not in self._chosen:
            self._chosen[kinds] = [step for step in self._steps if isinstance(step[0], kinds)]
        return iter(self._chosen[kinds])

    @cached_property
    def _chosen(self) -> dict[tuple[type[Event], ...], list[tuple[Event, State]]]:
        """The steps with events of some kinds, as many rules look at the same ones."""
        return {}

    @cached_property
    def _steps(self) -> list[tuple[Event, State]]:
        state = State(self.device, memory=self.memory).shown(bytes.fromhex(self.device.config))
        steps = []
        for event in self.events:
            steps.append((event, state))
            state = state.after(event)
        return steps

    @cached_property
    def failed(self) -> bool:
        """Return whether the driver has set FAILED."""
        written = [event.value for event in self.events if isinstance(event, Status)]
        return any(value & DeviceStatus.FAILED for value in written)

    @cached_property
    def legacy(self) -> bool:
        """Return whether the driver uses the legacy interface."""
        return any(isinstance(event, Features) and event.legacy for event in self.events)


def sessions(events: Iterable[Event]) -> list[Session]:
    """Cut a stream into sessions, connection by connection. Empty ones are left out."""
    by_peer: dict[int, list[Event]] = {}
    for event in events:
        by_peer.setdefault(event.connection, []).append(event)
    return [session for peer in by_peer.values() for session in _cut(list(_all_placed(peer)))]


def _cut(events: list[Event]) -> Iterator[Session]:
    """Yield the sessions of one connection."""
    starts = [_start(events, at) for at, event in enumerate(events) if isinstance(event, Reset)]
    device = Device(transport="unknown", offered=0)
    memory: Memory | None = None
    before: Session | None = None
    for start, end in zip([0, *starts], [*starts, len(events)], strict=True):
        part = events[start:end]
        first = next((event for event in part if isinstance(event, Device)), None)
        device = first or device
        inside = [event for event in part if not isinstance(event, Device)]
        if any(not isinstance(event, Reset) for event in inside[_length_of_reset(inside) :]):
            reset = start > 0 or isinstance(part[0], Reset)
            before = Session(device, tuple(inside), reset, memory, before, end < len(events))
            yield before
        for event in part:
            if isinstance(event, Memory):
                memory = event
            if isinstance(event, Config):
                device = Device(**{**vars(device), "config": event.data})


AREAS = {
    "common": CapType.COMMON_CFG,
    "notify": CapType.NOTIFY_CFG,
    "isr": CapType.ISR_CFG,
    "device": CapType.DEVICE_CFG,
}
"""Areas of registers -> type of the structure."""


def structures(device: Device) -> dict[str, list[PciCapability]]:
    """Return the structures of each area of a PCI function, in the order of the capabilities."""
    known = [found for found in device.capabilities if found.virtio and found.bar < BARS]
    return {area: [found for found in known if found.type == kind] for area, kind in AREAS.items()}


def _all_placed(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the events of one connection, with accesses to registers as `_placed` returns them."""
    known: dict[str, list[PciCapability]] = {}
    for event in events:
        if isinstance(event, Device):
            known = structures(event)
        yield _placed(event, known)


def _placed(event: Event, known: dict[str, list[PciCapability]]) -> Event:
    """Return an access to a later structure of a type as one to the same register in the first.

    Structures may overlap: an access inside the first one is one to the first.
    """
    if not isinstance(event, Register) or len(known.get(event.area, ())) < 2:
        return event
    first, *others = known[event.area]
    if event.offset < first.length:
        return event
    at = first.offset + event.offset
    for number, other in enumerate(others, 1):
        if other.bar == first.bar and other.offset <= at < other.offset + other.length:
            return replace(event, offset=at - other.offset, structure=number)
    return event


def _start(events: list[Event], at: int) -> int:
    """Return where the reset at `at` begins: with the write to the status that caused it."""
    while at > 0 and asks_for_reset(events[at - 1]):
        at -= 1
    return at


def _length_of_reset(events: list[Event]) -> int:
    """Return the number of events at the start that are the reset itself."""
    for number, event in enumerate(events):
        if not isinstance(event, Reset) and not asks_for_reset(event):
            return number
    return len(events)


def asks_for_reset(event: Event) -> bool:
    """Return whether an event is a write of 0 to the device status, or the start of a reset."""
    if isinstance(event, Register):
        return event.write and event.value == 0 and event.names == ("device_status",)
    return isinstance(event, Status) and event.value == 0
