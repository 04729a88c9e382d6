"""Requests of every kind, each with the features that it needs (virtio 5.2.6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from conformance.data import sectors
from harness.diskspec import Fault
from harness.driver.interface import CANARY, Completion, Request
from harness.virtio.blk import (
    APPEND_SECTOR,
    ID_LENGTH,
    LIFETIME,
    ZONE_DESCRIPTOR,
    ZONE_REPORT_HEADER,
    RequestType,
    segment,
)
from harness.virtio.features import Feature


@dataclass(frozen=True)
class Answer:
    """Requests that are sent together, and the features that a disk needs for them.

    With `reads` the disk holds `sectors(70)` at its start. `fields` are those of `DiskSpec`.
    """

    requests: tuple[Request, ...]
    needs: tuple[Feature, ...] = ()
    faults: tuple[Fault, ...] = ()
    reads: bool = False
    fields: dict[str, Any] = field(default_factory=dict)


READ = Request(RequestType.IN, 8, receive=512)

BY_NAME = {
    "read": Answer((READ, Request(RequestType.IN, 8, receive=16 * 512)), reads=True),
    "write": Answer((Request(RequestType.OUT, 8, sectors(1)), Request(RequestType.OUT, 0))),
    "flush": Answer((Request(RequestType.FLUSH),), (Feature.BLK_FLUSH,)),
    "id": Answer((Request(RequestType.GET_ID, receive=ID_LENGTH),)),
    "lifetime": Answer(
        (Request(RequestType.GET_LIFETIME, receive=LIFETIME.size),), (Feature.BLK_LIFETIME,)
    ),
    "discard": Answer((Request(RequestType.DISCARD, data=segment(8, 1)),), (Feature.BLK_DISCARD,)),
    "write-zeroes": Answer(
        (Request(RequestType.WRITE_ZEROES, data=segment(8, 1)),), (Feature.BLK_WRITE_ZEROES,)
    ),
    "secure-erase": Answer(
        (Request(RequestType.SECURE_ERASE, data=segment(8, 1)),), (Feature.BLK_SECURE_ERASE,)
    ),
    "reserved-flag": Answer(
        (Request(RequestType.WRITE_ZEROES, data=segment(8, 1, 1 << 31)),),
        (Feature.BLK_WRITE_ZEROES,),
    ),
    "read-error": Answer((Request(RequestType.IN, 64, receive=512),), faults=(Fault("read", 64),)),
    "read-error-in-the-middle": Answer(
        (Request(RequestType.IN, 60, receive=8 * 512),), faults=(Fault("read", 64),), reads=True
    ),
    "write-error": Answer(
        (Request(RequestType.OUT, 65, sectors(1)),), faults=(Fault("write", 65),)
    ),
    "beyond-the-end": Answer((Request(RequestType.IN, 2**40, receive=512),)),
    "beyond-the-end-write": Answer((Request(RequestType.OUT, 2**40, sectors(1)),)),
    "no-whole-sectors": Answer(
        (Request(RequestType.OUT, 40, sectors(1)[:100]), Request(RequestType.IN, 40, receive=100))
    ),
    "unsupported": Answer(
        (
            Request(99, receive=512),
            Request(99, data=sectors(1)),
            Request(RequestType.ZONE_REPORT, receive=512),
        )
    ),
}

ZONED: dict[str, Any] = {"needs": (Feature.BLK_ZONED,), "fields": {"zoned": "host-managed"}}

BY_NAME |= {
    "zone-report": Answer(
        (
            Request(
                RequestType.ZONE_REPORT,
                receive=ZONE_REPORT_HEADER.size + 4 * ZONE_DESCRIPTOR.size,
            ),
        ),
        **ZONED,
    ),
    "zone-append": Answer(
        (
            Request(RequestType.ZONE_RESET, 0),
            Request(RequestType.ZONE_APPEND, 0, sectors(8), receive=APPEND_SECTOR.size),
        ),
        **ZONED,
    ),
    "zone-management": Answer(
        tuple(
            Request(kind, 0)
            for kind in (
                RequestType.ZONE_RESET,
                RequestType.ZONE_OPEN,
                RequestType.ZONE_CLOSE,
                RequestType.ZONE_FINISH,
                RequestType.ZONE_RESET_ALL,
            )
        ),
        **ZONED,
    ),
}

ANSWERS = pytest.mark.parametrize(
    "answer", [pytest.param(answer, id=name) for name, answer in BY_NAME.items()]
)
"""Decorator that runs a test once for each entry of the list."""

FAULTS = pytest.mark.parametrize(
    "faults",
    [pytest.param((), id="healthy"), pytest.param((Fault("read", 64),), id="read-error")],
)
"""Decorator that runs a test on a disk without faults, and on a disk whose sector 64 fails."""


def check_used_length(completion: Completion) -> None:
    """Assert that a used length counts only bytes that were written (2.7.8.2-D-02).

    A device may count fewer bytes than it has written, or only the status byte.
    """
    gap = completion.data.find(CANARY)
    written = len(completion.data) + 1 if gap < 0 else gap
    assert completion.used_len <= max(written, 1), (
        f"used length {completion.used_len}, but only {written} bytes written from the start"
    )
