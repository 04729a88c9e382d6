"""A device under a hardening test, and the judgement of the harm afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from conformance.data import sectors
from harness.driver.errors import BadArgumentError, DeviceTimeoutError, DriverError
from harness.driver.interface import CANARY, GUARD, Buffer, QueueLayout
from harness.robustness.fate import Fate
from harness.robustness.guarded_memory import GuardedMemory
from harness.robustness.process_watch import Judgement, ProcessWatch, worst
from harness.robustness.rings import PackedRing, Ring, SplitRing
from harness.robustness.witness import Witness
from harness.virtio.blk import REQUEST_HEADER, SECTOR, STATUS_UNWRITTEN, RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.ring import DESC_F_INDIRECT, DESC_SIZE

if TYPE_CHECKING:
    from harness.targets import Disk

ARENA = 32 << 10
"""Bytes of memory for a test's buffers; unused bytes hold canaries."""

QUEUES = 2
"""Number of queues. A test breaks the rules on the first; the second, where there is one, shows if
the device works."""

WITNESS = 100
"""A sector (512 bytes) with known data, which no test writes to."""

LEAVES = 0.3
"""Seconds to wait for a reaction of the device. Without one, it is taken to ignore the act."""

ANSWERS = 1.0
"""Seconds that a request may take on the second queue."""

REVIVES = 8.0
"""Seconds within which resets must make the device usable; also the limit of one reset."""

Record = Callable[[Judgement], None]


