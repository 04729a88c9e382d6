"""A session that plays a driver without rules, and judges whether the device survives it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from harness.driver.errors import BadArgumentError, DriverError
from harness.driver.interface import CANARY, QueueLayout, Request
from harness.random.contents import sectors_of
from harness.random.finding import Finding
from harness.random.illegal import (
    Chain,
    Describe,
    Kick,
    Offer,
    Pause,
    Piece,
    Place,
    Poke,
    PokeAddress,
    PokeConfig,
    Scribble,
)
from harness.random.operations import Operation, Resize, Start
from harness.robustness.process_watch import DYING, ProcessWatch
from harness.targets import Disk, TargetError
from harness.virtio.blk import REQUEST_HEADER, SECTOR, STATUS_UNWRITTEN, RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask
from harness.virtio.pci import CapType
from harness.virtio.ring import (
    DESC,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    EVENT_SUPPRESSION,
    PACKED_DESC,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
    avail_size,
    used_size,
)

FENCE = 16 << 10
ARENA = 64 << 10
TABLES = 16 << 10
HEADERS = 4 << 10
"""Sizes in bytes of each fence of canaries, and of the areas between the fences."""

ABSENT = {"low": 0xA0000, "beyond": 1 << 36, "top": (1 << 64) - 4096}
"""Bus addresses that are outside our memory on all our targets."""

OWN = 0x38
"""Length in bytes of the device's registers: the common configuration of PCI (virtio 4.1.4.3)."""

BAR_0 = 0x10
BAR_FLAGS = 0xF

REVIVES = 3.0
"""Longest time for a reset, and for each request after it, in seconds."""

PAUSE = 0.005
ALL = 1 << 64


class Lane:
    """A virtqueue written by hand: its layout, and the position of its next chain."""

    def __init__(self, layout: QueueLayout) -> None:
        self.layout = layout
        self.slot = 0
        self.avail = 0
        self.wrap = True


