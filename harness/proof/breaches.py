"""Planted breaches: work of the reference driver that breaks statements, for the witness.

Each breach is a function that does something illegal with a disk of the model, or with one of QEMU
over virtio-mmio. `docs/witness-proof.md` lists which rules it turns red.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from harness.driver.device import DeviceDriver
from harness.driver.errors import FeaturesRefusedError
from harness.driver.interface import Buffer, QueueLayout
from harness.driver.interface import Request as DriverRequest
from harness.driver.transport.mmio import MmioModern
from harness.targets.disk import Disk
from harness.virtio.blk import REQUEST_HEADER, RequestType, segment
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask
from harness.virtio.pci import CAP, CapType
from harness.virtio.ring import (
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
)

ACKNOWLEDGE, DRIVER = DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER
DRIVER_OK, FEATURES_OK = DeviceStatus.DRIVER_OK, DeviceStatus.FEATURES_OK
SUSPEND, FAILED = DeviceStatus.SUSPEND, DeviceStatus.FAILED
CHOSEN = ACKNOWLEDGE | DRIVER | FEATURES_OK
RUNNING = CHOSEN | DRIVER_OK
V1 = Feature.VERSION_1.mask
NEXT, WRITE, INDIRECT = DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT

REGISTER_BAR = 4
NOTIFY = 0x3000
DEVICE = 0x2000
"""The BAR of the model's structures, and offsets in it."""

WRITEBACK = 32
NUM_QUEUES = 34
"""Offsets in the device configuration."""

LYING = 3.0
"""Seconds after which the model has seen that a chain was not announced."""

QUEUE_SIZE = 8


