"""A session that plays a driver without rules, and judges whether the device survives it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from harness.driver.errors import BadArgumentError, DriverError
from harness.driver.interface import Buffer
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
from harness.robustness.bad_addresses import find_registers
from harness.robustness.fate import Fate
from harness.robustness.guarded_memory import ADDRESSES, GuardedMemory, overlaps
from harness.robustness.process_watch import ProcessWatch
from harness.robustness.rings import PackedRing, Ring, SplitRing
from harness.robustness.witness import Witness
from harness.targets import Disk, TargetError
from harness.virtio.blk import REQUEST_HEADER, STATUS_UNWRITTEN
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask
from harness.virtio.pci import CapType
from harness.virtio.ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    EVENT_SUPPRESSION,
    avail_size,
    used_size,
)

FENCE = 16 << 10
ARENA = 64 << 10
TABLES = 16 << 10
HEADERS = 4 << 10
"""Sizes in bytes of each fence of canaries, and of the areas between the fences."""

ABSENT = {"low": 0xA0000, "beyond": 1 << 36, "top": ADDRESSES - 4096}
"""Bus addresses that are outside our memory on all our targets."""

OWN = 0x38
"""Length in bytes of the device's registers: the common configuration of PCI (virtio 4.1.4.3)."""

REVIVES = 3.0
"""Longest time for a reset, and for each request after it, in seconds."""

PAUSE = 0.005

