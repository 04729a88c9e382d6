"""A virtio-blk PCI function in this process, with what no QEMU here has, and with planted defects.

Behind the bus's interface, so that the whole driver and the suite run on it: one BAR with the
structures, split virtqueues in memory of its own, time only for as long as somebody looks.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from harness.driver.bus.base import PciFunction
from harness.driver.memory import DmaMemory, Region
from harness.virtio.blk import REQUEST_HEADER, SECTOR, RequestType, Status
from harness.virtio.device import BLOCK_DEVICE, DeviceStatus
from harness.virtio.features import Feature, mask
from harness.virtio.pci import COMMON_REGISTERS, ISR_CONFIG, ISR_QUEUE, VENDOR_ID, CapType
from harness.virtio.ring import DESC, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE

RAM = 0x100000
BAR = 4
BAR_SIZE = 0x4000
COMMON, ISR, DEVICE, NOTIFY = 0, 0x1000, 0x2000, 0x3000
MULTIPLIER = 4
SHARED_BAR, SHARED_SIZE = 2, 0x1000
REGISTERS = {offset: (name, size) for name, (offset, size) in COMMON_REGISTERS.items()}
QUEUE_SIZE = 64
WRITEBACK = 32
NUM_QUEUES = 34

OFFERED = mask(
    Feature.VERSION_1,
    Feature.ACCESS_PLATFORM,
    Feature.RING_RESET,
    Feature.SUSPEND,
    Feature.ADMIN_VQ,
    Feature.SR_IOV,
    Feature.BLK_FLUSH,
    Feature.BLK_CONFIG_WCE,
    Feature.BLK_MQ,
)


class Queue:
    """A virtqueue as the device keeps it."""

    def __init__(self) -> None:
        self.size = QUEUE_SIZE
        self.vector = 0xFFFF
        self.enabled = self.resetting = 0
        self.areas = {"queue_desc": 0, "queue_driver": 0, "queue_device": 0}
        self.seen = self.used = 0


@dataclass
class Chain:
    """A chain that the device has begun with, done at `due` (a time of time.monotonic)."""

    queue: Queue
    head: int
    due: float


class FakeFunction(PciFunction):
    """The function. `defects` are names of DEFECTS in suite_plugin.py."""

    access_platform = True

    def __init__(
        self,
        contents: bytearray,
        queues: int,
        iops: int | None,
        writeback: bool,
        defects: frozenset[str],
    ) -> None:
        self.defects = defects
        self.contents = contents
        self._iops = iops
        self._ram = memoryview(bytearray(1 << 20))
        self.memory = DmaMemory([Region(RAM, self._ram)])
        self.offered = OFFERED
        if "notification-data" in defects:
            self.offered |= Feature.NOTIFICATION_DATA.mask
        for name, feature in (
            ("no-access-platform", Feature.ACCESS_PLATFORM),
            ("sr-iov-withheld", Feature.SR_IOV),
        ):
            if name in defects:
                self.offered &= ~feature.mask
        self._space = bytearray(4096)
        self._sizes = {BAR: BAR_SIZE, SHARED_BAR: SHARED_SIZE}
        self._fill_space()
        self._count = queues
        self._writeback = self._usual_writeback = int(writeback)
        self._generation = 0
        self._raised = 0
        self._clear()

    def _clear(self) -> None:
        old = getattr(self, "queues", {})
        self.queues = {index: Queue() for index in range(self._count)}
        if "queue-reset-outlives-reset" in self.defects:
            for index, queue in old.items():
                self.queues[index].resetting = queue.resetting
        self._registers = {"device_feature_select": 0, "driver_feature_select": 0}
        self._registers |= {"queue_select": 0, "config_msix_vector": 0xFFFF}
        self._status = self._isr = 0
        self._chosen = {0: 0, 1: 0}
        self._flights: list[Chain] = []
        self._late: list[tuple[int, int]] = []
        self._suspending = self._announce = False
        self._begun_at = 0.0
        self._writeback = self._usual_writeback

    # --- the host's side

    def resized(self) -> None:
        """The contents have another length now."""
        self._generation += 1
        if self._status & DeviceStatus.SUSPEND and "suspend-announces" not in self.defects:
            self._announce = "resume-forgets" not in self.defects
        elif self._status:
            self._raise(ISR_CONFIG)

    # --- PCI configuration space

    def _fill_space(self) -> None:
        transitional = "looks-transitional" in self.defects
        identity = (0x1001, 0) if transitional else (0x1042, 1)
        struct.pack_into("<HHHHB", self._space, 0, VENDOR_ID, identity[0], 0, 0x10, identity[1])
        struct.pack_into(
            "<HH", self._space, 0x2C, VENDOR_ID, BLOCK_DEVICE if transitional else 0x40
        )
        self._space[0x3D] = 1
        self._space[0x10 + 4 * BAR] = self._space[0x10 + 4 * SHARED_BAR] = 0x4
        if "bar-type" in self.defects:
            self._space[0x10 + 4 * SHARED_BAR] = 0x2
        shared = 0xF00 if "shared-beyond-bar" in self.defects else 0
        shared_bar = BAR if "shared-over-structures" in self.defects else SHARED_BAR
        second = 1 if "shared-ids" in self.defects else 2
        notify_length = 2 * MULTIPLIER if "notify-short" in self.defects else 0x100
        vendor = struct.pack(
            "<HH", VENDOR_ID if "vendor-id" in self.defects else 0x1234, 0xBEEF
        ) + bytes(2 if "vendor-length" in self.defects else 0)
        at = 0x40
        self._space[0x34] = at
        for kind, bar, ident, offset, length, extra in (
            (CapType.COMMON_CFG, BAR, 0, COMMON, 0x40, b""),
            (CapType.NOTIFY_CFG, BAR, 0, NOTIFY, notify_length, struct.pack("<I", MULTIPLIER)),
            (CapType.ISR_CFG, BAR, 0, ISR, 1, b""),
            (CapType.DEVICE_CFG, BAR, 0, DEVICE, 96, b""),
            (CapType.PCI_CFG, BAR, 0, 0, 0, bytes(4)),
            (CapType.SHARED_MEMORY_CFG, shared_bar, 1, shared, 0x200, bytes(8)),
            (CapType.SHARED_MEMORY_CFG, SHARED_BAR, second, 0x200, 0x200, bytes(8)),
        ):
            body = struct.pack("<BBB2xII", kind, bar, ident, offset, length) + extra
            at = self._capability(at, 0x09, bytes([3 + len(body)]) + body)
        self._vendor = at, at + 4 + len(vendor)
        at = self._capability(at, 0x09, bytes([4 + len(vendor), CapType.VENDOR_CFG]) + vendor)
        express = at
        self._capability(at, 0x10, bytes(0x12))
        self._space[express + 1] = 0x42 if "capability-loop" in self.defects else 0
        if "capability-unaligned" in self.defects:
            self._space[0x34] |= 1
        if "sr-iov-unfounded" not in self.defects:
            struct.pack_into("<I", self._space, 0x100, 0x10 | 1 << 16)

    def _capability(self, at: int, ident: int, body: bytes) -> int:
        """Put a capability in, and return where the next one goes: the pointer says so already."""
        following = -(-(at + 2 + len(body)) // 4) * 4
        self._space[at : at + 2 + len(body)] = bytes([ident, following]) + body
        return following

    def pci_read(self, offset: int, length: int) -> bytes:
        self.tick()
        if "vendor-side-effect" in self.defects and self._vendor[0] + 4 <= offset < self._vendor[1]:
            self._isr = 0
        self._space[6] = 0x10 | (8 if self._isr else 0)
        return bytes(self._space[offset : offset + length])

    def pci_write(self, offset: int, data: bytes) -> None:
        bar, within = divmod(offset - 0x10, 4)
        if offset == 4:
            self._space[4:6] = data
        elif 0 <= bar < 6 and not within:
            wide = bar - 1 in self._sizes
            size = self._sizes.get(bar - 1 if wide else bar, 0)
            value = int.from_bytes(data, "little")
            keep = -size >> 32 if wide else -size
            value = value & keep & 0xFFFFFFFF if size else 0
            flags = 0 if wide else self._space[offset] & 0xF
            self._space[offset : offset + 4] = (value | flags).to_bytes(4, "little")

    def bar_size(self, bar: int) -> int:
        return self._sizes.get(bar, 0)

    # --- the BAR

    def bar_read(self, bar: int, offset: int, width: int) -> int:
        self.tick()
        if offset >= DEVICE:
            return int.from_bytes(self._config()[offset - DEVICE :][:width], "little")
        if offset == ISR:
            isr, self._isr = self._isr, 0
            return isr
        if offset not in REGISTERS:
            return 0  # the upper half of an address
        name, _ = REGISTERS[offset]
        return self._read(name)

    def _config(self) -> bytes:
        config = bytearray(96)
        config[:8] = (len(self.contents) // SECTOR).to_bytes(8, "little")
        config[WRITEBACK] = self._writeback
        config[NUM_QUEUES] = self._count
        return bytes(config)

    @property
    def accepted(self) -> int:
        return self._chosen[0] | self._chosen[1] << 32

    def _selected(self) -> tuple[int, Queue | None]:
        index = self._registers["queue_select"]
        return index, self.queues.get(index)

    def _read(self, name: str) -> int:
        index, queue = self._selected()
        if name in ("device_feature", "driver_feature"):
            word = self._registers[name + "_select"]
            bits = self.offered if name == "device_feature" else self.accepted
            return bits >> 32 * word & 0xFFFFFFFF if word < 2 else 0
        if name == "queue_notify_off":
            far = "notify-far" in self.defects and self.accepted & Feature.BLK_FLUSH.mask
            return 0x1000 if far else index
        if name.startswith("queue_") and name != "queue_select" and queue is None:
            return 0
        assert queue or not name.startswith("queue_") or name == "queue_select"
        values: dict[str, int] = {
            **self._registers,
            "num_queues": self._count,
            "device_status": self._status,
            "config_generation": self._generation & 0xFF,
            "admin_queue_index": self._count - ("admin-index" in self.defects),
            "admin_queue_num": 0xFFFF if "admin-number" in self.defects else 1,
        }
        if queue:
            values |= {"queue_size": queue.size, "queue_enable": queue.enabled} | queue.areas
            values |= {"queue_msix_vector": queue.vector, "queue_reset": queue.resetting}
        return values.get(name, 0)

    def bar_write(self, bar: int, offset: int, width: int, value: int) -> None:
        self.tick()
        if offset >= NOTIFY:
            self._notified(value & 0xFFFF)
        elif offset == DEVICE + WRITEBACK:
            if not self._status & DeviceStatus.SUSPEND or "suspend-writes" in self.defects:
                self._writeback = value
        elif offset in REGISTERS:
            self._write(REGISTERS[offset][0], value)
        self.tick()

    def _write(self, name: str, value: int) -> None:
        _, queue = self._selected()
        if name in self._registers:
            self._registers[name] = value
        elif name == "device_status":
            self._set_status(value)
        elif name == "driver_feature" and self._registers["driver_feature_select"] < 2:
            self._chosen[self._registers["driver_feature_select"]] = value
        elif queue is None:
            return
        elif name in queue.areas:
            queue.areas[name] = value
        elif name == "queue_size":
            queue.size = value
        elif name == "queue_enable" and value:
            queue.enabled = 1
        elif name == "queue_reset" and value:
            queue.resetting = 1

    # --- device status

    def _set_status(self, value: int) -> None:
        if value == 0:
            self._clear()
            return
        suspended = self._status & DeviceStatus.SUSPEND
        wanted = value & ~DeviceStatus.SUSPEND
        if self.accepted & ~self.offered and "unoffered-accepted" not in self.defects:
            wanted &= ~DeviceStatus.FEATURES_OK
        if suspended:
            if value & DeviceStatus.DRIVER_OK and "resume-never" not in self.defects:
                self._status = wanted
                if self._announce:
                    self._raise(ISR_CONFIG)
                self._announce = False
            return
        if value & DeviceStatus.SUSPEND:
            running = self._status & DeviceStatus.DRIVER_OK
            if running and self.accepted & Feature.SUSPEND.mask:
                self._suspending = "suspend-never" not in self.defects
            elif "suspend-early" in self.defects:
                wanted |= DeviceStatus.SUSPEND
        self._status = wanted

    def _suspend(self) -> None:
        self._suspending = False
        self._status = self._status & ~DeviceStatus.DRIVER_OK | DeviceStatus.SUSPEND
        if "suspend-config" in self.defects:
            self._writeback ^= 1

    # --- virtqueues

    def _word(self, address: int) -> int:
        return int.from_bytes(self._ram[address - RAM :][:2], "little")

    def _put(self, address: int, data: bytes) -> None:
        self._ram[address - RAM : address - RAM + len(data)] = data

    def _notified(self, index: int) -> None:
        queue = self.queues.get(index)
        running = self._status & DeviceStatus.DRIVER_OK or "suspend-serves" in self.defects
        if queue is None or not queue.enabled or queue.resetting or not running:
            return
        if self._suspending:
            return
        end = self._word(queue.areas["queue_driver"] + 2)
        while queue.seen != end:
            slot = queue.areas["queue_driver"] + 4 + 2 * (queue.seen % queue.size)
            queue.seen = (queue.seen + 1) & 0xFFFF
            self._begun_at = max(time.monotonic(), self._begun_at)
            if self._iops:
                self._begun_at += 1 / self._iops
            self._flights.append(Chain(queue, self._word(slot), self._begun_at))

    def tick(self) -> None:
        """Do what is due."""
        for address, length in self._late:
            self._put(address, length.to_bytes(4, "little"))
        self._late = []
        now = time.monotonic()
        while self._flights and self._flights[0].due <= now:
            chain = self._flights.pop(0)
            self._finish(chain)
        if self._suspending:
            if "suspend-leaves" in self.defects:
                self._suspend()
            elif "suspend-drops" in self.defects:
                for chain in self._flights:
                    self._perform(chain)
                self._flights = []
                self._suspend()
            elif not self._flights:
                self._suspend()
        for queue in self.queues.values():
            busy = any(chain.queue is queue for chain in self._flights)
            if queue.resetting and (not busy or "queue-reset-early" in self.defects):
                queue.enabled = queue.resetting = queue.seen = queue.used = 0

    def _finish(self, chain: Chain) -> None:
        queue, ring = chain.queue, chain.queue.areas["queue_device"]
        length = self._perform(chain)
        element = ring + 4 + 8 * (queue.used % queue.size)
        queue.used = (queue.used + 1) & 0xFFFF
        self._put(element, chain.head.to_bytes(4, "little"))
        if "length-late" in self.defects:
            self._late.append((element + 4, length))
        else:
            self._put(element + 4, length.to_bytes(4, "little"))
        self._put(ring + 2, queue.used.to_bytes(2, "little"))
        if not self._word(queue.areas["queue_driver"]) & 1:
            self._raise(ISR_QUEUE)

    def _perform(self, chain: Chain) -> int:
        """Execute a request; the number of bytes written."""
        buffers, at = [], chain.head
        while True:
            place = chain.queue.areas["queue_desc"] + DESC_SIZE * at - RAM
            address, length, flags, at = DESC.unpack(self._ram[place : place + DESC_SIZE])
            buffers.append((address - RAM, length, flags & DESC_F_WRITE))
            if not flags & DESC_F_NEXT:
                break
        readable = b"".join(
            self._ram[at : at + length] for at, length, write in buffers if not write
        )
        writable = [(at, length) for at, length, write in buffers if write]
        room = sum(length for _, length in writable) - 1
        kind, _, sector = REQUEST_HEADER.unpack(readable[:16])
        status, answer = self._answer(kind, sector, readable[16:], room)
        full = answer.ljust(room, b"\xc5") + bytes([status])
        taken = 0
        for at, length in writable:
            piece = full[taken : taken + length]
            if status == Status.OK or taken + length > room:
                self._ram[at : at + length] = piece
            taken += length
        return len(answer) + 1 if status == Status.OK else 0

    def _answer(self, kind: int, sector: int, data: bytes, room: int) -> tuple[Status, bytes]:
        start, end = sector * SECTOR, sector * SECTOR + (len(data) or room)
        if kind == RequestType.FLUSH:
            return Status.OK, b""
        if kind not in (RequestType.IN, RequestType.OUT):
            return Status.UNSUPP, b""
        if end > len(self.contents):
            return Status.IOERR, b""
        if kind == RequestType.OUT:
            self.contents[start:end] = data
            return Status.OK, b""
        return Status.OK, bytes(self.contents[start:end])

    # --- the interrupt line

    def _raise(self, bit: int) -> None:
        self._raised += not self._isr
        self._isr |= bit

    def fileno(self) -> int | None:
        return None

    def take_interrupts(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        self.tick()
        while not self._raised and time.monotonic() < deadline:
            time.sleep(0.0005)
            self.tick()
        raised, self._raised = self._raised, 0
        return raised

    def unmask_interrupts(self) -> None:
        pass

    def enable_msix(self, vectors: int) -> None:
        raise NotImplementedError("it has no MSI-X capability, and nobody asks for it")

    def take_messages(self, timeout: float) -> Counter[int]:
        raise NotImplementedError("it has no MSI-X capability")

    def description(self) -> dict[str, Any]:
        return {"bus": "a fake"}

    def close(self) -> None:
        pass
