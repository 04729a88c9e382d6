"""Each rule on made-up streams: kept, broken, not exercised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.virtio.blk import CONFIG_FIELD, RequestType, ZonedModel, segment
from harness.virtio.catalogue import driver_clauses
from harness.virtio.features import Feature, mask
from harness.virtio.mmio import MAGIC
from harness.virtio.mmio import REGISTERS as MMIO_REGISTERS
from harness.virtio.pci import (
    CAP,
    CAP_MSIX,
    CAP_VENDOR,
    CAPABILITIES,
    COMMON_REGISTERS,
    LEGACY_REGISTERS,
    MODERN_DEVICE_ID,
    REVISION,
    TRANSITIONAL_DEVICE_ID,
    VENDOR_ID,
    CapType,
)
from harness.witness.events import (
    LINE,
    BadIndex,
    Chain,
    Changed,
    Config,
    ConfigWrite,
    Device,
    Event,
    Features,
    Interrupt,
    Memory,
    Notified,
    Prepared,
    Register,
    Request,
    Reset,
    Started,
    Status,
    Stopped,
    Unnoticed,
    Used,
    Waiting,
)
from harness.witness.judge import HIDDEN, Fate, judge
from harness.witness.rules import RULES

NEXT, WRITE, INDIRECT = 1, 2, 4
ACK, DRIVER, DRIVER_OK, OK, SUSPEND = 1, 2, 4, 8, 16
V1 = Feature.VERSION_1


def config(**values: int) -> str:
    """Return the configuration space with these fields, others 0."""
    space = bytearray(96)
    for name, value in ({"capacity": 100} | values).items():
        field = CONFIG_FIELD[name]
        space[field.offset : field.offset + field.size] = value.to_bytes(field.size, "little")
    return space.hex()


LIMITS = {
    "max_discard_seg": 1,
    "max_write_zeroes_seg": 1,
    "max_secure_erase_seg": 1,
    "zone_sectors": 16,
    "max_append_sectors": 8,
    "write_granularity": 4096,
    "model": ZonedModel.HOST_MANAGED,
}
DEVICE = Device(
    transport="pci, modern",
    offered=mask(*Feature) & ~Feature.BLK_TOPOLOGY.mask,
    config=config(**LIMITS),
    vectors=2,
)
LEGACY = replace(DEVICE, transport="pci, transitional")


def features(*chosen: Feature) -> Features:
    return Features(chosen=mask(V1, *chosen))


def legacy() -> Features:
    return Features(chosen=0, legacy=True)


def access(name: str, value: int, write: bool = True) -> Register:
    """Return an access to a register of the common or else the legacy area."""
    area, table = (
        ("common", COMMON_REGISTERS) if name in COMMON_REGISTERS else ("legacy", LEGACY_REGISTERS)
    )
    offset, width = table[name]
    return Register(area=area, offset=offset, width=width, value=value, write=write)


def read(name: str, value: int) -> Register:
    return access(name, value, write=False)


def field(name: str, width: int, offset: int = 0) -> Register:
    """Return a read of a configuration field."""
    place = CONFIG_FIELD[name].offset + offset
    return Register(area="device", offset=place, width=width, value=0, write=False)


def status(value: int, before: int = 0) -> list[Event]:
    """Return a write to the status as a function sees it: the access, then the status."""
    return [access("device_status", value), Status(value=value, before=before)]


def queue(size: int = 4, **places: int) -> Started:
    return Started(**({"queue": 0, "desc": 64, "driver": 128, "device": 192} | places), size=size)


def chain(*flags: int, table: tuple[int, ...] = (), **more: Any) -> Chain:
    """Return a chain of descriptors in a row with these flags, and a table of entries."""
    return Chain(
        queue=0,
        descriptors=[(slot, 0, 16, flag, slot + 1) for slot, flag in enumerate(flags)],
        table=[(slot, 0, 16, flag, slot + 1) for slot, flag in enumerate(table)],
        **more,
    )


def entries(*descriptors: tuple[int, int, int, int, int], **more: Any) -> Chain:
    return Chain(queue=0, descriptors=list(descriptors), **({"table": []} | more))


def request(kind: RequestType, **values: Any) -> Request:
    return Request(queue=0, type=kind, **values)


def segments(*parts: bytes) -> dict[str, Any]:
    return {"sent": 16 * len(parts), "data": b"".join(parts).hex()}


SPLIT = (features(Feature.INDIRECT_DESC), queue())
PLAIN = (features(), queue())
ORDERED = (features(Feature.IN_ORDER, Feature.INDIRECT_DESC), queue())
PACKED = (features(Feature.RING_PACKED, Feature.INDIRECT_DESC), queue())
PACKED_PLAIN = (features(Feature.RING_PACKED), queue())
ZONED = features(Feature.BLK_ZONED, Feature.BLK_SECURE_ERASE)
INIT = (
    *status(ACK),
    *status(ACK | DRIVER, ACK),
    read("device_feature", 0),
    features(),
    *status(ACK | DRIVER | OK, ACK | DRIVER),
)
GO = status(ACK | DRIVER | OK | DRIVER_OK, ACK | DRIVER | OK)
FULL = ACK | DRIVER | OK | DRIVER_OK
RUNNING = (*INIT, read("device_status", ACK | DRIVER | OK), *GO)
SUSPENDING = (features(Feature.SUSPEND), *GO, *status(FULL | SUSPEND, FULL))
SUSPENDED = ACK | DRIVER | OK | SUSPEND
RESUME = status(FULL, SUSPENDED)
RESET_FEATURE = features(Feature.RING_RESET)
PLACES = tuple(access(name, 64) for name in ("queue_desc", "queue_driver", "queue_device"))
QUEUE_RESET = (RESET_FEATURE, access("queue_reset", 1))
NOTICE = Notified(queue=1, width=2, value=1)
LONG = Notified(queue=1, width=4, value=1)
OWN = (access("queue_select", 1), read("queue_notif_config_data", 0x101))
DATA, OWN_DATA = Feature.NOTIFICATION_DATA, Feature.NOTIF_CONFIG_DATA
IN, OUT = RequestType.IN, RequestType.OUT
FLUSH, DISCARD = RequestType.FLUSH, RequestType.DISCARD
APPEND = RequestType.ZONE_APPEND
ERASE = RequestType.SECURE_ERASE

Stream = tuple[Event, ...]
CASES: dict[str, tuple[Stream, Stream | None]] = {
    "2.1.1-R-01": (RUNNING, (*status(ACK), *status(ACK | OK | DRIVER_OK, ACK))),
    "2.1.1-R-02": (RUNNING, (*status(ACK), *status(DRIVER, ACK))),
    "2.2.1-R-01a": ((features(),), (features(Feature.BLK_TOPOLOGY),)),
    "3.1.1-R-01": (RUNNING, (*INIT, *GO)),
    "3.1.1-R-02b": (RUNNING, (*status(ACK), ConfigWrite(offset=32, data="01"), *INIT)),
    "3.1.1-R-03": (
        (access("driver_feature", 1), *INIT, access("driver_feature", 1)),
        (access("driver_feature", 1), *INIT, access("driver_feature", 3)),
    ),
    "3.1.1-R-06": ((*RUNNING, NOTICE), (*INIT, NOTICE, *GO)),
    "3.4.1-R-01": (SUSPENDING, (*RUNNING, *status(FULL | SUSPEND, FULL))),
    "3.4.1-R-02": (
        (*SUSPENDING, read("device_status", SUSPENDED), *RESUME),
        (*SUSPENDING, *RESUME),
    ),
    "3.4.1-R-04": ((*SUSPENDING, *RESUME, NOTICE), (*SUSPENDING, NOTICE)),
    "3.4.1-R-05": (
        (*SUSPENDING, *RESUME, ConfigWrite(offset=32, data="00")),
        (*SUSPENDING, ConfigWrite(offset=32, data="00")),
    ),
    "6.1-R-01": ((features(),), (Features(chosen=0),)),
    "6.1-R-03a": ((features(Feature.ACCESS_PLATFORM),), (features(),)),
    "6.1-R-05": ((features(Feature.RING_PACKED),), (features(),)),
    "6.1-R-06": ((features(Feature.ORDER_PLATFORM),), (features(),)),
    "6.1-R-09": (
        (replace(DEVICE, offered=Feature.SR_IOV.mask), features()),
        (features(Feature.SR_IOV),),
    ),
    "6.1-R-12": ((features(OWN_DATA),), (features(),)),
    "5.2.6.1-R-03": ((features(Feature.BLK_RO),), (features(),)),
    "5.2.5.1-R-06": ((features(),), (features(Feature.BLK_DISCARD),)),
    "6.3-L-03b": (
        (read("device_features", 1 << 27), access("driver_features", 1 << 27), legacy()),
        (read("device_features", 1 << 27), access("driver_features", 0), legacy()),
    ),
    "6.3-L-04": (
        (access("driver_features", 0), legacy()),
        (access("driver_features", 1 << 30), legacy()),
    ),
    "2.7.1-R-01": ((features(), queue()), (features(), queue(desc=8))),
    "2.7.4.2-R-01": ((*PLAIN, chain(NEXT, WRITE)), (*PLAIN, chain(NEXT | WRITE, 0))),
    "2.7.5.2-R-01": (
        (*PLAIN, chain(NEXT, WRITE)),
        (*PLAIN, entries((0, 0, 1, NEXT, 1), (1, 0, 1, NEXT, 0), (0, 0, 1, NEXT, 1))),
    ),
    "2.7.5.2-R-02": (
        (*ORDERED, entries((3, 0, 1, NEXT, 0), (0, 0, 1, 0, 0))),
        (*ORDERED, entries((0, 0, 1, NEXT, 2), (2, 0, 1, 0, 0))),
    ),
    "2.7.5.3.1-R-01": ((*SPLIT, chain(INDIRECT, table=(0,))), (*PLAIN, chain(INDIRECT))),
    "2.7.5.3.1-R-02": (
        (*SPLIT, chain(INDIRECT, table=(NEXT, WRITE))),
        (*SPLIT, chain(INDIRECT, table=(NEXT, INDIRECT))),
    ),
    "2.7.5.3.1-R-03": (
        (*SPLIT, chain(INDIRECT, table=(NEXT, NEXT, NEXT, 0))),
        (*SPLIT, chain(INDIRECT, table=(NEXT, NEXT, NEXT, NEXT, 0))),
    ),
    "2.7.5.3.1-R-04": (
        (*SPLIT, chain(NEXT, INDIRECT, table=(0,))),
        (*SPLIT, chain(INDIRECT | NEXT, 0, table=(0,))),
    ),
    "2.7.5.3.1-R-05": (
        (*ORDERED, chain(INDIRECT, table=(NEXT, 0))),
        (*ORDERED, replace(chain(INDIRECT), table=[(0, 0, 1, NEXT, 2), *[(1, 0, 1, 0, 0)] * 2])),
    ),
    "2.7.6.1-R-01": (
        (*PLAIN, chain(0, index=0xFFFF), chain(0, index=0)),
        (*PLAIN, chain(0, index=5), chain(0, index=4)),
    ),
    "2.7.7.1-R-01": ((*PLAIN, chain(0, flags=1)), (*PLAIN, chain(0, flags=2))),
    "2.7.7.1-R-03": (
        (features(Feature.EVENT_IDX), queue(), chain(0)),
        (features(Feature.EVENT_IDX), queue(), chain(0, flags=1)),
    ),
    "2.8.11-R-01": (
        PACKED,
        (features(Feature.RING_PACKED), queue(driver=130)),
    ),
    "2.8.17-R-02": ((*PACKED, chain(0)), (*PACKED, chain(*[NEXT] * 5))),
    "2.8.17-R-03": ((*PACKED, chain(NEXT, WRITE)), (*PACKED, chain(NEXT | WRITE, 0))),
    "2.8.19-R-01": (
        (*PACKED, chain(INDIRECT, table=(0,))),
        (*PACKED_PLAIN, chain(INDIRECT, table=(0,))),
    ),
    "2.8.19-R-02": (
        (*PACKED, chain(INDIRECT, table=(0, WRITE))),
        (*PACKED, chain(INDIRECT, table=(NEXT, WRITE))),
    ),
    "2.8.19-R-04": (
        (*PACKED, chain(NEXT, WRITE)),
        (*PACKED, chain(NEXT, INDIRECT, table=(0,))),
    ),
    "4.1.4.3.2-R-01": ((access("queue_select", 0),), (access("num_queues", 1),)),
    "4.1.4.3.2-R-02": (
        (features(Feature.RING_PACKED), access("queue_size", 3)),
        (features(Feature.RING_PACKED), access("queue_size", 0)),
    ),
    "4.1.4.3.2-R-03": (
        (features(), access("queue_size", 8)),
        (features(), access("queue_size", 3)),
    ),
    "4.1.4.3.2-R-04": (
        (*PLACES, access("queue_enable", 1)),
        (access("queue_enable", 1), *PLACES),
    ),
    "4.1.4.3.2-R-05": (
        (*status(0, FULL), Reset(), read("device_status", 0), *status(ACK)),
        (*status(0, FULL), Reset(), *status(ACK)),
    ),
    "4.1.4.3.2-R-06": ((access("queue_enable", 1),), (access("queue_enable", 0),)),
    "4.1.4.3.2-R-07": (
        (*QUEUE_RESET, read("queue_reset", 0), access("queue_enable", 1)),
        (*QUEUE_RESET, read("queue_reset", 1), access("queue_enable", 1)),
    ),
    "2.6.1.1.2-R-01": (
        (*QUEUE_RESET, read("queue_reset", 0), access("queue_enable", 1)),
        (*QUEUE_RESET, access("queue_enable", 1)),
    ),
    "2.6.1.2.2-R-01": (
        (*QUEUE_RESET, *PLACES, access("queue_enable", 1)),
        (*QUEUE_RESET, access("queue_enable", 1)),
    ),
    "4.1.3.1-R-01": ((field("capacity", 4, 4),), (field("capacity", 8),)),
    "2.5.1-R-02": ((field("seg_max", 4),), (field("opt_io_size", 4),)),
    "5.2.5.1-R-04": ((*INIT, field("writeback", 1)), (*status(ACK), field("writeback", 1))),
    "4.1.5.1.2.2-R-04": (
        (access("config_msix_vector", 1),),
        (access("queue_msix_vector", 2),),
    ),
    "4.1.5.1.2.2-R-05": (
        (access("config_msix_vector", 1), read("config_msix_vector", 1), *GO),
        (access("config_msix_vector", 1), *GO),
    ),
    "4.1.5.2.1-R-01": ((features(), NOTICE), (features(), LONG)),
    "4.1.5.2.1-R-02": ((features(DATA), LONG), (features(DATA), NOTICE)),
    "4.1.5.2.1-R-03": ((features(), NOTICE), (features(), replace(NOTICE, value=0))),
    "4.1.5.2.1-R-04": ((features(DATA), LONG), (features(DATA), replace(LONG, value=0))),
    "4.1.5.2.1-R-05": (
        (features(OWN_DATA), *OWN, replace(NOTICE, value=0x101)),
        (features(OWN_DATA), *OWN, NOTICE),
    ),
    "4.1.5.2.1-R-06": (
        (features(DATA, OWN_DATA), *OWN, replace(LONG, value=0x50101)),
        (features(DATA, OWN_DATA), *OWN, LONG),
    ),
    "4.1.4.10-L-02": (
        (legacy(), access("driver_features", 0)),
        (legacy(), access("driver_feature", 0)),
    ),
    "5.2.6.1-R-02": (
        (features(), request(IN, sector=99, room=512)),
        (features(), request(IN, sector=99, room=1024)),
    ),
    "5.2.6.1-R-04": (
        (features(), request(FLUSH)),
        (features(), request(FLUSH, sector=1)),
    ),
    "5.2.6.1-R-05": ((features(), request(FLUSH)), (features(), request(FLUSH, sent=512))),
    "5.2.6.1-R-06": ((features(), request(OUT, sent=512)), (features(), request(OUT, sent=500))),
    "5.2.6.1-R-07": (
        (features(), request(DISCARD, sent=16)),
        (features(), request(DISCARD, sent=15)),
    ),
    "5.2.6.1-R-08": (
        (features(), request(RequestType.GET_ID, room=20)),
        (features(), request(RequestType.GET_ID, room=19)),
    ),
    "5.2.6.1-R-09": (
        (features(), request(DISCARD, sent=16)),
        (features(), request(DISCARD, sent=32)),
    ),
    "5.2.6.1-R-10": ((features(), request(ERASE, sent=16)), (features(), request(ERASE, sent=32))),
    "5.2.6.1-R-11": (
        (features(), request(RequestType.WRITE_ZEROES, sent=16)),
        (features(), request(RequestType.WRITE_ZEROES, sent=32)),
    ),
    "5.2.6.1-R-14": (
        (features(), request(DISCARD, **segments(segment(0, 1)))),
        (features(), request(DISCARD, **segments(segment(0, 1, 1)))),
    ),
    "5.2.6.1-R-20": (
        (ZONED, request(RequestType.ZONE_OPEN, sector=16)),
        (ZONED, request(RequestType.ZONE_OPEN, sector=17)),
    ),
    "5.2.6.1-R-21": (
        (ZONED, request(RequestType.ZONE_RESET_ALL)),
        (ZONED, request(RequestType.ZONE_RESET_ALL, sector=16)),
    ),
    "5.2.6.1-R-22": ((ZONED, request(APPEND, sector=16)), (ZONED, request(APPEND, sector=8))),
    "5.2.6.1-R-23a": ((ZONED, request(APPEND, sent=4096)), (ZONED, request(APPEND, sent=512))),
    "5.2.6.1-R-23b": ((ZONED, request(APPEND, sent=4096)), (ZONED, request(APPEND, sent=8192))),
    "5.2.6.2-D-38": (
        (ZONED, request(ERASE, **segments(segment(0, 16)))),
        (ZONED, request(ERASE, **segments(segment(0, 8)))),
    ),
}


# --- devices with PCI configuration space, and virtio-mmio


def space(*more: bytes, device: int = MODERN_DEVICE_ID, revision: int = 1) -> str:
    """Return PCI configuration space with the capabilities COMMON_CFG, PCI_CFG, MSI-X and more."""
    raw = bytearray(256)
    raw[0:4] = VENDOR_ID.to_bytes(2, "little") + device.to_bytes(2, "little")
    raw[REVISION] = revision
    at = raw[CAPABILITIES] = 0x40
    bodies = (
        virtio_capability(CapType.COMMON_CFG, 0x40),
        virtio_capability(CapType.PCI_CFG, 0, more=bytes(4)),
        bytes([CAP_MSIX, 0, 1, 0, *bytes(8)]),
        *more,
    )
    for number, body in enumerate(bodies):
        raw[at : at + len(body)] = body
        if number < len(bodies) - 1:
            raw[at + 1] = at + len(body)
        at += len(body)
    return raw.hex()


def virtio_capability(
    kind: int, length: int, bar: int = 4, more: bytes = b"", offset: int = 0
) -> bytes:
    """Return a virtio capability."""
    return CAP.pack(CAP_VENDOR, 0, CAP.size + len(more), kind, bar, 0, offset, length) + more


def with_space(*more: bytes, **values: Any) -> Device:
    return replace(DEVICE, space=space(*more, **values))


COMMON_AT, WINDOW_AT, MSIX_AT = 0x40, 0x50, 0x64


def pci(offset: int, width: int, value: int = 0, write: bool = True) -> Register:
    return Register(area="pci", offset=offset, width=width, value=value, write=write)


def window(offset: int, length: int, width: int) -> Stream:
    """Return a read by the PCI configuration window."""
    setup = (
        pci(WINDOW_AT + 4, 1, 4),
        pci(WINDOW_AT + 8, 4, offset),
        pci(WINDOW_AT + 12, 4, length),
    )
    return (with_space(), *setup, pci(WINDOW_AT + 16, width, write=False))


def common(offset: int, width: int) -> Register:
    return Register(area="common", offset=offset, width=width, value=0, write=False)


SECOND = virtio_capability(CapType.COMMON_CFG, 0x40, offset=0x800)
VENDOR_DATA = bytes([CAP_VENDOR, 0, 12, CapType.VENDOR_CFG, 0x36, 0x1B, *bytes(6)])


def isr(value: int = 1) -> Register:
    return Register(area="isr", offset=0, width=1, value=value, write=False)


MMIO = replace(DEVICE, transport="mmio")


def mmio(name: str | int, value: int = 0, write: bool = True, width: int = 4) -> Register:
    offset = MMIO_REGISTERS[name] if isinstance(name, str) else name
    return Register(area="mmio", offset=offset, width=width, value=value, write=write)


def shown(name: str, value: int = 0) -> Register:
    return mmio(name, value, write=False)


FOUND = (MMIO, shown("MagicValue", MAGIC), shown("Version", 2))
LINE_UP = Interrupt(queue=LINE)
KNOWN = (*FOUND, shown("DeviceID", 2))
READY = (*KNOWN, features(Feature.RING_RESET), mmio("QueueReady", 1))
NOTHING_THERE = (*FOUND, shown("DeviceID", 0))


# --- notifications


def used(queue: int = 0) -> Used:
    return Used(queue=queue, id=0, length=1)


def notice(**values: int) -> Notified:
    return Notified(**({"queue": 0, "width": 2, "flags": 0, "place": 0} | values))


def lying(**values: int) -> Unnoticed:
    return Unnoticed(**({"queue": 0, "waiting": 1, "flags": 0, "place": 1} | values))


BY_INDEX = (features(Feature.EVENT_IDX), queue())
STOP = Stopped(queue=0)
PACKED_DATA = (features(Feature.RING_PACKED, DATA), queue())
AVAIL, USED = 1 << 7, 1 << 15
READ_IN = (features(), request(IN, room=512))
WORKS = (*READ_IN,)
CHANGE = Changed(queue=0, before=[(0, 0, 16, 0, 0)], after=[(0, 0, 15, 0, 0)])
LIMITED = features(Feature.RING_PACKED, Feature.BLK_SEG_MAX, Feature.INDIRECT_DESC)
SEG_MAX = replace(DEVICE, config=config(**LIMITS, seg_max=2))
GENERATION = read("config_generation", 7)
HALVES = (field("capacity", 4), field("capacity", 4, 4))
OTHER_CONFIG = Config(data=config(capacity=200))
TOLD = Interrupt(queue=-1)
SEQUENTIAL = replace(
    DEVICE, sequential=16, zone_capacity=12, config=config(**(LIMITS | {"write_granularity": 512}))
)


def legacy_capacity() -> Stream:
    return tuple(
        Register(area="legacy device", offset=at, width=4, value=0, write=False) for at in (0, 4)
    )


LEGACY_GO = (legacy(), Status(value=3), Status(value=7, before=3))
OLD = (legacy(), access("driver_features", 0))
FRAMED = entries((0, 0, 16, NEXT, 1), (1, 0, 512, NEXT | WRITE, 2), (2, 0, 1, WRITE, 0))
WHOLE = entries((0, 0, 8, NEXT, 1), (1, 0, 8, NEXT, 2), (2, 0, 1, WRITE, 0))
FAILED = 128
REFUSED = (*status(ACK | DRIVER | OK, ACK | DRIVER), read("device_status", ACK | DRIVER))
MEMORY = Memory(regions=[(0, 4096), (4096, 4096)])
UNKNOWN = replace(DEVICE, offered=DEVICE.offered | 1 << 50)

CASES |= {
    "2.1.1-R-03": (
        (*status(FAILED, 3), *status(0, FAILED), Reset(), *status(ACK)),
        (*status(FAILED | 3, 3), *status(3, FAILED | 3)),
    ),
    "2.2.1-R-03a": ((UNKNOWN, features()), (UNKNOWN, Features(chosen=V1.mask | 1 << 50))),
    "2.2.1-R-03b": ((UNKNOWN, features()), (UNKNOWN, Features(chosen=V1.mask | 1 << 50))),
    "2.2.1-R-05": ((UNKNOWN, *WORKS), None),
    "2.4.2-R-01": CASES["4.1.4.3.2-R-05"],
    "2.5.1-R-01a": (
        (HALVES[0], OTHER_CONFIG, HALVES[1], *HALVES, *WORKS),
        (HALVES[0], OTHER_CONFIG, HALVES[1], *WORKS),
    ),
    "2.5.1-R-01b": (
        (GENERATION, *HALVES, read("config_generation", 8), *HALVES, read("config_generation", 8)),
        (GENERATION, *HALVES, read("config_generation", 8), *WORKS),
    ),
    "2.5.1-R-03": ((replace(DEVICE, config="00" * 128), *WORKS), None),
    "2.5.1-R-04": ((replace(DEVICE, config="00" * 60), *WORKS), None),
    "2.5.4-L-01": (
        (legacy(), *legacy_capacity(), *legacy_capacity(), request(IN)),
        (legacy(), *legacy_capacity(), request(IN)),
    ),
    "2.7.2-L-01a": (
        (
            legacy(),
            replace(access("queue_size", 8, write=False), area="legacy", offset=0xC),
            access("queue_address", 1),
        ),
        (legacy(), access("queue_address", 1)),
    ),
    "2.7.7.1-R-05": ((*PLAIN, Interrupt(queue=0), request(IN)), None),
    "2.7.10.1-R-01": (
        (*PLAIN, Prepared(queue=0, flags=0)),
        (*PLAIN, Prepared(queue=0, flags=1)),
    ),
    "2.7.10.1-R-02": ((*PLAIN, notice(), chain(0, position=5)), None),
    "2.7.10.1-R-03": (
        (*PLAIN, notice(flags=1), chain(0), chain(0, position=1)),
        (*PLAIN, *[notice(flags=1), chain(0)] * 8),
    ),
    "2.7.10.1-R-04": (
        (*PLAIN, notice(), chain(0), lying(), notice(), STOP),
        (*PLAIN, notice(), chain(0), lying(), STOP),
    ),
    "2.7.10.1-R-05": ((*BY_INDEX, notice(flags=1), chain(0)), None),
    "2.7.10.1-R-06": (
        (*BY_INDEX, notice(), chain(0), lying(place=0), STOP),
        (*BY_INDEX, notice(), chain(0), lying(place=1), STOP),
    ),
    "2.7.10.1-R-07": (
        (*BY_INDEX, notice(), chain(0), notice(), chain(0)),
        (*BY_INDEX, notice(), chain(0), notice(), notice()),
    ),
    "2.8.16-R-01": ((*PACKED, used()), (*PACKED, CHANGE)),
    "2.8.16-R-02": ((*PACKED, used()), (*PACKED, CHANGE)),
    "2.8.16-R-03": (
        (*PACKED_DATA, notice(width=4, value=(1 << 15 | 1) << 16), chain(0)),
        (*PACKED_DATA, notice(width=4, value=1 << 16), chain(0)),
    ),
    "2.8.17-R-01": (
        (SEG_MAX, LIMITED, queue(), chain(NEXT, NEXT | WRITE, WRITE)),
        (SEG_MAX, LIMITED, queue(), chain(NEXT, NEXT | WRITE, NEXT | WRITE, WRITE)),
    ),
    "2.8.19-R-03": (
        (SEG_MAX, LIMITED, queue(), chain(INDIRECT, table=(0, WRITE, WRITE))),
        (SEG_MAX, LIMITED, queue(), chain(INDIRECT, table=(0, WRITE, WRITE, WRITE))),
    ),
    "2.8.17-R-05": (
        (*PACKED, chain(NEXT, NEXT, 0), Used(queue=0, id=3, length=0), chain(NEXT, 0)),
        (*PACKED, chain(NEXT, NEXT, 0), chain(NEXT, 0)),
    ),
    "2.8.17-R-06": (
        (*PACKED, chain(NEXT | AVAIL, AVAIL), chain(NEXT | AVAIL, USED, position=3)),
        (*PACKED, chain(NEXT | AVAIL, 0)),
    ),
    "3.1.1-R-04": (
        (*REFUSED, *status(FAILED | 3, 3)),
        (*REFUSED, *status(3, 3)),
    ),
    "3.1.1-R-05": (
        (*REFUSED, *status(FAILED | 3, 3)),
        (*REFUSED, access("queue_enable", 1)),
    ),
    "3.1.2-L-01": (
        (legacy(), Status(value=ACK), *LEGACY_GO[1:]),
        (legacy(), Status(value=15)),
    ),
    "3.3.1-R-01": ((*PLAIN, used()), (*PLAIN, CHANGE)),
    "3.3.1-R-02": ((*PLAIN, chain(0), Reset(), *status(ACK)), None),
    "3.4.1-R-03": (
        (*SUSPENDING, Waiting(queue=0, count=1), Waiting(queue=0, count=1)),
        (*SUSPENDING, Waiting(queue=0, count=1), Waiting(queue=0, count=2)),
    ),
    "3.4.1-R-06": (
        (*SUSPENDING, *RESUME, read("device_status", FULL), NOTICE),
        (*SUSPENDING, *RESUME, read("device_status", SUSPENDED), NOTICE),
    ),
    "4.1.2.2-R-01": ((with_space(), *WORKS), None),
    "4.1.2.2-R-02": ((with_space(device=TRANSITIONAL_DEVICE_ID), *WORKS), None),
    "4.1.2.2-R-03": ((with_space(revision=7), *WORKS), None),
    "4.1.4.1-R-01": ((with_space(virtio_capability(7, 0)), *WORKS), None),
    "4.1.4.1-R-03": ((with_space(virtio_capability(3, 1, more=bytes(4))), *WORKS), None),
    "4.1.4.1-R-04": ((with_space(virtio_capability(3, 1, bar=6)), *WORKS), None),
    "4.1.4.1-R-02": (
        (with_space(SECOND), common(0x14, 1)),
        (with_space(SECOND), common(0x814, 1)),
    ),
    "4.1.4.8.2-R-01": (
        (with_space(VENDOR_DATA), *WORKS),
        (with_space(VENDOR_DATA), pci(MSIX_AT + 12 + 8, 1)),
    ),
    "4.1.4.8.2-R-02": (
        (
            with_space(VENDOR_DATA),
            pci(MSIX_AT + 12 + 4, 2, write=False),
            pci(MSIX_AT + 12 + 8, 1),
        ),
        (with_space(VENDOR_DATA), pci(MSIX_AT + 12 + 8, 1)),
    ),
    "4.1.4.1-R-06a": ((with_space(virtio_capability(3, 2)), *WORKS), None),
    "4.1.4.1-R-07": ((with_space(), pci(WINDOW_AT + 4, 1)), (with_space(), pci(COMMON_AT + 4, 1))),
    "4.1.4.5.2-R-01": (
        (with_space(), pci(MSIX_AT + 2, 2, 1 << 15), Interrupt(queue=0), TOLD, isr()),
        (with_space(), pci(MSIX_AT + 2, 2, 1 << 15), Interrupt(queue=0), isr()),
    ),
    "4.1.4.9.2-R-01a": (window(4, 4, 4), window(2, 4, 4)),
    "4.1.4.9.2-R-01b": (window(2, 1, 1), window(2, 1, 4)),
    "4.1.4.9.2-R-02": (window(0x3C, 4, 4), window(0x40, 4, 4)),
    "4.1.4.10-L-04": (
        (legacy(), *legacy_capacity()),
        (
            legacy(),
            replace(
                access("config_msix_vector", 0, write=False), area="legacy", offset=0x14, width=4
            ),
        ),
    ),
    "4.1.5.1.1.1-L-02": ((with_space(), pci(COMMON_AT, 4, write=False), legacy()), None),
    "4.1.5.1.1.1-L-04": ((with_space(), pci(COMMON_AT, 4, write=False)), None),
    "4.1.5.1.2.2-R-01": ((replace(DEVICE, vectors=1), *WORKS), None),
    "4.1.5.4.2-R-01": ((isr(3), field("capacity", 4), *WORKS), None),
    "5.2.5.1-R-01": ((features(Feature.BLK_FLUSH), request(FLUSH)), None),
    "5.2.5.1-R-03": ((features(Feature.BLK_FLUSH), request(FLUSH)), None),
    "5.2.5.1-R-08": ((field("model", 1), *status(FAILED)), None),
    "5.2.6.1-R-01": (
        (*RUNNING, TOLD, *HALVES),
        (*RUNNING, TOLD, *[request(IN)] * 65),
    ),
    "5.2.6.1-R-18": (
        (ZONED, request(RequestType.ZONE_REPORT, sector=99)),
        (ZONED, request(RequestType.ZONE_REPORT, sector=100)),
    ),
    "5.2.6.1-R-25": (
        (SEQUENTIAL, ZONED, request(OUT, sector=24, sent=4 * 512)),
        (SEQUENTIAL, ZONED, request(OUT, sector=24, sent=5 * 512)),
    ),
    "5.2.6.4-L-01": ((*OLD, FRAMED), (*OLD, WHOLE)),
    "6.1-R-04": (
        (MEMORY, replace(DEVICE, offered=V1.mask), *PLAIN, entries((0, 4090, 16, 0, 0))),
        (MEMORY, replace(DEVICE, offered=V1.mask), *PLAIN, entries((0, 8190, 16, 0, 0))),
    ),
    # --- virtio-mmio
    "4.2.2.2-R-01a": (KNOWN, (*KNOWN, mmio(0x28))),
    "4.2.2.2-R-01b": ((*KNOWN, mmio("Status", 1)), (*KNOWN, mmio("Version", 1))),
    "4.2.2.2-R-01c": (KNOWN, (*KNOWN, shown("QueueSel"))),
    "4.2.2.2-R-02": (KNOWN, (*KNOWN, mmio("Status", 1, width=1))),
    "4.2.2.2-R-03": ((*KNOWN, *HALVES), (*KNOWN, field("capacity", 8))),
    "4.2.2.2-R-06a": (NOTHING_THERE, (*NOTHING_THERE, mmio("Status", 1))),
    "4.2.3.1.1-R-02b": (NOTHING_THERE, (*NOTHING_THERE, mmio("Status", 1))),
    "4.2.3.1.1-R-02c": (
        (*NOTHING_THERE, *NOTHING_THERE[1:]),
        (*NOTHING_THERE, shown("VendorID")),
    ),
    "4.2.2.2-R-07": (
        (*KNOWN, mmio("DeviceFeaturesSel"), shown("DeviceFeatures")),
        (*KNOWN, shown("DeviceFeatures")),
    ),
    "4.2.2.2-R-08": (
        (*KNOWN, mmio("DriverFeaturesSel"), mmio("DriverFeatures")),
        (*KNOWN, mmio("DriverFeatures")),
    ),
    "4.2.2.2-R-09": (
        (*KNOWN, shown("QueueSizeMax", 8), mmio("QueueSize", 8)),
        (*KNOWN, shown("QueueSizeMax", 8), mmio("QueueSize", 16)),
    ),
    "4.2.2.2-R-10": ((*KNOWN, mmio("QueueDescLow")), (*READY, mmio("QueueDescLow"))),
    "4.2.2.2-R-11a": ((*READY, mmio("QueueReady", 0)), None),
    "4.2.2.2-R-11b": (
        (*READY, mmio("QueueReady", 0), shown("QueueReady")),
        (*READY, mmio("QueueReady", 0), mmio("QueueSel", 1)),
    ),
    "4.2.2.2-R-13a": (
        (*KNOWN, shown("InterruptStatus", 3), mmio("InterruptACK", 3)),
        (*KNOWN, shown("InterruptStatus", 1), mmio("InterruptACK", 3)),
    ),
    "4.2.2.2-R-13b": ((*KNOWN, mmio("InterruptACK", 3)), (*KNOWN, mmio("InterruptACK", 4))),
    "4.2.3.4.1-R-01": (
        (*KNOWN, LINE_UP, shown("InterruptStatus", 1), mmio("InterruptACK", 1)),
        (*KNOWN, shown("InterruptStatus", 1), LINE_UP, mmio("InterruptACK", 1)),
    ),
    "4.2.3.4.1-R-03": ((*KNOWN, shown("InterruptStatus", 1), mmio("InterruptACK", 1)), None),
    "4.2.2.2-R-14": (
        (*READY, mmio("QueueReset", 1), shown("QueueReset", 0), mmio("QueueReady", 1)),
        (*READY, mmio("QueueReset", 1), shown("QueueReset", 1), mmio("QueueReady", 1)),
    ),
    "4.2.3.1.1-R-01": (KNOWN, (MMIO, shown("Version", 2), shown("Status"))),
    "4.2.3.1.1-R-02a": (KNOWN, (*FOUND, mmio("Status", 0))),
    "4.2.3.1.1-R-03": ((*KNOWN, *GO[1:]), (*KNOWN, mmio("SHMSel", 0))),
}


BREAKABLE = {name: broken for name, (_, broken) in CASES.items() if broken is not None}


def verdict(name: str, events: Stream, device: Device = DEVICE) -> Any:
    return judge([device, Reset(), *events])[name]


def test_every_rule_is_of_a_statement_and_has_a_case() -> None:
    assert set(RULES) <= set(driver_clauses())
    assert set(RULES) == set(CASES)


def test_the_number_of_rules_is_known() -> None:
    reasoned = {name for name, clause in driver_clauses().items() if clause.untested}

    assert len(RULES) == 159
    assert len(reasoned) == 45
    assert not reasoned & set(RULES)
    assert not set(driver_clauses()) - reasoned - set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_a_driver_that_keeps_the_statement(name: str) -> None:
    kept = verdict(name, CASES[name][0])

    assert (kept.fate, kept.evidence) == (Fate.KEPT, ())
    assert kept.checked > 0


def test_a_rule_that_nothing_breaks_says_why() -> None:
    assert {name for name, rule in RULES.items() if rule.never_red} == set(CASES) - set(BREAKABLE)


@pytest.mark.parametrize("name", BREAKABLE)
def test_a_driver_that_breaks_the_statement(name: str) -> None:
    broken = verdict(name, BREAKABLE[name])

    assert broken.fate is Fate.BROKEN
    assert all(line.startswith("session ") for line in broken.evidence)


@pytest.mark.parametrize("name", CASES)
def test_a_driver_that_does_nothing(name: str) -> None:
    nothing = judge([DEVICE])[name]

    assert (nothing.fate, nothing.reason) == (Fate.NOT_EXERCISED, RULES[name].idle)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.registers])
def test_a_vhost_user_front_end_is_not_accused_of_what_it_hides(name: str) -> None:
    events = tuple(
        replace(event, transport="vhost-user") if isinstance(event, Device) else event
        for event in BREAKABLE.get(name, CASES[name][0])
    )
    hidden = verdict(name, events, replace(DEVICE, transport="vhost-user"))

    assert (hidden.fate, hidden.reason) == (Fate.NOT_EXERCISED, HIDDEN)


def test_a_driver_that_has_not_seen_a_smaller_capacity_is_not_accused() -> None:
    smaller = Config(data=config(capacity=10))
    late = verdict("5.2.6.1-R-02", (features(), smaller, request(IN, sector=99, room=512)))

    assert late.fate is Fate.KEPT


def test_the_status_bits_that_the_device_changes_are_not_the_drivers_fault() -> None:
    needs_reset = 64
    written = (*status(ACK), *status(ACK | DRIVER, ACK | needs_reset))

    assert verdict("2.1.1-R-02", written).fate is Fate.KEPT


def test_a_queue_that_is_enabled_without_addresses_breaks_the_order() -> None:
    late = verdict("4.1.4.3.2-R-04", (*PLACES, access("queue_enable", 1), *PLACES))
    never = verdict("4.1.4.3.2-R-04", (access("queue_enable", 1),))

    assert late.fate is never.fate is Fate.BROKEN


def test_an_interrupt_may_be_handled_while_a_queue_is_stopped() -> None:
    stopped = (*READY, mmio("QueueReady", 0), mmio("InterruptACK", 1), shown("QueueReady"))

    assert verdict("4.2.2.2-R-11b", stopped).fate is Fate.KEPT


def test_a_legacy_driver_may_remember_the_queue_size_of_an_earlier_start() -> None:
    size = replace(access("queue_size", 8, write=False), area="legacy", offset=0xC)
    started = (legacy(), size, access("queue_address", 1), *status(0, FULL), Reset())
    again = (*status(ACK), legacy(), access("queue_address", 1))

    assert verdict("2.7.2-L-01a", (*started, *again)).fate is Fate.KEPT


def test_memory_of_a_virtqueue_is_the_drivers_again_once_it_asks_for_a_reset() -> None:
    queue_in_use = (*PLAIN, chain(0, index=5))
    changed = BadIndex(queue=0, index=0, position=5)
    slow = (*queue_in_use, access("device_status", 0), read("device_status", FULL), changed)

    assert verdict("2.7.6.1-R-01", (*queue_in_use, changed)).fate is Fate.BROKEN
    assert verdict("2.7.6.1-R-01", slow).fate is Fate.NOT_EXERCISED


def test_suspend_without_the_feature_suspends_nothing() -> None:
    refused = (*RUNNING, *status(FULL | SUSPEND, FULL), NOTICE)

    assert verdict("3.4.1-R-04", refused).fate is Fate.NOT_EXERCISED
    assert verdict("3.4.1-R-01", refused).fate is Fate.BROKEN


def test_a_driver_that_does_not_reset_first_breaks_the_order() -> None:
    assert judge([DEVICE, *RUNNING])["3.1.1-R-01"].fate is Fate.BROKEN


def test_a_driver_may_initialize_the_device_by_the_second_structure() -> None:
    moved = [
        replace(event, offset=event.offset + 0x800) if isinstance(event, Register) else event
        for event in (*status(0), Reset(), *RUNNING)
    ]
    verdicts = judge([with_space(SECOND), *moved])

    assert verdicts["3.1.1-R-01"].fate is Fate.KEPT
    assert verdicts["4.1.4.1-R-02"].fate is Fate.BROKEN


def test_an_access_inside_two_structures_of_one_type_is_one_to_the_first() -> None:
    overlapping = virtio_capability(CapType.COMMON_CFG, 0x40, offset=0x10)
    started = (*status(0), Reset(), *RUNNING, common(0x14, 1))

    assert judge([with_space(overlapping), *started])["4.1.4.1-R-02"].fate is Fate.KEPT
    beyond = common(0x44, 4)
    assert judge([with_space(overlapping), *started, beyond])["4.1.4.1-R-02"].fate is Fate.BROKEN


def test_notifications_of_a_virtqueue_without_chains_are_needless() -> None:
    assert verdict("2.7.10.1-R-07", (*BY_INDEX, notice(), notice())).fate is Fate.BROKEN


def test_bits_of_an_interrupt_may_be_acknowledged_one_by_one() -> None:
    read_once = (*KNOWN, LINE_UP, shown("InterruptStatus", 3))
    stream = (*read_once, mmio("InterruptACK", 1), mmio("InterruptACK", 2))

    assert verdict("4.2.3.4.1-R-01", stream).fate is Fate.KEPT


def test_an_acknowledgement_without_a_known_interrupt_is_not_judged() -> None:
    stream = (*KNOWN, mmio("InterruptACK", 1))

    assert verdict("4.2.3.4.1-R-01", stream).fate is Fate.NOT_EXERCISED


def test_a_notification_whose_chain_the_device_did_not_take_is_not_judged() -> None:
    wrong = notice(width=4, value=1 << 16)

    assert verdict("2.8.16-R-03", (*PACKED_DATA, wrong)).fate is Fate.NOT_EXERCISED
    again = (*PACKED_DATA, wrong, Stopped(queue=0), queue(), chain(0))
    assert verdict("2.8.16-R-03", again).fate is Fate.NOT_EXERCISED