Entry = tuple[Buffer, int]
"""A descriptor: its buffer, and its flags without WRITE, which comes from the buffer."""


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
        self.lanes: list[Ring] = []
        self.fences: list[int] = []
        self.trouble: str = ""
        self._places: dict[str, int] = {}
        self._lengths: dict[str, int] = {}
        self._canaries = GuardedMemory(self.driver)
        self._alignments: set[int] = set()
        self._registers_given = False
        self._headers = 0
        self._witness = Witness(self.driver, 0, sectors_of(1, 0, 1))

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
                self._offer(operation)
            case Scribble():
                self._scribble(operation)
            case Kick():
                self.driver.queue_kick(operation.queue % len(self.lanes))
            case Poke():
                if operation.register.startswith("queue_"):
                    # The ring may become longer, or another one: its areas may reach a fence.
                    self._canaries.give_all()
                self.driver.register_write(operation.register, operation.value)
            case PokeAddress():
                self._canaries.give_all()
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
        self._raise_if_damaged()
        features = mask(*(Feature[name] for name in start.features))
        agreed = self.driver.negotiate(features)
        self.packed = bool(features & Feature.RING_PACKED.mask)
        self._canaries = canaries = GuardedMemory(self.driver)
        kind = PackedRing if self.packed else SplitRing
        self.fences = [canaries.fence("fence 0", FENCE)]
        for index, size in enumerate(start.sizes):
            layout = self.driver.queue_setup(index, size)
            self.lanes.append(kind(self.driver, canaries, layout))
        self.fences.append(canaries.fence("fence 1", FENCE))
        self._alignments.clear()
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
        self.fences.append(canaries.fence("fence 2", FENCE))
        self.driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)

    def _registers(self) -> int:
        """Return the bus address of the device's own registers, or of nothing if it has none."""
        try:
            return find_registers(self.driver, CapType.COMMON_CFG)
        except DriverError:
            return ABSENT["beyond"]

    def _raise_if_damaged(self) -> None:
        canaries, self._canaries = self._canaries, GuardedMemory(self.driver)
        what, _, detail = canaries.damage().partition(", ")
        if what:
            raise Finding("wrote-outside", "2.7.5.1-D-01a", what, detail)

    def _lane(self, queue: int) -> Ring:
        return self.lanes[queue % len(self.lanes)]

    def _address(self, place: Place) -> int:
        name, offset = place
        return (self._places[name] + offset) % ADDRESSES

    # --- the rings

    def _give(self, *entries: Entry) -> None:
        """Note what the device may write to when it reads these descriptors."""
        for buffer, flags in entries:
            if flags & DESC_F_INDIRECT:
                self._canaries.give_all()  # anything may be there
            if not buffer.writable:
                continue
            self._canaries.give(buffer.address, buffer.length)
            if overlaps(buffer.address, buffer.length, self._places["own"], OWN):
                self._registers_given = True
            tables = [(self._places["table"], TABLES)]
            tables += [(ring.layout.desc, DESC_SIZE * ring.size) for ring in self.lanes]
            if any(overlaps(buffer.address, buffer.length, *table) for table in tables):
                self._canaries.give_all()  # it can write descriptors, and follow them

    def _chain(self, chain: Chain) -> None:
        ring = self._lane(chain.queue)
        self.requests += 1
        entries = self._entries(chain)
        if not entries:
            return
        self._give(*entries)
        if chain.table is not None:
            at = self._places["table"] + chain.table % (TABLES // 2)
            raw = b"".join(
                ring.table_entry(buffer, flags, 0 if self.packed else position + 1)
                for position, (buffer, flags) in enumerate(entries)
            )
            self._canaries.write(at, raw[: TABLES // 2])
            table = Buffer(at, max(0, len(raw) + chain.spare))
            self._alignments.add(at % DESC_SIZE)
            if chain.spare > 0 or len(self._alignments) > 1:
                self._canaries.give_all()  # the device may read parts of other descriptors
            entries = [(table, DESC_F_INDIRECT)]
        ring.append(*entries)
        self.driver.queue_kick(ring.layout.index)

    def _entries(self, chain: Chain) -> list[Entry]:
        """Return the descriptors of a chain."""
        entries: list[Entry] = []
        if chain.header is not None:
            at = self._headers + 32 * (self.requests % (HEADERS // 32))
            kind, sector = chain.header
            header = REQUEST_HEADER.pack(kind % (1 << 32), 0, sector % ADDRESSES)
            self._canaries.write(at, header + bytes([STATUS_UNWRITTEN]))
            entries.append((Buffer(at, len(header)), DESC_F_NEXT))
        entries += [self._entry(piece) for piece in chain.pieces]
        if chain.status:
            at = self._headers + 32 * (self.requests % (HEADERS // 32)) + REQUEST_HEADER.size
            entries.append((Buffer(at, 1, writable=True), DESC_F_NEXT))
        if entries:
            buffer, flags = entries[-1]
            entries[-1] = buffer, flags ^ DESC_F_NEXT
        return entries

    def _entry(self, piece: Piece) -> Entry:
        name, offset, length, flags = piece
        buffer = self._buffer((name, offset), length, flags)
        return buffer, (flags & ~DESC_F_WRITE) ^ DESC_F_NEXT

    def _buffer(self, place: Place, length: int, flags: int) -> Buffer:
        return Buffer(self._address(place), length, bool(flags & DESC_F_WRITE))

    def _scribble(self, scribble: Scribble) -> None:
        name, offset = scribble.place
        offset %= self._lengths[name] - 1
        if name in ("desc", "table"):
            self._canaries.give_all()  # an address, a length or WRITE may have changed
        self._canaries.write(self._places[name] + offset, scribble.value.to_bytes(2, "little"))

    def _offer(self, offer: Offer) -> None:
        ring = self._lane(offer.queue)
        if isinstance(ring, SplitRing):
            ring.available(*offer.heads, by=len(offer.heads) + offer.jump)

    def _describe(self, change: Describe) -> None:
        ring = self._lane(change.queue)
        buffer = self._buffer(change.place, change.length, change.flags)
        self._give((buffer, change.flags))
        flags = change.flags & ~DESC_F_WRITE
        ring.put(change.slot % ring.size, buffer, flags, change.last)

    # --- judgement

    def guarded(self) -> AbstractContextManager[None]:
        """Return a context in which a device that spins while the driver waits for it is killed."""
        return self.vitals.guarded()

    def give_up(self) -> None:
        """Kill the device's processes: their answers would mean nothing."""
        self.disk.kill()

    def finish(self) -> None:
        """Raise Finding unless the device lives, is idle, and serves requests after a reset."""
        self._raise_if_dead()
        self._raise_if_damaged()
        if growth := self.vitals.growth():
            raise Finding("grew", "5.2.6", "its memory grew", growth.evidence)
        try:
            self._witness.revive(1, REVIVES, REVIVES, rewrite=True)
        except (DriverError, OSError) as error:
            self.trouble = str(error)
            self._raise_if_dead()
            message = error.message if isinstance(error, DriverError) else str(error)
            raise Finding("wedged", "2.4.1", message, f"after a reset: {error}") from None
        self._raise_if_dead()

    def _raise_if_dead(self) -> None:
        """Raise Finding if a process has ended, spins, or does not answer."""
        dead = self.vitals.dead(bool(self.trouble))
        if dead is None:
            return
        if dead.fate is Fate.CRASHED:
            lines = dead.evidence.split(" / ")
            raise Finding("crashed", "5.2.6", f"{lines[0]}: {lines[-1]}", dead.evidence)
        ring = "packed" if self.packed else "split"
        processes = self.disk.processes()
        lines = "\n".join(process.last_words() for process in processes).splitlines()
        what = f"with a {ring} ring, after {lines[-1] if lines else 'no output'}"
        if self._registers_given:
            what += ", its own registers given to it"
        raise Finding(str(dead.fate), "5.2.6", what, dead.evidence)