class Victim:
    """A disk with two virtqueues, or one; the test writes the first one itself (`ring`).

    With one virtqueue, only a reset shows if the device still works.
    """

    ring: Ring
    canaries: GuardedMemory

    def __init__(self, disk: Disk, packed: bool, record: Record, queue_size: int | None) -> None:
        """Set up both rings, packed or split; `queue_size` in descriptors, None for the largest."""
        self.disk = disk
        self.driver = disk.driver
        self.packed = packed
        self._queue_size = queue_size
        self._record = record
        self._witness = Witness(self.driver, WITNESS, sectors(1, salt=7))
        several = self.driver.offered() & Feature.BLK_MQ.mask and (disk.spec.queues or 1) >= QUEUES
        self.queues = QUEUES if several else 1
        if not several:
            self.driver.start()
            self._mark()
        self._set_up()
        if several:
            self._mark()

    def _mark(self) -> None:
        """Write the sector WITNESS on the last queue."""
        status = self._witness.write(self.queues - 1)
        assert status == Status.OK, "the device failed a legal request before the test"

    def needs_second_queue(self) -> None:
        """Skip a test that uses the second queue on a device that has one."""
        if self.queues < QUEUES:
            pytest.skip("the device has one queue, and this test uses two")

    def _set_up(self, change: Callable[[], None] = lambda: None) -> None:
        self._status: int | None = None
        self._offered = False
        self._negotiate()
        self._lay_out()
        change()
        self.driver.set_status(self.driver.status() | DeviceStatus.DRIVER_OK)

    def _negotiate(self) -> None:
        """Negotiate the driver's usual features and the format of the rings."""
        negotiation = self.driver.negotiate()
        extra = Feature.RING_PACKED.mask if self.packed else 0
        extra |= negotiation.offered & Feature.RING_RESET.mask
        if extra:
            self.driver.negotiate(negotiation.accepted | extra)

    def _lay_out(self) -> None:
        """Allocate rings and an arena for buffers, with canaries before, between and after them."""
        self.canaries = canaries = GuardedMemory(self.driver)
        canaries.fence("the memory before the first ring")
        self._first(self.driver.queue_setup(0, self._queue_size))
        canaries.fence("the memory behind the first ring")
        if self.queues == QUEUES:
            self.driver.queue_setup(1, self._queue_size)
            canaries.fence("the memory behind the second ring")
        self._arena = canaries.fence("the memory around the buffers", ARENA)
        self._next = self._arena + GUARD

    def _first(self, layout: QueueLayout) -> None:
        kind = PackedRing if self.packed else SplitRing
        self.ring = kind(self.driver, self.canaries, layout)

    # --- buffers

    def memory(self, data: bytes, align: int = 16) -> int:
        """Allocate memory with these contents and canaries around it, and return its address."""
        address = -(-self._next // align) * align
        assert address + len(data) + GUARD <= self._arena + ARENA, (
            f"the arena ({ARENA} bytes) has no room for {len(data)} bytes"
        )
        self._next = address + len(data) + GUARD
        self.canaries.write(address, data)
        return address

    def header(self, type: int = RequestType.IN, sector: int = 0, reserved: int = 0) -> Buffer:
        """Return a buffer with a request header."""
        packed = REQUEST_HEADER.pack(type, reserved, sector)
        return Buffer(self.memory(packed), len(packed))

    def data(self, length: int = SECTOR) -> Buffer:
        """Return a device-readable buffer."""
        return Buffer(self.memory((sectors(length // SECTOR + 1))[:length]), length)

    def area(self, length: int = SECTOR) -> Buffer:
        """Return a device-writable buffer."""
        return Buffer(self.memory(bytes([CANARY]) * length), length, writable=True)

    def status(self, at: int | None = None) -> Buffer:
        """Return the status byte that the judgement reads: at address `at`, or newly allocated."""
        self._status = self.memory(bytes([STATUS_UNWRITTEN])) if at is None else at
        return Buffer(self._status, 1, writable=True)

    def unseen_status(self, address: int) -> Buffer:
        """Return a status byte at an address that the test cannot read."""
        self._status = None
        return Buffer(address, 1, writable=True)

    def read(self, sector: int = 0) -> list[Buffer]:
        """Return the buffers of a legal read of one sector: header, data, status."""
        return [self.header(RequestType.IN, sector), self.area(), self.status()]

    def write(self, sector: int = 0) -> list[Buffer]:
        """Return the buffers of a legal write of one sector: header, data, status."""
        return [self.header(RequestType.OUT, sector), self.data(), self.status()]

    def table(self, *buffers: Buffer) -> Buffer:
        """Write an indirect table of these buffers, and return it as a buffer."""
        address = self.memory(bytes(DESC_SIZE * len(buffers)))
        self.ring.table(address, *buffers)
        return Buffer(address, DESC_SIZE * len(buffers))

    # --- the ring

    def lay(self, *buffers: Buffer, indirect: bool = False) -> None:
        """Write a well-formed chain of these buffers, direct or in an indirect table."""
        if not indirect:
            self.ring.lay(*buffers)
        else:
            self.refer(self.table(*buffers))

    def refer(self, table: Buffer, flags: int = DESC_F_INDIRECT) -> None:
        """Write a chain of one descriptor that refers to an indirect table.

        Skip the test if INDIRECT_DESC was not negotiated.
        """
        if not self.agreed_indirect():
            pytest.skip("the device does not offer INDIRECT_DESC")
        self.ring.lay(table, flags=flags)

    def agreed_indirect(self) -> bool:
        """Return True when INDIRECT_DESC was negotiated."""
        return bool(self.driver.accepted() & Feature.INDIRECT_DESC.mask)

    def go(self) -> None:
        """Make the written chain available, and notify the device."""
        self.ring.offer()
        self.kick()

    def kick(self) -> None:
        """Notify the device about the first queue."""
        self._offered = True
        self.driver.queue_kick(0)

    def send(self, *buffers: Buffer, indirect: bool = False) -> None:
        """Write a chain, make it available, and notify the device."""
        self.lay(*buffers, indirect=indirect)
        self.go()

    def settle(self) -> bool:
        """Wait up to LEAVES seconds, and return True when the device reacted to the last chain."""
        return self._vitals.wait(lambda: self.ring.used() or self._needs_reset(), LEAVES)

    def attempt(self, *buffers: Buffer) -> None:
        """Send a request and wait for a reaction; reset the device if it needs a reset.

        The memory of the buffers is used again by the next call. AssertionError if the device
        wrote outside of them.
        """
        self.send(*buffers)
        if self.settle() and not self._needs_reset():
            assert not (damage := self.canaries.damage()), damage
            self.canaries.renew(self._arena, self._next - self._arena)
            self._next = self._arena + GUARD
            return
        if self._vitals.crash() or self._vitals.spin():
            raise DriverError("the device is gone")  # the judgement has the cause
        self.reset()

    # --- the device

    def reset(self) -> None:
        """Reset the device and set it up again."""
        self.driver.reset(REVIVES)
        self._set_up()

    def reset_queue(self, index: int) -> None:
        """Reset a queue, and set it up again."""
        self.driver.queue_reset(index, REVIVES)
        self.set_up_queue(index, self._queue_size)

    def set_up_queue(self, index: int, size: int | None) -> None:
        """Set up a queue, also one in use; `size` in descriptors, None for the largest."""
        layout = self.driver.queue_setup(index, size)
        if index == 0:
            self._first(layout)

    def repeat_after(self, change: Callable[[], None]) -> None:
        """Reset the device and set it up again, with a `change` before DRIVER_OK."""
        self.driver.reset(REVIVES)
        self._set_up(change)

    # --- the judgement

    @contextmanager
    def must_survive(self, mend: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Judge the harm that the device takes or does inside the `with` block.

        `mend` is called before the device is reset; it undoes effects that a reset keeps.
        """
        __tracebackhide__ = True
        self._vitals = ProcessWatch(self.disk.processes())
        trouble: Exception | None = None
        try:
            with self._vitals.guarded():
                yield
        except AssertionError:
            raise
        except Exception as error:  # a dead device's transport may raise any type
            trouble = error
        judgement = self._judge(trouble, mend)
        self._record(judgement)
        if not judgement.fate.tolerable:
            self.disk.kill()
        assert judgement.fate.tolerable, str(judgement)

    def _judge(self, trouble: Exception | None, mend: Callable[[], None]) -> Judgement:
        if dead := self._dead(trouble):
            return dead
        try:
            with self._vitals.guarded():
                found = [*self._look()] if trouble is None else []
        except Exception as error:
            trouble = error
            if dead := self._dead(error):
                return dead
            found = []
        if growth := self._vitals.growth():
            found.append(growth)
        if trouble is not None:
            found.append(Judgement(Fate.RECOVERED, f"before the reset: {trouble}"))
        try:
            with self._vitals.guarded():
                mend()
                self._witness.revive(self.queues, REVIVES, ANSWERS)
        except Exception as error:
            dead = self._dead(error) or Judgement(Fate.WEDGED, f"after a reset: {error}")
            return worst([*found, dead])
        found += filter(None, [self._vitals.crash(), self._vitals.spin()])
        return worst(found)

    def _dead(self, trouble: Exception | None) -> Judgement | None:
        """Return the judgement of a device that no longer runs, None if a reset may help.

        An exception that is not about the device is raised again.
        """
        found = self._vitals.dead(trouble is not None)
        if trouble is None or found:
            return found
        if isinstance(trouble, BadArgumentError) or not isinstance(trouble, DriverError):
            raise trouble
        return None

    def _look(self) -> list[Judgement]:
        """Return the judgements of the device before its reset."""
        if self._offered:
            self._vitals.wait(lambda: self.ring.used() or self._needs_reset(), LEAVES)
        found = [self._answer()]
        if damage := self.canaries.damage():
            found.append(Judgement(Fate.WROTE_OUTSIDE, damage))
        return found

    def _answer(self) -> Judgement:
        if self._needs_reset():
            return Judgement(Fate.NEEDS_RESET, f"status {self.driver.status():#04x}")
        if self.queues == 1 and not (self._offered and self.ring.used()):
            return Judgement(Fate.RECOVERED, "nothing was used, and there is no other queue")
        witness = self._trouble_with_second_queue() if self.queues == QUEUES else ""
        if witness:
            # The fault may show only when the device looks at a queue again.
            asks = Fate.NEEDS_RESET if self._needs_reset() else Fate.RECOVERED
            return Judgement(asks, f"before the reset: {witness}")
        if not (self._offered and self.ring.used()):
            return Judgement(Fate.REJECTED, "nothing was used, and the other queue is served")
        status = self._status_byte()
        if status is None:
            return Judgement(Fate.SERVED, "used; its status cannot be read")
        if status == Status.OK:
            return Judgement(Fate.SERVED, "used, with status OK")
        return Judgement(Fate.FAILED_REQUEST, f"used, with status {status:#04x}")

    def _status_byte(self) -> int | None:
        return None if self._status is None else self.driver.memory_read(self._status, 1)[0]

    def _needs_reset(self) -> bool:
        return bool(self.driver.status() & DeviceStatus.NEEDS_RESET)

    def _trouble_with_second_queue(self) -> str:
        try:
            return self._witness.check(1, ANSWERS)
        except DeviceTimeoutError as error:
            return error.message
