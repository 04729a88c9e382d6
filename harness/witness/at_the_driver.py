"""The events of a trace at the driver, as events of the witness.

`harness/driver/trace.py` records plain tuples, because that costs the least. What they mean is
decided here, and only when a trace is wanted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from harness.diskspec import SECTOR
from harness.driver.trace import Recorded
from harness.virtio.mmio import CONFIG as MMIO_CONFIG
from harness.virtio.mmio import REGISTERS as MMIO_REGISTERS
from harness.virtio.pci import LEGACY_REGISTERS
from harness.virtio.ring import DESC, PACKED_DESC
from harness.witness.events import (
    LINE,
    Answer,
    Available,
    Broken,
    Chain,
    Completed,
    Contents,
    Event,
    Features,
    Interrupt,
    Loaded,
    Made,
    Message,
    Notified,
    Place,
    Qmp,
    Register,
    Request,
    Started,
    Status,
    Stored,
    Used,
    Waited,
    Zeroed,
)


class _Reading:
    """Makes events of the tuples of one driver, whose transport is `transport`."""

    def __init__(self, transport: str) -> None:
        self._transport = transport
        self._windows: dict[int, tuple[int, bool]] = {}
        self._areas: list[Place] = []
        self._makers: dict[str, Callable[..., list[Event]]] = {
            "window": self._window,
            "area": self._area,
            "register": self._register,
            "pci": self._pci,
            "interrupt": self._interrupt,
            "machine": _machine,
            "disk": _disk,
            "export": _export,
            "ring": _ring,
            "chain": _chain,
            "available": _available,
            "request": _request,
            "used": _used,
            "completed": _completed,
            "notified": _notified,
            "stored": lambda at, length, data: [Stored(address=at, length=length, data=data.hex())],
            "loaded": lambda at, length, data: [Loaded(address=at, length=length, data=data.hex())],
            "zeroed": lambda at, length: [Zeroed(address=at, length=length)],
            "contents": lambda sector, length, data: [
                Contents(sector=sector, length=length, data=data.hex())
            ],
            "status": lambda value, before: [Status(value=value & 0xFF, before=before & 0xFF)],
            "features": lambda chosen: [Features(chosen=chosen & 0xFFFF_FFFF_FFFF_FFFF)],
            "message": _message,
            "answer": lambda request, data: [Answer(request=request, payload=data.hex())],
            "broken": lambda queue: [Broken(text=f"error on virtqueue {queue}")],
            "qmp": _qmp,
            "timeout": lambda text: [Waited(text=text)],
            "dropped": lambda count: [Waited(text=f"{count} events before this were dropped")],
        }

    def events(self, recorded: Iterable[Recorded]) -> list[Event]:
        """Return the events with their times, in their order."""
        found: list[Event] = []
        for time, name, *values in recorded:
            found += (replace(event, time=time) for event in self._makers[name](*values))
        return found

    def _window(self, bar: int, base: int, ports: bool) -> list[Event]:
        self._windows[bar] = base, ports
        areas = {"mmio": 0, "device": MMIO_CONFIG} if bar < 0 else {self._unnamed(bar): 0}
        return [
            Place(area=area, bar=bar, offset=offset, length=0, base=base + offset, ports=ports)
            for area, offset in areas.items()
        ]

    def _unnamed(self, bar: int) -> str:
        """Return the area of registers of a BAR that no capability is about."""
        return "legacy" if self._transport == "pci-legacy" and bar == 0 else f"bar {bar}"

    def _area(self, name: str, bar: int, offset: int, length: int) -> list[Event]:
        base, ports = self._windows.get(bar, (-1, False))
        place = Place(
            area=name,
            bar=bar,
            offset=offset,
            length=length,
            base=base + offset if base >= 0 else -1,
            ports=ports,
        )
        self._areas.append(place)
        return [place]

    def _register(self, bar: int, offset: int, width: int, value: int, write: bool) -> list[Event]:
        if bar < 0:
            # The witness has the configuration in an area of its own.
            area = "mmio" if offset < MMIO_CONFIG else "device"
            offset %= MMIO_CONFIG
        else:
            area = self._unnamed(bar)
            for place in self._areas:
                if place.bar == bar and place.offset <= offset < place.offset + place.length:
                    area, offset = place.area, offset - place.offset
                    break
        value &= (1 << 8 * width) - 1
        event = Register(area=area, offset=offset, width=width, value=value, write=write)
        found: list[Event] = [event]
        if write and _notifies(event):
            found.append(Notified(queue=value & 0xFFFF, width=width, value=value))
        return found

    @staticmethod
    def _pci(offset: int, data: bytes, write: bool) -> list[Event]:
        value = int.from_bytes(data, "little") if len(data) <= 8 else -1
        return [Register(area="pci", offset=offset, width=len(data), value=value, write=write)]

    def _interrupt(self, place: int, count: int) -> list[Event]:
        """`place` is a vector, a queue of a vhost-user back-end, or -1."""
        if self._transport == "vhost-user":
            return [Interrupt(queue=place, count=count)]
        return [Interrupt(queue=LINE, vector=place, count=count)]


def _notifies(event: Register) -> bool:
    if event.area == "mmio":
        return event.offset == MMIO_REGISTERS["QueueNotify"]
    if event.area == "legacy":
        return event.offset == LEGACY_REGISTERS["queue_notify"][0]
    return event.area == "notify"


def _machine(board: str, interface: str, memory: int) -> list[Event]:
    options = {"board": board, "interface": interface, "memory": memory}
    return [Made(part="machine", options=json.dumps(options))]


def _disk(
    objects: list[Any], nodes: list[Any], device: dict[str, Any], capacity: int
) -> list[Event]:
    """`capacity` is in sectors of 512 bytes."""
    options = {"objects": objects, "nodes": nodes, "device": device, "size": capacity * SECTOR}
    return [Made(part="disk", options=json.dumps(options))]


def _export(
    objects: list[Any], nodes: list[Any], export: dict[str, Any], capacity: int
) -> list[Event]:
    options = {"objects": objects, "nodes": nodes, "export": export, "size": capacity * SECTOR}
    return [Made(part="export", options=json.dumps(options))]


def _ring(queue: int, size: int, desc: int, driver: int, device: int, packed: bool) -> list[Event]:
    form = "packed" if packed else "split"
    return [Started(queue=queue, size=size, desc=desc, driver=driver, device=device, format=form)]


def _chain(
    queue: int, head: int, packed: bool, slots: Sequence[int], raw: bytes, table_at: int
) -> list[Event]:
    found = list(DESC.iter_unpack(raw))
    if packed:  # the flags are after the buffer id
        found = [(*fields, flags, ident) for *fields, ident, flags in PACKED_DESC.iter_unpack(raw)]
    return [
        Chain(
            queue=queue,
            descriptors=[(slot, *fields) for slot, fields in zip(slots, found, strict=False)],
            table=[(slot, *fields) for slot, fields in enumerate(found[len(slots) :])],
            head=head,
            table_at=table_at,
        )
    ]


def _available(queue: int, heads: Any, index: int) -> list[Event]:
    return [Available(queue=queue, heads=list(heads), index=index)]


def _request(queue: int, type: int, sector: int, sent: int, room: int) -> list[Event]:
    return [Request(queue=queue, type=int(type), sector=sector, sent=sent, room=room)]


def _used(queue: int, ident: int, length: int) -> list[Event]:
    return [Used(queue=queue, id=ident, length=length)]


def _completed(
    queue: int, ident: int, status: int, data: bytes, status_at: int, damage: Any
) -> list[Event]:
    return [
        Completed(
            queue=queue,
            id=ident,
            status=status,
            data=data.hex(),
            status_at=status_at,
            damage=list(damage),
        )
    ]


def _notified(queue: int) -> list[Event]:
    return [Notified(queue=queue)]


def _message(request: int, flags: int, payload: bytes, files: int) -> list[Event]:
    return [Message(request=request, payload=payload.hex(), flags=flags, files=files)]


def _qmp(command: str, arguments: dict[str, Any], answer: Any) -> list[Event]:
    return [
        Qmp(
            command=command,
            arguments=json.dumps(arguments, default=str),
            answer=json.dumps(answer, default=str),
        )
    ]


def at_the_driver(recorded: Iterable[Recorded], transport: str) -> list[Event]:
    """Return the events of a driver on this kind of transport, as the witness has them."""
    return _Reading(transport).events(recorded)
