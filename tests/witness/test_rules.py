"""Each rule on made-up streams: kept, broken, not exercised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.virtio.blk import CONFIG_FIELD, RequestType, ZonedModel, segment
from harness.virtio.catalogue import driver_clauses
from harness.virtio.features import Feature, mask
from harness.virtio.pci import COMMON_REGISTERS, LEGACY_REGISTERS
from harness.witness.events import (
    Chain,
    Config,
    ConfigWrite,
    Device,
    Event,
    Features,
    Notified,
    Register,
    Request,
    Reset,
    Started,
    Status,
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
CASES: dict[str, tuple[Stream, Stream]] = {
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


def verdict(name: str, events: Stream, device: Device = DEVICE) -> Any:
    return judge([device, Reset(), *events])[name]


def test_every_rule_is_of_a_statement_and_has_a_case() -> None:
    assert set(RULES) <= set(driver_clauses())
    assert set(RULES) == set(CASES)


def test_the_number_of_rules_is_known() -> None:
    reasoned = {name for name, clause in driver_clauses().items() if clause.untested}

    assert len(RULES) == 75
    assert len(reasoned) == 13
    assert not reasoned & set(RULES)
    assert len(set(driver_clauses()) - reasoned - set(RULES)) == 116


@pytest.mark.parametrize("name", CASES)
def test_a_driver_that_keeps_the_statement(name: str) -> None:
    kept = verdict(name, CASES[name][0])

    assert (kept.fate, kept.evidence) == (Fate.KEPT, ())
    assert kept.checked > 0


@pytest.mark.parametrize("name", CASES)
def test_a_driver_that_breaks_the_statement(name: str) -> None:
    broken = verdict(name, CASES[name][1])

    assert broken.fate is Fate.BROKEN
    assert all(line.startswith("session ") for line in broken.evidence)


@pytest.mark.parametrize("name", CASES)
def test_a_driver_that_does_nothing(name: str) -> None:
    nothing = judge([DEVICE])[name]

    assert (nothing.fate, nothing.reason) == (Fate.NOT_EXERCISED, RULES[name].idle)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.registers])
def test_a_vhost_user_front_end_is_not_accused_of_what_it_hides(name: str) -> None:
    hidden = verdict(name, CASES[name][1], replace(DEVICE, transport="vhost-user"))

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


def test_suspend_without_the_feature_suspends_nothing() -> None:
    refused = (*RUNNING, *status(FULL | SUSPEND, FULL), NOTICE)

    assert verdict("3.4.1-R-04", refused).fate is Fate.NOT_EXERCISED
    assert verdict("3.4.1-R-01", refused).fate is Fate.BROKEN


def test_a_driver_that_does_not_reset_first_breaks_the_order() -> None:
    assert judge([DEVICE, *RUNNING])["3.1.1-R-01"].fate is Fate.BROKEN