@dataclass(frozen=True)
class Breach:
    """A breach: `work` breaks exactly the `rules`. `way` is the target, `spec` fields of the disk.

    `whims` are those that the device needs.
    """

    work: Callable[[Disk], None]
    rules: frozenset[str]
    way: str = "model-pci"
    whims: tuple[str, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the breach."""
        return self.work.__name__.strip("_").replace("_", "-")

    @property
    def text(self) -> str:
        """Return what the driver does."""
        return " ".join((self.work.__doc__ or "").split())


BREACHES: list[Breach] = []

Work = Callable[[Disk], None]


def breach(
    *rules: str, way: str = "model-pci", whims: tuple[str, ...] = (), **spec: Any
) -> Callable[[Work], Work]:
    """Register the function as a breach of these rules."""

    def decorate(work: Work) -> Work:
        BREACHES.append(Breach(work, frozenset(rules), way, whims, spec))
        return work

    return decorate


MMIO: dict[str, Any] = {"way": "qtest-mmio"}
LEGACY: dict[str, Any] = {"way": "model-pci-legacy"}
ZONES: dict[str, Any] = {
    "capacity": 16384,
    "zoned": "host-managed",
    "zone_sectors": 1024,
    "zone_capacity": 512,
    "write_granularity": 4096,
    "max_append_sectors": 64,
    "conventional_zones": 1,
    "secure_erase": True,
}


# --- the device status (virtio 2.1, 3.1)


def begin(disk: Disk) -> None:
    """Reset the device, and set ACKNOWLEDGE and DRIVER."""
    disk.driver.reset()
    disk.driver.set_status(ACKNOWLEDGE)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER)


@breach("2.1.1-R-01", "3.1.1-R-01")
def leaves_features_ok_out(disk: Disk) -> None:
    """Set DRIVER_OK without FEATURES_OK."""
    begin(disk)
    disk.driver.offered()
    disk.driver.accept(V1)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK)


@breach("2.1.1-R-02")
def clears_acknowledge(disk: Disk) -> None:
    """Set DRIVER, and clear ACKNOWLEDGE."""
    disk.driver.reset()
    disk.driver.set_status(ACKNOWLEDGE)
    disk.driver.set_status(DRIVER)


@breach("2.1.1-R-02", "2.1.1-R-03")
def starts_again_after_failed(disk: Disk) -> None:
    """Set FAILED, then ACKNOWLEDGE and DRIVER again without a reset."""
    begin(disk)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER | FAILED)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER)


@breach("3.1.1-R-01")
def skips_the_check_of_features_ok(disk: Disk) -> None:
    """Set DRIVER_OK, and do not read the status after FEATURES_OK."""
    begin(disk)
    disk.driver.offered()
    disk.driver.accept(V1)
    disk.driver.set_status(CHOSEN)
    disk.driver.set_status(RUNNING)


@breach("3.1.1-R-02b")
def writes_the_configuration_early(disk: Disk) -> None:
    """Write writeback before FEATURES_OK."""
    begin(disk)
    disk.driver.config_write(WRITEBACK, b"\1")


@breach("3.1.1-R-03")
def accepts_more_after_features_ok(disk: Disk) -> None:
    """Write another feature bit to driver_feature after FEATURES_OK."""
    disk.driver.negotiate(V1)
    disk.driver.register_write("driver_feature_select", 0)
    disk.driver.register_write("driver_feature", Feature.INDIRECT_DESC.mask)


@breach("3.1.1-R-04", "6.1-R-01")
def does_not_say_that_it_failed(disk: Disk) -> None:
    """Go on without FAILED after the device has refused the features."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(Feature.INDIRECT_DESC.mask)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER)


@breach("3.1.1-R-05", "6.1-R-01")
def goes_on_after_failed(disk: Disk) -> None:
    """Set FAILED after the device has refused the features, then DRIVER_OK."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(Feature.INDIRECT_DESC.mask)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER | FAILED)
    disk.driver.set_status(RUNNING | FAILED)


@breach("3.1.1-R-06")
def notifies_too_early(disk: Disk) -> None:
    """Notify a virtqueue before DRIVER_OK."""
    disk.driver.negotiate(V1)
    disk.driver.queue_setup(0)
    disk.driver.queue_kick(0)


@breach("2.4.2-R-01", "4.1.4.3.2-R-05")
def does_not_wait_for_the_reset(disk: Disk) -> None:
    """Write the status again after a 0, and do not read it in between."""
    disk.driver.set_status(0)
    disk.driver.set_status(ACKNOWLEDGE)


# --- suspension (virtio 3.4)


def suspended(disk: Disk) -> None:
    """Start the device with SUSPEND, and suspend it."""
    disk.start(V1 | Feature.SUSPEND.mask)
    disk.driver.set_status(RUNNING | SUSPEND)
    disk.driver.status()


@breach("3.4.1-R-01")
def suspends_without_the_feature(disk: Disk) -> None:
    """Set SUSPEND, and the feature was not negotiated."""
    disk.start(V1)
    disk.driver.set_status(RUNNING | SUSPEND)


@breach("3.4.1-R-02")
def does_not_look_whether_it_is_suspended(disk: Disk) -> None:
    """Suspend the device and resume it, and do not read the status in between."""
    disk.start(V1 | Feature.SUSPEND.mask)
    disk.driver.set_status(RUNNING | SUSPEND)
    disk.driver.set_status(RUNNING)


@breach("3.4.1-R-03")
def adds_buffers_while_suspended(disk: Disk) -> None:
    """Make a buffer available while the device is suspended."""
    disk.start(V1 | Feature.SUSPEND.mask)
    disk.read(0)
    disk.driver.set_status(RUNNING | SUSPEND)
    disk.driver.status()
    disk.driver.queue_publish(0, [disk.driver.queue_add(0, request_buffers(disk))])
    disk.driver.set_status(RUNNING)
    disk.driver.status()
    disk.driver.queue_kick(0)


@breach("3.4.1-R-04")
def notifies_while_suspended(disk: Disk) -> None:
    """Notify a virtqueue while the device is suspended."""
    suspended(disk)
    disk.driver.queue_kick(0)


@breach("3.4.1-R-05")
def writes_the_configuration_while_suspended(disk: Disk) -> None:
    """Write writeback while the device is suspended."""
    suspended(disk)
    disk.driver.config_write(WRITEBACK, b"\0")


@breach("3.4.1-R-06")
def does_not_wait_for_the_resumption(disk: Disk) -> None:
    """Resume the device and notify a virtqueue, and do not read the status in between."""
    suspended(disk)
    disk.driver.set_status(RUNNING)
    disk.driver.queue_kick(0)


# --- features (virtio 2.2, 5.2.5, 6)


@breach("2.2.1-R-01a")
def accepts_too_much(disk: Disk) -> None:
    """Accept BLK_RO, which is not offered."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(V1 | Feature.BLK_RO.mask)


@breach("2.2.1-R-03a", "2.2.1-R-03b", whims=("future-bits",))
def accepts_an_unknown_bit(disk: Disk) -> None:
    """Accept the bits that version 1.4 does not define."""
    begin(disk)
    unknown = disk.driver.offered() & ~mask(*Feature)
    disk.start(V1 | unknown)


@breach("6.1-R-01")
def does_not_accept_version_1(disk: Disk) -> None:
    """Choose no feature at all."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(0)


@breach("6.1-R-05")
def does_not_accept_packed(disk: Disk) -> None:
    """Do not accept RING_PACKED."""
    disk.start(V1 | Feature.NOTIF_CONFIG_DATA.mask)


@breach("6.1-R-06", whims=("order-platform",))
def does_not_accept_order_platform(disk: Disk) -> None:
    """Do not accept ORDER_PLATFORM."""
    disk.start(V1)


@breach("6.1-R-12")
def does_not_accept_own_data(disk: Disk) -> None:
    """Do not accept NOTIF_CONFIG_DATA."""
    disk.start(V1 | Feature.RING_PACKED.mask)


@breach("5.2.6.1-R-03", read_only=True)
def does_not_accept_read_only(disk: Disk) -> None:
    """Do not accept BLK_RO of a read-only disk."""
    disk.start(V1)


@breach("5.2.5.1-R-06", "2.2.1-R-01a", **ZONES)
def accepts_discard_of_zones(disk: Disk) -> None:
    """Accept BLK_DISCARD of a host-managed zoned disk, which also does not offer it."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(mask(Feature.VERSION_1, Feature.BLK_ZONED, Feature.BLK_DISCARD))


@breach("6.3-L-03b", **LEGACY)
def does_not_accept_any_layout(disk: Disk) -> None:
    """Do not accept ANY_LAYOUT on the legacy interface."""
    disk.driver.negotiate(0)


@breach("6.3-L-04", **LEGACY)
def accepts_bit_30(disk: Disk) -> None:
    """Accept bit 30 on the legacy interface."""
    disk.driver.negotiate(mask(Feature.UNUSED_30, Feature.ANY_LAYOUT))


# --- split virtqueues (virtio 2.7)


def request_buffers(disk: Disk) -> list[Buffer]:
    """Return the buffers of a read of sector 0."""
    place = disk.driver.alloc(1024)
    disk.driver.memory_write(place, REQUEST_HEADER.pack(RequestType.IN, 0, 0))
    return [
        Buffer(place, REQUEST_HEADER.size),
        Buffer(place + 16, 512, True),
        Buffer(place + 600, 1, True),
    ]


def ring(disk: Disk, *features: Feature, size: int = QUEUE_SIZE) -> QueueLayout:
    """Start the device with one virtqueue."""
    disk.start(mask(Feature.VERSION_1, *features), queue_size=size)
    return disk.queues[0]


def put(
    disk: Disk, at: QueueLayout, slot: int, buffer: Buffer, flags: int = 0, following: int = 0
) -> None:
    """Write a descriptor of a split virtqueue."""
    flags |= WRITE if buffer.writable else 0
    data = DESC.pack(buffer.address, buffer.length, flags, following)
    disk.driver.memory_write(at.desc + DESC_SIZE * slot, data)


def offer(disk: Disk, at: QueueLayout, head: int = 0, index: int = 1, flags: int = 0) -> None:
    """Write head, flags and index of the available ring, notify, and wait until it is taken."""
    slot = at.driver + 4 + 2 * ((index - 1) % at.size)
    disk.driver.memory_write(slot, head.to_bytes(2, "little"))
    disk.driver.memory_write(at.driver, flags.to_bytes(2, "little") + index.to_bytes(2, "little"))
    disk.driver.queue_kick(0)
    disk.driver.status()


def tabled(disk: Disk, *entries: tuple[Buffer, int, int]) -> Buffer:
    """Return an indirect table of entries: buffer, flags, next."""
    place = disk.driver.alloc(DESC_SIZE * len(entries))
    table = b"".join(
        DESC.pack(buffer.address, buffer.length, flags | (WRITE if buffer.writable else 0), after)
        for buffer, flags, after in entries
    )
    disk.driver.memory_write(place, table)
    return Buffer(place, len(table))


@breach("2.7.1-R-01")
def misaligns_a_split_queue(disk: Disk) -> None:
    """Put the descriptor table at an address that is no multiple of 16."""
    place_of_queue(disk, desc=8)


def place_of_queue(disk: Disk, features: int = 0, desc: int = 0, driver: int = 0) -> None:
    """Set up a virtqueue whose parts are moved by some bytes, and notify it."""
    disk.driver.negotiate(V1 | features)
    place = disk.driver.alloc(4096)
    registers = {"queue_select": 0, "queue_size": QUEUE_SIZE, "queue_desc": place + desc}
    registers |= {"queue_driver": place + 1024 + driver, "queue_device": place + 2048}
    for name, value in registers.items():
        disk.driver.register_write(name, value)
    disk.driver.register_write("queue_enable", 1)
    disk.driver.set_status(RUNNING)
    disk.driver.bar_write(REGISTER_BAR, NOTIFY, 2, 0)
    disk.driver.status()


@breach("2.7.4.2-R-01")
def puts_writable_first(disk: Disk) -> None:
    """Put a device-writable element before a device-readable one."""
    at = ring(disk)
    header, data, _ = request_buffers(disk)
    put(disk, at, 0, data, NEXT, 1)
    put(disk, at, 1, header)
    offer(disk, at)


@breach("2.7.5.2-R-01")
def links_a_chain_to_a_loop(disk: Disk) -> None:
    """Link a descriptor to itself."""
    at = ring(disk)
    put(disk, at, 0, request_buffers(disk)[0], NEXT, 0)
    offer(disk, at)


def put_all(
    disk: Disk, at: QueueLayout, slots: tuple[int, ...], buffers: list[Buffer], last: int = 0
) -> None:
    """Write a chain into these descriptors."""
    for number, (slot, buffer) in enumerate(zip(slots, buffers, strict=True)):
        end = number == len(slots) - 1
        put(disk, at, slot, buffer, 0 if end else NEXT, last if end else slots[number + 1])


@breach("2.7.5.2-R-02")
def skips_descriptors_in_order(disk: Disk) -> None:
    """Leave a descriptor out between those of a chain with IN_ORDER."""
    at = ring(disk, Feature.IN_ORDER)
    put_all(disk, at, (0, 2, 3), request_buffers(disk))
    offer(disk, at)


@breach("2.7.5.3.1-R-01")
def uses_a_table_without_the_feature(disk: Disk) -> None:
    """Use an indirect table without INDIRECT_DESC."""
    at = ring(disk)
    put(disk, at, 0, table_of_a_read(disk), INDIRECT)
    offer(disk, at)


def table_of_a_read(disk: Disk) -> Buffer:
    """Return the indirect table of a read."""
    header, data, status = request_buffers(disk)
    return tabled(disk, (header, NEXT, 1), (data, NEXT, 2), (status, 0, 0))


@breach("2.7.5.3.1-R-02")
def puts_a_table_into_a_table(disk: Disk) -> None:
    """Set INDIRECT in an entry of an indirect table."""
    at = ring(disk, Feature.INDIRECT_DESC)
    header, data, _ = request_buffers(disk)
    inner = table_of_a_read(disk)
    put(disk, at, 0, tabled(disk, (header, NEXT, 1), (inner, INDIRECT, 0), (data, 0, 0)), INDIRECT)
    offer(disk, at)


@breach("2.7.5.3.1-R-03")
def makes_a_table_longer_than_the_queue(disk: Disk) -> None:
    """Use an indirect table with more entries than the virtqueue has."""
    at = ring(disk, Feature.INDIRECT_DESC)
    header, data, status = request_buffers(disk)
    parts = [Buffer(data.address + 64 * n, 64, True) for n in range(8)]
    entries = [(header, NEXT, 1), *[(part, NEXT, n + 2) for n, part in enumerate(parts)]]
    put(disk, at, 0, tabled(disk, *entries, (status, 0, 0)), INDIRECT)
    offer(disk, at)


@breach("2.7.5.3.1-R-04")
def links_a_table(disk: Disk) -> None:
    """Set INDIRECT and NEXT in one descriptor."""
    at = ring(disk, Feature.INDIRECT_DESC)
    put(disk, at, 0, table_of_a_read(disk), INDIRECT | NEXT, 1)
    put(disk, at, 1, Buffer(0, 0))
    offer(disk, at)


@breach("2.7.5.3.1-R-05")
def links_a_table_out_of_order(disk: Disk) -> None:
    """Link the entries of an indirect table out of their order with IN_ORDER."""
    at = ring(disk, Feature.INDIRECT_DESC, Feature.IN_ORDER)
    header, data, status = request_buffers(disk)
    table = tabled(disk, (header, NEXT, 2), (status, 0, 0), (data, NEXT, 1))
    put(disk, at, 0, table, INDIRECT)
    offer(disk, at)


@breach("2.7.6.1-R-01")
def takes_an_index_back(disk: Disk) -> None:
    """Set the available index to 2, and then to 1."""
    at = ring(disk)
    put_all(disk, at, (0, 1, 2), request_buffers(disk))
    offer(disk, at)
    offer(disk, at, index=2)
    offer(disk, at, index=1)


@breach("2.7.7.1-R-01")
def sets_another_flag(disk: Disk) -> None:
    """Set the available ring's flags to 2 without EVENT_IDX."""
    at = ring(disk)
    put_all(disk, at, (0, 1, 2), request_buffers(disk))
    offer(disk, at, flags=2)


@breach("2.7.7.1-R-03")
def sets_flags_with_event_idx(disk: Disk) -> None:
    """Set the available ring's flags to 1 with EVENT_IDX."""
    at = ring(disk, Feature.EVENT_IDX)
    put_all(disk, at, (0, 1, 2), request_buffers(disk))
    offer(disk, at, flags=1)


# --- notifications (virtio 2.7.10, 2.8.16)


@breach("2.7.10.1-R-01")
def leaves_flags_in_the_used_ring(disk: Disk) -> None:
    """Begin with flags of the used ring that are not 0."""
    at = ring(disk)
    put_all(disk, at, (0, 1, 2), request_buffers(disk))
    disk.driver.memory_write(at.device, b"\1\0")
    offer(disk, at)


@breach("2.7.10.1-R-03", whims=("polls-and-wants-no-kicks",))
def notifies_against_the_flags(disk: Disk) -> None:
    """Notify again and again while the flags of the used ring are 1."""
    ring(disk)
    for _ in range(12):
        disk.read(0)


def forgets_to_notify(disk: Disk, *features: Feature) -> None:
    """Send a request, and make another one available without a notification."""
    ring(disk, *features)
    disk.read(0)
    disk.driver.queue_publish(0, [disk.driver.queue_add(0, request_buffers(disk))])
    time.sleep(LYING)
    disk.driver.reset()


@breach("2.7.10.1-R-04")
def forgets_to_notify_by_flags(disk: Disk) -> None:
    """Make a buffer available and do not notify, without EVENT_IDX."""
    forgets_to_notify(disk)


@breach("2.7.10.1-R-06")
def forgets_to_notify_by_index(disk: Disk) -> None:
    """Make a buffer available and do not notify, with EVENT_IDX."""
    forgets_to_notify(disk, Feature.EVENT_IDX)


@breach("2.7.10.1-R-07")
def notifies_too_often(disk: Disk) -> None:
    """Notify three times for one buffer with EVENT_IDX."""
    ring(disk, Feature.EVENT_IDX)
    disk.read(0)
    for _ in range(2):
        disk.driver.queue_kick(0)
    disk.driver.status()


@breach("2.8.16-R-03")
def names_another_descriptor(disk: Disk) -> None:
    """Notify with an offset at which no list of the packed virtqueue ends."""
    ring(disk, Feature.RING_PACKED, Feature.NOTIFICATION_DATA)
    disk.driver.queue_publish(0, [disk.driver.queue_add(0, request_buffers(disk))])
    disk.driver.bar_write(REGISTER_BAR, NOTIFY, 4, 5 << 16)
    disk.driver.status()


# --- packed virtqueues (virtio 2.8)


def put_packed(
    disk: Disk, at: QueueLayout, slot: int, buffer: Buffer, flags: int = 0, ident: int = 0
) -> None:
    """Write a descriptor of a packed virtqueue in the first round."""
    flags |= WRITE if buffer.writable else 0
    data = PACKED_DESC.pack(buffer.address, buffer.length, ident, flags | PACKED_DESC_F_AVAIL)
    disk.driver.memory_write(at.desc + DESC_SIZE * slot, data)


def kick(disk: Disk) -> None:
    """Notify virtqueue 0, and wait until the device has looked at it."""
    disk.driver.queue_kick(0)
    disk.driver.status()


@breach("2.8.11-R-01")
def misaligns_a_packed_queue(disk: Disk) -> None:
    """Put the driver area of a packed virtqueue at an address that is no multiple of 4."""
    place_of_queue(disk, Feature.RING_PACKED.mask, driver=2)


def changes_a_descriptor(disk: Disk, *features: Feature) -> None:
    """Change the length of a descriptor while the request waits for its turn."""
    at = ring(disk, *features)
    disk.read(0)
    token = disk.driver.submit([DriverRequest(RequestType.IN, 0, receive=512)])[0]
    disk.driver.status()
    slots = range(at.size)
    for slot in slots:
        place = at.desc + DESC_SIZE * slot + 8
        length = int.from_bytes(disk.driver.memory_read(place, 4), "little")
        if length == 512:
            disk.driver.memory_write(place, (511).to_bytes(4, "little"))
    disk.driver.complete([token])


@breach("3.3.1-R-01", iops=10)
def changes_a_split_descriptor(disk: Disk) -> None:
    """Change a descriptor of a split virtqueue that the device has not used yet."""
    changes_a_descriptor(disk)


@breach("3.3.1-R-01", "2.8.16-R-01", "2.8.16-R-02", iops=10)
def changes_a_packed_descriptor(disk: Disk) -> None:
    """Change a descriptor of a packed virtqueue that the device has not used yet."""
    changes_a_descriptor(disk, Feature.RING_PACKED)


def many_buffers(disk: Disk, count: int) -> list[Buffer]:
    """Return the buffers of a read of `count` sectors, each with an element of its own."""
    header, _, status = request_buffers(disk)
    place = disk.driver.alloc(512 * count)
    return [header, *[Buffer(place + 512 * n, 512, True) for n in range(count)], status]


def more_than_seg_max(disk: Disk, indirect: bool) -> None:
    """Send a read with one element of data more than seg_max."""
    ring(disk, Feature.RING_PACKED, Feature.BLK_SEG_MAX, Feature.INDIRECT_DESC, size=256)
    count = (disk.driver.config().seg_max or 0) + 1
    head = disk.driver.queue_add(0, many_buffers(disk, count), indirect)
    disk.driver.queue_publish(0, [head])
    kick(disk)


@breach("2.8.17-R-01")
def makes_a_list_too_long(disk: Disk) -> None:
    """Use more elements of data than seg_max in a packed virtqueue."""
    more_than_seg_max(disk, indirect=False)


@breach("2.8.19-R-03")
def makes_a_packed_table_too_long(disk: Disk) -> None:
    """Use more elements of data than seg_max in an indirect table of a packed virtqueue."""
    more_than_seg_max(disk, indirect=True)


@breach("2.8.17-R-02")
def makes_a_list_longer_than_the_queue(disk: Disk) -> None:
    """Set NEXT in every descriptor of a packed virtqueue."""
    at = ring(disk, Feature.RING_PACKED, size=4)
    header, *_ = request_buffers(disk)
    for slot in range(4):
        put_packed(disk, at, slot, header, NEXT)
    kick(disk)


@breach("2.8.17-R-03")
def puts_writable_first_in_a_list(disk: Disk) -> None:
    """Put a device-writable element before a readable one in a packed virtqueue."""
    at = ring(disk, Feature.RING_PACKED)
    header, data, _ = request_buffers(disk)
    put_packed(disk, at, 1, header)
    put_packed(disk, at, 0, data, NEXT)
    kick(disk)


@breach("2.8.17-R-05", iops=4)
def overwrites_a_list(disk: Disk) -> None:
    """Make a list available that has no room behind those in flight."""
    at = ring(disk, Feature.RING_PACKED, size=4)
    disk.driver.status()
    for place in (0, 3, 6):
        buffers = request_buffers(disk)
        for number in (2, 1, 0):
            slot, wrap = (place + number) % 4, (place + number) // 4 % 2 == 0
            flags = (NEXT if number < 2 else 0) | (WRITE if number else 0)
            flags |= PACKED_DESC_F_AVAIL if wrap else 1 << 15
            buffer = buffers[number]
            data = PACKED_DESC.pack(buffer.address, buffer.length, place, flags)
            disk.driver.memory_write(at.desc + DESC_SIZE * slot, data)
        kick(disk)
    disk.driver.reset()


@breach("2.8.17-R-06")
def makes_the_first_available_first(disk: Disk) -> None:
    """Make the first descriptor of a list available while another one is not."""
    at = ring(disk, Feature.RING_PACKED)
    header, data, status = request_buffers(disk)
    put_packed(disk, at, 2, status)
    put_packed(disk, at, 1, data, NEXT)
    place = at.desc + DESC_SIZE + 14
    disk.driver.memory_write(place, (NEXT | WRITE).to_bytes(2, "little"))
    put_packed(disk, at, 0, header, NEXT)
    kick(disk)


@breach("2.8.19-R-01")
def uses_a_packed_table_without_the_feature(disk: Disk) -> None:
    """Use an indirect table in a packed virtqueue without INDIRECT_DESC."""
    at = ring(disk, Feature.RING_PACKED)
    put_packed(disk, at, 0, packed_table(disk), INDIRECT)
    kick(disk)


def packed_table(disk: Disk, flags: int = 0) -> Buffer:
    """Return the indirect table of a read, with more flags in each entry."""
    place = disk.driver.alloc(3 * DESC_SIZE)
    table = b"".join(
        PACKED_DESC.pack(b.address, b.length, 0, flags | (WRITE if b.writable else 0))
        for b in request_buffers(disk)
    )
    disk.driver.memory_write(place, table)
    return Buffer(place, len(table))


@breach("2.8.19-R-02")
def sets_flags_in_a_packed_table(disk: Disk) -> None:
    """Set NEXT in the entries of an indirect table of a packed virtqueue."""
    at = ring(disk, Feature.RING_PACKED, Feature.INDIRECT_DESC)
    put_packed(disk, at, 0, packed_table(disk, NEXT), INDIRECT)
    kick(disk)


@breach("2.8.19-R-04")
def lists_a_table(disk: Disk) -> None:
    """Put a descriptor with INDIRECT into a list."""
    at = ring(disk, Feature.RING_PACKED, Feature.INDIRECT_DESC)
    header, *_ = request_buffers(disk)
    put_packed(disk, at, 1, packed_table(disk), INDIRECT)
    put_packed(disk, at, 0, header, NEXT)
    kick(disk)


@breach("6.1-R-04")
def hands_over_an_address_outside_memory(disk: Disk) -> None:
    """Use a buffer at an address where no memory is."""
    at = ring(disk)
    header, _, status = request_buffers(disk)
    put_all(disk, at, (0, 1, 2), [header, Buffer(1 << 44, 512, True), status])
    offer(disk, at)


# --- registers (virtio 2.5, 2.6.1, 4.1)


@breach("4.1.4.3.2-R-01")
def writes_a_read_only_register(disk: Disk) -> None:
    """Write num_queues."""
    disk.driver.register_write("num_queues", 1)


@breach("4.1.4.3.2-R-02")
def asks_for_an_empty_packed_queue(disk: Disk) -> None:
    """Write 0 to queue_size with RING_PACKED."""
    disk.driver.negotiate(V1 | Feature.RING_PACKED.mask)
    disk.driver.register_write("queue_size", 0)


@breach("4.1.4.3.2-R-03")
def asks_for_three_descriptors(disk: Disk) -> None:
    """Write 3 to queue_size without RING_PACKED."""
    disk.driver.negotiate(V1)
    disk.driver.register_write("queue_size", 3)


@breach("4.1.4.3.2-R-04")
def enables_a_queue_without_addresses(disk: Disk) -> None:
    """Enable a virtqueue whose addresses were not written."""
    disk.driver.negotiate(V1)
    disk.driver.register_write("queue_enable", 1)


@breach("4.1.4.3.2-R-06")
def disables_a_queue(disk: Disk) -> None:
    """Write 0 to queue_enable."""
    disk.start(V1)
    disk.driver.register_write("queue_enable", 0)


def reset_queue(disk: Disk, look: bool, addresses: bool) -> None:
    """Reset virtqueue 0 and enable it again."""
    at = ring(disk, Feature.RING_RESET)
    disk.driver.register_write("queue_reset", 1)
    if look:
        disk.driver.register_read("queue_reset")
    if addresses:
        for name in ("desc", "driver", "device"):
            disk.driver.register_write(f"queue_{name}", getattr(at, name))
    disk.driver.register_write("queue_enable", 1)


@breach("4.1.4.3.2-R-07", "2.6.1.1.2-R-01")
def does_not_wait_for_the_queue_reset(disk: Disk) -> None:
    """Enable a virtqueue after queue_reset, and do not read this register in between."""
    reset_queue(disk, look=False, addresses=True)


@breach("2.6.1.2.2-R-01")
def does_not_set_the_queue_up_again(disk: Disk) -> None:
    """Enable a virtqueue after a queue reset, and do not write its addresses."""
    reset_queue(disk, look=True, addresses=False)


@breach("4.1.3.1-R-01")
def reads_half_a_field(disk: Disk) -> None:
    """Read seg_max by 16 bits."""
    disk.driver.bar_read(REGISTER_BAR, DEVICE + 12, 2)


@breach("2.5.1-R-02")
def reads_a_field_that_is_not_there(disk: Disk) -> None:
    """Read num_queues, though BLK_MQ is not offered."""
    disk.driver.config_read(NUM_QUEUES, 2)


@breach("5.2.5.1-R-04")
def reads_writeback_early(disk: Disk) -> None:
    """Read writeback before FEATURES_OK."""
    begin(disk)
    disk.driver.config_read(WRITEBACK, 1)


@breach("2.5.1-R-01b")
def does_not_read_the_generation(disk: Disk) -> None:
    """Read the capacity without the config generation."""
    disk.start(V1)
    disk.driver.config_read(0, 8)
    disk.read(0)


@breach("2.5.1-R-01a", "2.5.1-R-01b")
def takes_two_halves_for_one(disk: Disk) -> None:
    """Read the halves of the capacity before and after a resize, and not again."""
    disk.driver.service_interrupts(False)
    disk.start(V1)
    disk.driver.config_read(0, 4)
    disk.resize(4096)
    disk.driver.config_read(4, 4)
    disk.read(0)


@breach("5.2.6.1-R-01")
def does_not_look_at_a_new_capacity(disk: Disk) -> None:
    """Send 70 requests after a configuration change, and do not read the capacity."""
    disk.driver.service_interrupts(False)
    disk.start(V1)
    disk.resize(4096)
    for _ in range(70):
        disk.read(0)


@breach("4.1.5.1.2.2-R-04")
def maps_a_vector_that_is_not_there(disk: Disk) -> None:
    """Write 500 to config_msix_vector."""
    disk.driver.register_write("config_msix_vector", 500)


@breach("4.1.5.1.2.2-R-05")
def does_not_read_a_vector_back(disk: Disk) -> None:
    """Map a virtqueue to a vector, and do not read the register."""
    disk.driver.register_write("queue_msix_vector", 1)
    disk.driver.register_write("queue_select", 0)


@breach("4.1.4.5.2-R-01")
def reads_isr_status_with_msix(disk: Disk) -> None:
    """Read ISR status after an interrupt of a virtqueue that came by MSI-X."""
    disk.driver.use_msix(2)
    disk.start(V1)
    disk.read(0)
    disk.driver.isr()


def notify_by(disk: Disk, features: int, width: int, value: int) -> None:
    """Start the device with these features, and write to the notification structure."""
    disk.start(V1 | features)
    disk.driver.bar_write(REGISTER_BAR, NOTIFY, width, value)


@breach("4.1.5.2.1-R-01")
def notifies_by_32_bits(disk: Disk) -> None:
    """Notify by 32 bits without NOTIFICATION_DATA."""
    notify_by(disk, 0, 4, 0)


@breach("4.1.5.2.1-R-02")
def notifies_by_16_bits(disk: Disk) -> None:
    """Notify by 16 bits with NOTIFICATION_DATA."""
    notify_by(disk, Feature.NOTIFICATION_DATA.mask, 2, 0)


@breach("4.1.5.2.1-R-03")
def notifies_by_another_index(disk: Disk) -> None:
    """Notify virtqueue 0 by the index 1."""
    notify_by(disk, 0, 2, 1)


@breach("4.1.5.2.1-R-04")
def notifies_by_another_index_with_data(disk: Disk) -> None:
    """Notify virtqueue 0 by the index 1 with NOTIFICATION_DATA."""
    notify_by(disk, Feature.NOTIFICATION_DATA.mask, 4, 1)


@breach("4.1.5.2.1-R-05")
def notifies_without_its_own_data(disk: Disk) -> None:
    """Notify by the index with NOTIF_CONFIG_DATA."""
    notify_by(disk, Feature.NOTIF_CONFIG_DATA.mask, 2, 0)


@breach("4.1.5.2.1-R-06")
def notifies_without_its_own_data_in_the_field(disk: Disk) -> None:
    """Notify by the index with NOTIF_CONFIG_DATA and NOTIFICATION_DATA."""
    notify_by(disk, mask(Feature.NOTIF_CONFIG_DATA, Feature.NOTIFICATION_DATA), 4, 0)


def capability(disk: Disk, kind: CapType) -> int:
    """Return where a capability is in PCI configuration space."""
    return next(known.at for known in disk.driver.capabilities() if known.type == kind)


@breach("4.1.4.1-R-07")
def writes_a_capability(disk: Disk) -> None:
    """Write to the capability of the common configuration."""
    disk.driver.pci_write(capability(disk, CapType.COMMON_CFG) + 4, b"\4")


def use_window(disk: Disk, offset: int, length: int, width: int) -> None:
    """Read by the PCI configuration window."""
    at = capability(disk, CapType.PCI_CFG)
    disk.driver.pci_write(at + 4, bytes([REGISTER_BAR]))
    disk.driver.pci_write(at + 8, offset.to_bytes(4, "little"))
    disk.driver.pci_write(at + 12, length.to_bytes(4, "little"))
    disk.driver.pci_read(at + CAP.size, width)


@breach("4.1.4.9.2-R-01a")
def misaligns_the_window(disk: Disk) -> None:
    """Read by the PCI configuration window at an offset that is no multiple of the length."""
    use_window(disk, 2, 4, 4)


@breach("4.1.4.9.2-R-01b")
def reads_more_than_the_window(disk: Disk) -> None:
    """Read 4 bytes of pci_cfg_data though the length is 1."""
    use_window(disk, 0x14, 1, 4)


@breach("4.1.4.9.2-R-02")
def points_the_window_elsewhere(disk: Disk) -> None:
    """Read by the PCI configuration window where no structure is."""
    use_window(disk, 0x800, 4, 4)


# --- the legacy interface


@breach("4.1.4.10-L-02", **LEGACY)
def mixes_the_interfaces(disk: Disk) -> None:
    """Write to the common configuration while the legacy interface is in use."""
    disk.start()
    disk.driver.bar_write(REGISTER_BAR, 0, 4, 0)


@breach("4.1.4.10-L-04", **LEGACY)
def reads_vectors_as_configuration(disk: Disk) -> None:
    """Read 32 bits of the configuration where the vectors are with MSI-X."""
    disk.driver.use_msix(2)
    disk.start()
    disk.driver.bar_read(0, 0x14, 4)


@breach("2.5.4-L-01", **LEGACY)
def reads_a_legacy_capacity_once(disk: Disk) -> None:
    """Read the capacity once, and send a request."""
    disk.start()
    disk.driver.config_read(0, 8)
    disk.read(0)


@breach("2.7.2-L-01a", **LEGACY)
def does_not_read_the_size(disk: Disk) -> None:
    """Write the address of a virtqueue, and do not read its size."""
    disk.driver.negotiate()
    disk.driver.register_write("queue_select", 0)
    disk.driver.register_write("queue_address", disk.driver.alloc(16384, 4096) // 4096)


@breach("3.1.2-L-01", **LEGACY)
def sets_features_ok(disk: Disk) -> None:
    """Set FEATURES_OK on the legacy interface."""
    begin(disk)
    disk.driver.accept(Feature.ANY_LAYOUT.mask)
    disk.driver.set_status(RUNNING)


@breach("5.2.6.4-L-01", "6.3-L-03b", **LEGACY)
def cuts_the_header(disk: Disk) -> None:
    """Use two descriptors for the header without ANY_LAYOUT."""
    disk.start(0)
    disk.read(0, readable=(8, 8))


# --- requests (virtio 5.2.6)


@breach("5.2.6.1-R-02")
def reads_beyond_the_end(disk: Disk) -> None:
    """Read the last sector and the one after it."""
    disk.start(V1)
    disk.read(disk.spec.capacity - 1, 2)


@breach("5.2.6.1-R-04")
def flushes_a_sector(disk: Disk) -> None:
    """Send a FLUSH with another sector than 0."""
    disk.start(V1 | Feature.BLK_FLUSH.mask)
    disk.request(RequestType.FLUSH, 5)


@breach("5.2.6.1-R-05")
def flushes_with_data(disk: Disk) -> None:
    """Send a FLUSH with data."""
    disk.start(V1 | Feature.BLK_FLUSH.mask)
    disk.request(RequestType.FLUSH, data=bytes(512))


@breach("5.2.6.1-R-06")
def sends_half_a_sector(disk: Disk) -> None:
    """Write 256 bytes."""
    disk.start(V1)
    disk.request(RequestType.OUT, 5, b"a" * 256)


@breach("5.2.6.1-R-07")
def cuts_a_segment(disk: Disk) -> None:
    """Send a DISCARD with 15 bytes."""
    disk.start(V1 | Feature.BLK_DISCARD.mask)
    disk.discard(segment(0, 8)[:15])


@breach("5.2.6.1-R-08")
def asks_for_half_an_id(disk: Disk) -> None:
    """Send a GET_ID with 10 bytes."""
    disk.start(V1)
    disk.request(RequestType.GET_ID, receive=10)


@breach("5.2.6.1-R-09")
def discards_too_many_segments(disk: Disk) -> None:
    """Send a DISCARD with more segments than max_discard_seg."""
    disk.start(V1 | Feature.BLK_DISCARD.mask)
    disk.discard(*[segment(0, 8)] * ((disk.driver.config().max_discard_seg or 0) + 1))


@breach("5.2.6.1-R-10", secure_erase=True)
def erases_too_many_segments(disk: Disk) -> None:
    """Send a SECURE_ERASE with more segments than max_secure_erase_seg."""
    disk.start(V1 | Feature.BLK_SECURE_ERASE.mask)
    disk.secure_erase(*[segment(0, 8)] * ((disk.driver.config().max_secure_erase_seg or 0) + 1))


@breach("5.2.6.1-R-11")
def zeroes_too_many_segments(disk: Disk) -> None:
    """Send a WRITE_ZEROES with more segments than max_write_zeroes_seg."""
    disk.start(V1 | Feature.BLK_WRITE_ZEROES.mask)
    disk.write_zeroes(*[segment(0, 8)] * ((disk.driver.config().max_write_zeroes_seg or 0) + 1))


@breach("5.2.6.1-R-14")
def unmaps_in_a_discard(disk: Disk) -> None:
    """Send a DISCARD with the unmap bit."""
    disk.start(V1 | Feature.BLK_DISCARD.mask)
    disk.discard(segment(0, 8, 1))


def zones(disk: Disk) -> None:
    """Start a zoned disk."""
    disk.start(mask(Feature.VERSION_1, Feature.BLK_ZONED, Feature.BLK_SECURE_ERASE))


@breach("5.2.6.1-R-18", **ZONES)
def reports_beyond_the_end(disk: Disk) -> None:
    """Send a ZONE_REPORT with a sector beyond the capacity."""
    zones(disk)
    disk.request(RequestType.ZONE_REPORT, disk.spec.capacity, receive=128)


@breach("5.2.6.1-R-20", **ZONES)
def opens_half_a_zone(disk: Disk) -> None:
    """Send a ZONE_OPEN with a sector in the middle of a zone."""
    zones(disk)
    disk.request(RequestType.ZONE_OPEN, 1024 + 8)


@breach("5.2.6.1-R-21", **ZONES)
def resets_all_from_a_sector(disk: Disk) -> None:
    """Send a ZONE_RESET_ALL with another sector than 0."""
    zones(disk)
    disk.request(RequestType.ZONE_RESET_ALL, 1024)


@breach("5.2.6.1-R-22", **ZONES)
def appends_in_the_middle(disk: Disk) -> None:
    """Send a ZONE_APPEND with a sector in the middle of a zone."""
    zones(disk)
    disk.request(RequestType.ZONE_APPEND, 1024 + 8, bytes(4096), receive=8)


@breach("5.2.6.1-R-23a", "5.2.6.1-R-25", **ZONES)
def appends_a_fragment(disk: Disk) -> None:
    """Send a ZONE_APPEND with data that is no multiple of write_granularity."""
    zones(disk)
    disk.request(RequestType.ZONE_APPEND, 1024, bytes(512), receive=8)


@breach("5.2.6.1-R-23b", **ZONES)
def appends_too_much(disk: Disk) -> None:
    """Send a ZONE_APPEND with more data than max_append_sectors."""
    zones(disk)
    disk.request(RequestType.ZONE_APPEND, 1024, bytes(65 * 512 + 7 * 512), receive=8)


@breach("5.2.6.1-R-25", **ZONES)
def writes_beyond_a_zone(disk: Disk) -> None:
    """Write beyond the capacity of a sequential zone."""
    zones(disk)
    disk.write(1024 + 512, bytes(4096))


@breach("5.2.6.2-D-38", **ZONES)
def erases_half_a_zone(disk: Disk) -> None:
    """Send a SECURE_ERASE of a part of a zone."""
    zones(disk)
    disk.secure_erase(segment(1024, 8))


# --- virtio-mmio (virtio 4.2)


@breach("4.2.2.2-R-01a", **MMIO)
def writes_where_no_register_is(disk: Disk) -> None:
    """Write to the offset 0x28, where no register is."""
    assert isinstance(disk.driver, DeviceDriver)
    assert isinstance(disk.driver.transport, MmioModern)
    disk.driver.transport.window.write(0x28, 4, 0)


@breach("4.2.2.2-R-01b", **MMIO)
def writes_the_version(disk: Disk) -> None:
    """Write Version, which is read-only."""
    disk.driver.register_write("Version", 2)


@breach("4.2.2.2-R-01c", **MMIO)
def reads_a_selector(disk: Disk) -> None:
    """Read QueueSel, which is write-only."""
    disk.driver.register_read("QueueSel")


@breach("4.2.2.2-R-02", **MMIO)
def reads_the_status_by_8_bits(disk: Disk) -> None:
    """Read Status by 8 bits."""
    disk.driver.register_read("Status", 1)


@breach("4.2.2.2-R-03", **MMIO)
def writes_half_a_field(disk: Disk) -> None:
    """Write 16 bits of seg_max."""
    disk.driver.negotiate(V1)
    disk.driver.config_write(12, bytes(2))


@breach("4.2.2.2-R-07", **MMIO)
def reads_features_without_a_selector(disk: Disk) -> None:
    """Read DeviceFeatures after a reset, and do not write DeviceFeaturesSel."""
    disk.driver.reset()
    disk.driver.register_read("DeviceFeatures")


@breach("4.2.2.2-R-08", **MMIO)
def writes_features_without_a_selector(disk: Disk) -> None:
    """Write DriverFeatures after a reset, and do not write DriverFeaturesSel."""
    disk.driver.reset()
    disk.driver.register_write("DriverFeatures", 0)


@breach("4.2.2.2-R-09", **MMIO)
def asks_for_a_larger_queue(disk: Disk) -> None:
    """Write more than QueueSizeMax to QueueSize."""
    disk.driver.negotiate(V1)
    disk.driver.register_write("QueueSel", 0)
    disk.driver.register_write("QueueSize", 2 * disk.driver.register_read("QueueSizeMax"))


@breach("4.2.2.2-R-10", **MMIO)
def moves_a_queue_that_is_ready(disk: Disk) -> None:
    """Write an address of a virtqueue while QueueReady is 1."""
    disk.start(V1)
    disk.driver.register_write("QueueDescLow", disk.queues[0].desc)


@breach("4.2.2.2-R-11b", **MMIO)
def does_not_read_queue_ready_back(disk: Disk) -> None:
    """Write 0 to QueueReady, and do not read it back."""
    disk.start(V1)
    disk.driver.register_write("QueueReady", 0)
    disk.driver.register_write("QueueSel", 0)


@breach("4.2.2.2-R-13a", **MMIO)
def acknowledges_too_much(disk: Disk) -> None:
    """Acknowledge a configuration change that InterruptStatus does not show."""
    disk.driver.service_interrupts(False)
    disk.start(V1)
    disk.read(0)
    disk.driver.register_read("InterruptStatus")
    disk.driver.register_write("InterruptACK", 3)


@breach("4.2.2.2-R-13b", **MMIO)
def acknowledges_another_bit(disk: Disk) -> None:
    """Write bit 2 to InterruptACK."""
    disk.driver.service_interrupts(False)
    disk.start(V1)
    disk.read(0)
    disk.driver.register_write("InterruptACK", disk.driver.register_read("InterruptStatus") | 4)


@breach("4.2.3.4.1-R-01", **MMIO)
def acknowledges_without_a_look(disk: Disk) -> None:
    """Write InterruptACK, and do not read InterruptStatus."""
    disk.driver.register_write("InterruptACK", 1)


@breach("4.2.2.2-R-14", **MMIO)
def makes_a_queue_ready_too_early(disk: Disk) -> None:
    """Write 1 to QueueReset and to QueueReady, and do not read QueueReset."""
    disk.start(mask(Feature.VERSION_1, Feature.RING_RESET))
    disk.driver.register_write("QueueReset", 1)
    disk.driver.register_write("QueueReady", 1)


@breach("4.2.3.1.1-R-03", **MMIO)
def selects_shared_memory(disk: Disk) -> None:
    """Write SHMSel."""
    disk.driver.register_write("SHMSel", 0)
