"""The types of request of a block device, with their effect on a disk (virtio 5.2.6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from conformance.contents import Contents
from conformance.data import needed, sectors, shortest
from harness.driver.interface import CANARY, Completion, Request
from harness.report import described
from harness.virtio.blk import (
    ID_LENGTH,
    LIFETIME,
    SECTOR,
    BlockConfig,
    RequestType,
    Status,
    segment,
)
from harness.virtio.features import Feature

if TYPE_CHECKING:
    from harness.targets import Disk

SERIAL = "vblk-0123456789abcde"
WEAR = (1, 3, 7)
UNIT = 8
"""Sectors of a segment and alignment of its start, if the device has no other limits: 4096 bytes,
so that segments are whole blocks of most disks."""


@dataclass(frozen=True)
class Kind:
    """A type of request: the behaviour (id) that it shows, and the feature that it needs."""

    type: RequestType
    statement: str
    feature: Feature | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of `DiskSpec` that a disk needs to offer the feature, or to have a known answer."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features that a disk has to offer for this type."""
        return (self.feature,) if self.feature else ()

    @property
    def changes(self) -> bool:
        """True for a type that changes sectors."""
        return self.type in (
            RequestType.OUT,
            RequestType.DISCARD,
            RequestType.WRITE_ZEROES,
            RequestType.SECURE_ERASE,
        )


KINDS = (
    Kind(RequestType.IN, "5.2.6-P-06"),
    Kind(RequestType.OUT, "5.2.6-P-07"),
    Kind(RequestType.FLUSH, "5.2.6-P-02", Feature.BLK_FLUSH),
    Kind(RequestType.GET_ID, "5.2.6-P-03", fields={"serial": SERIAL}),
    Kind(RequestType.GET_LIFETIME, "5.2.6-P-04", Feature.BLK_LIFETIME, {"lifetime": WEAR}),
    Kind(RequestType.DISCARD, "5.2.6-P-01", Feature.BLK_DISCARD),
    Kind(RequestType.WRITE_ZEROES, "5.2.6-P-40", Feature.BLK_WRITE_ZEROES),
    Kind(RequestType.SECURE_ERASE, "5.2.6-P-09", Feature.BLK_SECURE_ERASE, {"secure_erase": True}),
)


def made(disk: Disk, kind: Kind) -> dict[str, Any]:
    """Return the fields of this type that the disk was really made with."""
    return {name: getattr(disk.spec, name) for name in kind.fields}


def each_kind(kinds: Iterable[Kind] = KINDS, marked: bool = True) -> pytest.MarkDecorator:
    """Return a decorator that runs a test with each type of request, as the argument `kind`.

    `marked` tests are about the behaviour of the type; others name their own statement.
    """
    return pytest.mark.parametrize(
        "kind",
        [
            pytest.param(
                kind, id=kind.type.name, marks=[described(kind.statement)] if marked else []
            )
            for kind in kinds
        ],
    )


@dataclass(frozen=True)
class Act:
    """A request that ends with OK, and its effect on the contents of the disk."""

    kind: Kind
    request: Request
    contents: Contents
    sector: int
    count: int
    known: bytes | None = None

    def check(self, completion: Completion, way: str) -> None:
        """Assert that the request did what it asks for, and note its effect.

        `way` says how it was sent, for the message. The disk is not compared.
        """
        named = f"{self.kind.type.name} {way}"
        status = completion.status
        assert status == Status.OK, f"{named} ended with {status:#x}"
        assert completion.damage == (), f"{named} changed other memory: {completion.damage}"
        received = completion.data
        match self.kind.type:
            case RequestType.IN:
                wrong = received != self.contents.read(self.sector, self.count)
                assert not wrong, f"{named} returned other data than the sectors have"
            case RequestType.GET_ID | RequestType.GET_LIFETIME if self.known is not None:
                assert received == self.known, f"{named} returned {received!r}"
            case RequestType.GET_ID:
                assert CANARY not in received, f"{named} did not write all of its area"
            case RequestType.OUT:
                self.contents.write(self.sector, self.request.data)
            case RequestType.WRITE_ZEROES:
                self.contents.write(self.sector, bytes(self.count * SECTOR))
            case RequestType.DISCARD | RequestType.SECURE_ERASE:
                self.contents.may_have_any_value(self.sector, self.count)


def act(
    kind: Kind,
    config: BlockConfig,
    contents: Contents,
    turn: int = 0,
    fields: dict[str, Any] | None = None,
    **framing: Any,
) -> Act:
    """Return a legal request of this type. `turn` chooses its place on the disk and its data.

    `fields` are those of `DiskSpec` that the disk was made with; `framing` as in `Request`.
    Skip the test if the device's limits leave no such request on so small a disk.
    """
    disk = fields or {}
    align, count = UNIT, UNIT
    match kind.type:
        case RequestType.DISCARD:
            count = shortest(config.max_discard_sectors, UNIT)
        case RequestType.WRITE_ZEROES:
            count = shortest(config.max_write_zeroes_sectors, UNIT)
        case RequestType.SECURE_ERASE:
            align = count = max(config.secure_erase_sector_alignment or 1, UNIT)
            count = shortest(config.max_secure_erase_sectors, count)
        case RequestType.IN | RequestType.OUT:
            count = 3
    places = contents.count // align - 1
    if places < 1:
        pytest.skip(f"the disk has {contents.count} sectors, and a request takes {align} of them")
    sector = align * (1 + turn % places)
    known = None
    match kind.type:
        case RequestType.IN:
            sector += 1
            request = Request(kind.type, sector, receive=count * SECTOR)
        case RequestType.OUT:
            sector += 1
            request = Request(kind.type, sector, sectors(count, salt=100 + 7 * turn))
        case RequestType.FLUSH:
            request = Request(kind.type)
        case RequestType.GET_ID:
            request = Request(kind.type, receive=ID_LENGTH)
            if disk.get("serial") is not None:
                known = disk["serial"].encode().ljust(ID_LENGTH, b"\0")
        case RequestType.GET_LIFETIME:
            request = Request(kind.type, receive=LIFETIME.size)
            if disk.get("lifetime") is not None:
                known = LIFETIME.pack(*disk["lifetime"])
        case _:
            request = Request(kind.type, data=segment(sector, count))
    return Act(kind, replace(request, **framing), contents, sector, count, known)


def needs_served(disk: Disk, kind: Kind) -> None:
    """Skip the test if an ordinary request of this type fails, which other tests judge."""
    sent = act(kind, disk.driver.config(), Contents(disk))
    needed(disk.send(sent.request), f"an ordinary {kind.type.name}")
