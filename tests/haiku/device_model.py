"""A virtio block device in memory, behind the driver's interface.

It executes chains byte by byte as a device would, and records in `violations` everything that a
driver must not send. Only memory from `alloc` exists. An access to other memory, or to any
memory after a reset, is a BadArgumentError.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.driver.errors import BadArgumentError, DeviceTimeoutError, FeaturesRefusedError
from harness.driver.interface import (
    Buffer,
    ConfigChange,
    Driver,
    Negotiation,
    QueueLayout,
    Used,
)
from harness.virtio.blk import REQUEST_HEADER, SECTOR, BlockConfig, RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask

OFFERED = mask(
    Feature.BLK_SIZE_MAX,
    Feature.BLK_SEG_MAX,
    Feature.BLK_GEOMETRY,
    Feature.BLK_BLK_SIZE,
    Feature.BLK_FLUSH,
    Feature.BLK_TOPOLOGY,
    Feature.BLK_CONFIG_WCE,
    Feature.BLK_DISCARD,
    Feature.INDIRECT_DESC,
    Feature.VERSION_1,
)


@dataclass
class Sent:
    """A request as the device received it; `segments` are the lengths of its data descriptors."""

    type: int
    ioprio: int
    sector: int
    segments: list[int]
    ack_before: int
    indirect: bool


@dataclass
class Chain:
    head: int
    buffers: list[Buffer]
    indirect: bool


def _unused(self: Driver, *args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("the disk does not need this method")


@dataclass
class DeviceModel(Driver):
    """Capacity in sectors; `None` for a limit means that its feature is not offered.

    `answer` may choose the status of a request (None: execute it). While `held` is true the
    device takes requests and does not execute them; `release` executes them. A wait of the
    driver fails at once; `patience` records its timeouts (seconds). `during_poll` is called at
    each wait, `before_request` for each request that is executed.
    """

    capacity: int = 2048
    blk_size: int | None = None
    physical_block_exp: int | None = None
    size_max: int | None = None
    seg_max: int | None = None
    read_only: bool = False
    offered_bits: int = OFFERED
    queue_size: int = 64
    memory_limit: int = 1 << 26
    refuse_features: bool = False
    answer: Callable[[Sent], Status | None] = lambda sent: None
    held: bool = False
    during_poll: Callable[[], None] = lambda: None
    before_request: Callable[[Sent], None] = lambda sent: None
    sent: list[Sent] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)
    flushes: int = 0
    resets: int = 0
    patience: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.status_field = 0
        self.accepted_bits = 0
        self.changes: list[ConfigChange] = []
        self._areas: dict[int, bytearray] = {}
        self._next = 0x10000
        self._clear()

    def _clear(self) -> None:
        self._areas = {}
        self._chains: dict[int, Chain] = {}
        self.published: list[Chain] = []
        self.used: list[Used] = []
        self.ready = False

    # --- the host's side

    def resize(self, capacity: int, **limits: int | None) -> None:
        """Change the capacity (sectors) and the given fields, and notify the driver."""
        self.capacity = capacity
        for name, value in limits.items():
            setattr(self, name, value)
        self.changes.append(ConfigChange(capacity, len(self.changes)))

    def read_contents(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk, from the host's side."""
        first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
        raw = b"".join(self.contents.get(n, bytes(SECTOR)) for n in range(first, last))
        return raw[offset - first * SECTOR :][:length]

    def write_contents(self, offset: int, data: bytes) -> None:
        """Write whole sectors of the disk, from the host's side."""
        for n in range(0, len(data), SECTOR):
            self.contents[(offset + n) // SECTOR] = data[n : n + SECTOR]

    def release(self, count: int | None = None) -> None:
        """Execute the first `count` held requests, or all, and stop holding."""
        if count is None:
            self.held = False
            count = len(self.published)
        for _ in range(count):
            self._execute(self.published.pop(0))

    # --- the driver's side

    def status(self) -> int:
        return self.status_field

    def set_status(self, value: int) -> None:
        self.status_field = value

    def reset(self, timeout: float = 5.0) -> None:
        self.resets += 1
        self.status_field = 0
        self.accepted_bits = 0
        self._clear()

    def offered(self) -> int:
        bits = self.offered_bits | (Feature.BLK_RO.mask if self.read_only else 0)
        for feature, value in (
            (Feature.BLK_SIZE_MAX, self.size_max),
            (Feature.BLK_SEG_MAX, self.seg_max),
            (Feature.BLK_BLK_SIZE, self.blk_size),
            (Feature.BLK_TOPOLOGY, self.physical_block_exp),
        ):
            if value is None:
                bits &= ~feature.mask
        return bits

    def negotiate(self, features: int | None = None) -> Negotiation:
        self.reset()
        self.accepted_bits = self.offered() if features is None else features
        if self.accepted_bits & ~self.offered():
            self.violations.append("a feature was accepted that is not offered")
        if self.refuse_features:
            raise FeaturesRefusedError("the device refuses the features")
        agreed = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK
        self.status_field = agreed
        return Negotiation(self.offered(), self.accepted_bits, agreed)

    def config(self) -> BlockConfig:
        def valid(feature: Feature, value: int | None) -> int | None:
            return value if self.accepted_bits & feature.mask else None

        return BlockConfig(
            capacity=self.capacity,
            size_max=valid(Feature.BLK_SIZE_MAX, self.size_max),
            seg_max=valid(Feature.BLK_SEG_MAX, self.seg_max),
            blk_size=valid(Feature.BLK_BLK_SIZE, self.blk_size),
            physical_block_exp=valid(Feature.BLK_TOPOLOGY, self.physical_block_exp),
        )

    def config_changes(self) -> list[ConfigChange]:
        return list(self.changes)

    def alloc(self, length: int, align: int = 16) -> int:
        if sum(len(area) for area in self._areas.values()) + length > self.memory_limit:
            raise BadArgumentError("no device-visible memory left")
        # A gap after each area, so that an overrun is detected.
        address = -(-self._next // align) * align
        self._next = address + length + 64
        self._areas[address] = bytearray(length)
        return address

    def _area(self, address: int, length: int) -> tuple[bytearray, int]:
        for base, area in self._areas.items():
            if base <= address and address + length <= base + len(area):
                return area, address - base
        raise BadArgumentError(f"{address:#x}+{length:#x} is not device-visible memory")

    def memory_read(self, address: int, length: int) -> bytes:
        area, start = self._area(address, length)
        return bytes(area[start : start + length])

    def memory_write(self, address: int, data: bytes) -> None:
        area, start = self._area(address, len(data))
        area[start : start + len(data)] = data

    def queue_setup(
        self,
        index: int,
        size: int | None = None,
        vector: int | None = None,
        least_aligned: bool = False,
    ) -> QueueLayout:
        self.ready = True
        return QueueLayout(index, self.queue_size, 0, 0, 0)

    def queue_add(self, index: int, buffers: Any, indirect: bool = False) -> int:
        chains = [*self._chains.values()]
        taken = sum(1 if chain.indirect else len(chain.buffers) for chain in chains)
        if taken + (1 if indirect else len(buffers)) > self.queue_size:
            raise BadArgumentError("no free descriptors")
        if indirect and not self.accepted_bits & Feature.INDIRECT_DESC.mask:
            self.violations.append("an indirect table, not negotiated")
        head = next(n for n in range(self.queue_size) if n not in self._chains)
        self._chains[head] = Chain(head, list(buffers), indirect)
        return head

    def queue_publish(self, index: int, heads: Any) -> None:
        self.published += [self._chains[head] for head in heads]

    def queue_kick(self, index: int) -> None:
        if not self.status_field & DeviceStatus.DRIVER_OK or not self.ready:
            self.violations.append("a notification before DRIVER_OK")
        if not self.held:
            self.release()

    def queue_poll(self, index: int, count: int = 1, timeout: float = 10.0) -> list[Used]:
        if count:
            self.patience.append(timeout)
            self.during_poll()
        if len(self.used) < count:
            raise DeviceTimeoutError(f"waited {timeout:g} s for {count} used chains")
        taken, self.used = self.used, []
        for used in taken:
            del self._chains[used.id]
        return taken

    # --- the device

    def _execute(self, chain: Chain) -> None:
        header, *data, ack = chain.buffers
        kind, ioprio, sector = REQUEST_HEADER.unpack(self.memory_read(header.address, 16))
        sent = Sent(
            kind,
            ioprio,
            sector,
            [buffer.length for buffer in data],
            self.memory_read(ack.address, 1)[0],
            chain.indirect,
        )
        self.sent.append(sent)
        self.before_request(sent)
        self._check(sent, header, data, ack, len(chain.buffers))
        status = self.answer(sent)
        written = 1
        if status is None:
            status, count = self._perform(sent, data)
            written += count
        self.memory_write(ack.address, bytes([status]))
        self.used.append(Used(chain.head, written))

    def _check(
        self, sent: Sent, header: Buffer, data: list[Buffer], ack: Buffer, descriptors: int
    ) -> None:
        def expect(held: bool, what: str) -> None:
            if not held:
                self.violations.append(f"{what}: {sent}")

        expect(header.length == 16 and not header.writable, "header")
        expect(ack.length == 1 and ack.writable, "ack")
        expect(descriptors <= self.queue_size, "chain longer than the queue")
        total = sum(sent.segments)
        if sent.type == RequestType.FLUSH:
            expect(not sent.segments and sent.sector == 0, "flush with data or sector")
            return
        writable = sent.type == RequestType.IN
        expect(all(buffer.writable == writable for buffer in data), "direction")
        block = (self.blk_size or SECTOR) // SECTOR
        expect(total > 0 and total % (block * SECTOR) == 0, "length not in blocks")
        expect(sent.sector % block == 0, "start not on a block")
        expect(sent.sector + total // SECTOR <= self.capacity, "beyond capacity")
        expect(max(sent.segments) <= (self.size_max or total), "size_max")
        expect(len(sent.segments) <= (self.seg_max or 16), "seg_max")

    def _perform(self, sent: Sent, data: list[Buffer]) -> tuple[Status, int]:
        total = sum(sent.segments)
        start = sent.sector * SECTOR
        if sent.type == RequestType.FLUSH:
            self.flushes += 1
            return Status.OK, 0
        if start + total > self.capacity * SECTOR:
            return Status.IOERR, 0
        if sent.type == RequestType.OUT:
            if self.read_only:
                return Status.IOERR, 0
            raw = b"".join(self.memory_read(buffer.address, buffer.length) for buffer in data)
            self.write_contents(start, raw)
            return Status.OK, 0
        if sent.type == RequestType.IN:
            raw = self.read_contents(start, total)
            for buffer in data:
                self.memory_write(buffer.address, raw[: buffer.length])
                raw = raw[buffer.length :]
            return Status.OK, total
        return Status.UNSUPP, 0


# Methods that the disk does not need, also future methods of the interface.
for _verb in DeviceModel.__abstractmethods__:
    setattr(DeviceModel, _verb, _unused)
abc.update_abstractmethods(DeviceModel)