class HostileSession:
    """A disk whose driver breaks the rules.

    Nothing is expected of the device before `finish`.

    If the transport fails because the device is broken (it disconnects, or does not answer), the
    error goes to `trouble`, and the operations up to the next Start are skipped.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.driver = disk.driver
        self.offered = self.driver.offered()
        self.vitals = ProcessWatch(disk.processes())
        self.requests = 0
        self.capacity = disk.spec.capacity
        self.packed = False
        self.lanes: list[Lane] = []
        self.trouble: str = ""
        self._places: dict[str, int] = {}
        self._lengths: dict[str, int] = {}
        self._fences: list[int] = []
        self._fences_given = False
        self._registers_given = False
        self._headers = 0

    def play(self, operation: Operation) -> None:
        """Do one operation, without a check of the device's reaction."""
        if (self.trouble or not self.lanes) and not isinstance(operation, Start):
            return
        try:
            self._play(operation)
        except BadArgumentError:
            pass  # this device does not have what the operation is about
        except (DriverError, OSError, TargetError) as error:
            self.trouble = str(error)

    def _play(self, operation: Operation) -> None:
        match operation:
            case Start():
                self._start(operation)
            case Resize():
                self.disk.resize(operation.capacity)
                self.capacity = operation.capacity
            case Chain():
                self._chain(operation)
            case Describe():
                self._describe(operation)
            case Offer():
                self._offer(self._lane(operation.queue), operation.heads, operation.jump)
            case Scribble():
                self._scribble(operation)
            case Kick():
                self.driver.queue_kick(operation.queue % len(self.lanes))
            case Poke():
                # The ring may become longer, or another one, so its areas may reach a fence.
                self._fences_given |= operation.register.startswith("queue_")
                self.driver.register_write(operation.register, operation.value)
            case PokeAddress():
                self._fences_given = True
                self.driver.register_write(operation.register, self._address(operation.place))
            case PokeConfig():
                data = operation.value.to_bytes(operation.width, "little")
                self.driver.config_write(operation.offset, data)
            case Pause():
                time.sleep(PAUSE)
            case _:
                raise TypeError(f"{operation} is not an operation of a hostile driver")

    # --- set-up of the device

    def _start(self, start: Start) -> None:
        self.lanes, self.trouble = [], ""
        self._check_fences()
        features = mask(*(Feature[name] for name in start.features))
        agreed = self.driver.negotiate(features)
        self.packed = bool(features & Feature.RING_PACKED.mask)
        self._fences = [self._fence()]
        for index, size in enumerate(start.sizes):
            self.lanes.append(Lane(self.driver.queue_setup(index, size)))
        self._fences.append(self._fence())
        self._headers = self.driver.alloc(HEADERS)
        layout = self.lanes[0].layout
        self._places = {
            **ABSENT,
            "own": self._registers(),
            "arena": self.driver.alloc(ARENA),
            "table": self.driver.alloc(TABLES),
            "desc": layout.desc,
            "driver": layout.driver,
            "device": layout.device,
        }
        self._lengths = {
            "arena": ARENA,
            "table": TABLES,
            "desc": DESC_SIZE * layout.size,
            "driver": EVENT_SUPPRESSION.size if self.packed else avail_size(layout.size),
            "device": EVENT_SUPPRESSION.size if self.packed else used_size(layout.size),
        }
        self._fences.append(self._fence())
        self._fences_given = False
        self.driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)

    def _registers(self) -> int:
        """Return the bus address of the device's own registers, or of nothing if it has none."""
        try:
            common = next(
                structure
                for structure in self.driver.capabilities()
                if structure.type == CapType.COMMON_CFG
            )
            raw = self.driver.pci_read(BAR_0 + 4 * common.bar, 4)
        except (DriverError, StopIteration):
            return ABSENT["beyond"]
        return (int.from_bytes(raw, "little") & ~BAR_FLAGS) + common.offset

    def _fence(self) -> int:
        address = self.driver.alloc(FENCE)
        self.driver.memory_write(address, bytes([CANARY]) * FENCE)
        return address

    def _check_fences(self) -> None:
        fences, self._fences = self._fences, []
        if self._fences_given:
            return
        for number, address in enumerate(fences):
            data = self.driver.memory_read(address, FENCE)
            changed = [at for at, byte in enumerate(data) if byte != CANARY]
            if changed:
                what = f"{len(changed)} bytes of fence {number} changed"
                detail = f"from +{changed[0]:#x} to +{changed[-1]:#x}"
                raise Finding("wrote-outside", "2.7.5.1-D-01a", what, detail)

    def _lane(self, queue: int) -> Lane:
        return self.lanes[queue % len(self.lanes)]

    def _address(self, place: Place) -> int:
        name, offset = place
        return (self._places[name] + offset) % ALL

    # --- the rings

    def _given(self, address: int, length: int, flags: int) -> None:
        """Note whether a descriptor lets the device write to a fence, or to its own registers."""
        if flags & DESC_F_WRITE:
            own = self._places["own"]
            if (own - address) % ALL < length or (address - own) % ALL < OWN:
                self._registers_given = True
            for fence in self._fences:
                # Distance from the fence's start up to the descriptor's start, modulo the address
                # space.
                if (fence - address) % ALL < length or (address - fence) % ALL < FENCE:
                    self._fences_given = True

    def _chain(self, chain: Chain) -> None:
        lane = self._lane(chain.queue)
        self.requests += 1
        entries = self._entries(chain)
        if not entries:
            return
        if chain.table is not None:
            table = self._places["table"] + chain.table % (TABLES // 2)
            raw = b"".join(
                (PACKED_DESC if self.packed else DESC).pack(
                    address, length, *((0, flags) if self.packed else (flags, n + 1))
                )
                for n, (address, length, flags) in enumerate(entries)
            )
            self.driver.memory_write(table, raw[: TABLES // 2])
            entries = [(table, max(0, len(raw) + chain.spare), DESC_F_INDIRECT)]
        if self.packed:
            self._lay_packed(lane, entries)
        else:
            self._lay_split(lane, entries)
        self.driver.queue_kick(lane.layout.index)

    def _entries(self, chain: Chain) -> list[tuple[int, int, int]]:
        """Return address, length and flags of each descriptor."""
        entries: list[tuple[int, int, int]] = []
        if chain.header is not None:
            at = self._headers + 32 * (self.requests % (HEADERS // 32))
            kind, sector = chain.header
            header = REQUEST_HEADER.pack(kind % (1 << 32), 0, sector % ALL)
            self.driver.memory_write(at, header + bytes([STATUS_UNWRITTEN]))
            entries.append((at, len(header), DESC_F_NEXT))
        entries += [self._entry(piece) for piece in chain.pieces]
        if chain.status:
            at = self._headers + 32 * (self.requests % (HEADERS // 32)) + REQUEST_HEADER.size
            entries.append((at, 1, DESC_F_NEXT | DESC_F_WRITE))
        if entries:
            address, length, flags = entries[-1]
            entries[-1] = address, length, flags ^ DESC_F_NEXT
        for entry in entries:
            self._given(*entry)
        return entries

    def _entry(self, piece: Piece) -> tuple[int, int, int]:
        name, offset, length, flags = piece
        if flags & DESC_F_INDIRECT:
            self._fences_given = True  # anything may be there
        return self._address((name, offset)), length, flags ^ DESC_F_NEXT

    def _scribble(self, scribble: Scribble) -> None:
        name, offset = scribble.place
        offset %= self._lengths[name] - 1
        if name in ("desc", "table") and offset % DESC_SIZE < 12:
            self._fences_given = True  # an address or a length may have changed
        self.driver.memory_write(self._places[name] + offset, scribble.value.to_bytes(2, "little"))

    def _lay_split(self, lane: Lane, entries: list[tuple[int, int, int]]) -> None:
        head = lane.slot
        for address, length, flags in entries:
            following = (lane.slot + 1) % lane.layout.size
            raw = DESC.pack(address, length, flags, following)
            self.driver.memory_write(lane.layout.desc + DESC_SIZE * lane.slot, raw)
            lane.slot = following
        self._offer(lane, (head,), 0)

    def _lay_packed(self, lane: Lane, entries: list[tuple[int, int, int]]) -> None:
        """Write all descriptors but the first, then the first, which makes the chain available."""
        written = []
        for address, length, flags in entries:
            flags ^= PACKED_DESC_F_AVAIL if lane.wrap else PACKED_DESC_F_USED
            raw = PACKED_DESC.pack(address, length, lane.slot, flags)
            written.append((lane.layout.desc + DESC_SIZE * lane.slot, raw))
            lane.slot += 1
            if lane.slot == lane.layout.size:
                lane.slot, lane.wrap = 0, not lane.wrap
        for at, raw in reversed(written):
            self.driver.memory_write(at, raw)

    def _offer(self, lane: Lane, heads: tuple[int, ...], jump: int) -> None:
        size, ring = lane.layout.size, lane.layout.driver + 4
        if self.packed:
            return
        for head in heads:
            raw = (head % (1 << 16)).to_bytes(2, "little")
            self.driver.memory_write(ring + 2 * (lane.avail % size), raw)
            lane.avail += 1
        lane.avail = (lane.avail + jump) % (1 << 16)
        self.driver.memory_write(lane.layout.driver + 2, lane.avail.to_bytes(2, "little"))

    def _describe(self, change: Describe) -> None:
        layout = self._lane(change.queue).layout
        address = self._address(change.place)
        self._given(address, change.length, change.flags)
        self._fences_given |= bool(change.flags & DESC_F_INDIRECT)
        if self.packed:
            raw = PACKED_DESC.pack(address, change.length, change.last, change.flags)
        else:
            raw = DESC.pack(address, change.length, change.flags, change.last)
        self.driver.memory_write(layout.desc + DESC_SIZE * (change.slot % layout.size), raw)

    # --- judgement

    def guarded(self) -> AbstractContextManager[None]:
        """Return a context in which a device that spins while the driver waits for it is killed."""
        return self.vitals.guarded()

    def give_up(self) -> None:
        """Kill the device's processes: their answers would mean nothing."""
        self.disk.kill()

    def finish(self) -> None:
        """Raise Finding unless the device lives, is idle, and serves requests after a reset."""
        self._raise_if_dead(DYING if self.trouble else 0.0)
        self._check_fences()
        if growth := self.vitals.growth():
            raise Finding("grew", "5.2.6", "its memory grew", growth.evidence)
        try:
            self._revive()
        except (DriverError, OSError) as error:
            self.trouble = str(error)
            self._raise_if_dead(DYING)
            message = error.message if isinstance(error, DriverError) else str(error)
            raise Finding("wedged", "2.4.1", message, f"after a reset: {error}") from None
        self._raise_if_dead()

    def _raise_if_dead(self, within: float = 0.0) -> None:
        """Raise Finding if a process has ended, spins, or does not answer."""
        ring = "packed" if self.packed else "split"
        if crash := self.vitals.crash(within):
            lines = crash.evidence.split(" / ")
            raise Finding("crashed", "5.2.6", f"{lines[0]}: {lines[-1]}", crash.evidence)
        if ended := self.vitals.spin() or (self.vitals.hung() if self.trouble else None):
            processes = self.disk.processes()
            lines = "\n".join(process.last_words() for process in processes).splitlines()
            what = f"with a {ring} ring, after {lines[-1] if lines else 'no output'}"
            if self._registers_given:
                what += ", its own registers given to it"
            raise Finding(str(ended.fate), "5.2.6", what, ended.evidence)

    def _revive(self) -> None:
        """Reset and start the device, then write and read a sector, as any driver does."""
        self.driver.reset(REVIVES)
        self.driver.start()
        data = sectors_of(1, 0, 1)
        for request in (
            Request(RequestType.OUT, 0, data),
            Request(RequestType.IN, 0, receive=SECTOR),
        ):
            completion = self.driver.request(request, timeout=REVIVES)
            if completion.status != Status.OK:
                raise DriverError(f"a request ended with status {completion.status}")
        if completion.data != data:
            raise DriverError("a sector does not contain what was written to it")
