"""A session that plays legal operations on a disk, and checks the device's reactions."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from harness.driver.errors import DeviceTimeoutError
from harness.driver.interface import CANARY, REQUEST_TIMEOUT, Completion, QueueLayout, Request
from harness.random.contents import ANYTHING, ZEROES, Contents, mismatch, sectors_of
from harness.random.finding import Finding, Known
from harness.random.operations import (
    Ask,
    Burst,
    CacheMode,
    Collect,
    Discard,
    Flush,
    GetId,
    Operation,
    PauseMachine,
    Plug,
    QueueReset,
    Read,
    ReadConfig,
    Resize,
    Send,
    Start,
    Suppress,
    WantInterrupts,
    Write,
    WriteZeroes,
)
from harness.targets import Disk, LacksError
from harness.virtio.blk import CONFIG_FIELD, SECTOR, RequestType, Status, segment
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature, mask
from harness.virtio.ring import (
    AVAIL_F_NO_INTERRUPT,
    EVENT_SUPPRESSION,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
)

SMALL = 1 << 17
"""Sectors of the largest disk that is compared whole, 64 MiB."""

NEAR = 64
"""Sectors before and after a written one that are compared on a larger disk."""

MOST_IN_FLIGHT = 48
"""Requests in flight at most: the driver's memory has room for them, whatever their lengths."""

FAR = 0x8000
"""Half the range of a split ring's index.

A used_event this far away asks for no notification soon.
"""


@dataclass
class Lane:
    """A virtqueue as the session sees it. `free` descriptors belong to no uncollected request."""

    layout: QueueLayout
    free: int
    wanted: bool = True


@dataclass
class Sent:
    """A request that was sent and not collected.

    `interrupts` is a count that the interrupts must exceed once the request is used; None if none
    is due. `doubtful` means that the request may fail, because its sectors were removed by a
    resize.
    """

    number: int
    ask: Ask
    queue: int
    token: int
    salt: int
    interrupts: int | None
    doubtful: bool = False


class Session:
    """One disk from `Plug` on.

    `play` raises Finding for a violation by the device.

    The state that decides what is legal next (`lanes`, `sent`, `capacity`, `features`, `config`)
    follows from the operations, not from the device's progress.
    """

    def __init__(
        self, disk: Disk, wiped: bool, known: Known, deadline: float = REQUEST_TIMEOUT
    ) -> None:
        """Begin a session.

        `wiped` means that the disk is all zeroes; `deadline` limits every wait, in seconds.
        """
        self.disk = disk
        self.driver = disk.driver
        self.known = known
        self.offered = self.driver.offered()
        self.deadline = deadline
        self.contents = Contents(ZEROES if wiped else ANYTHING)
        self.features = 0
        self.config = self.driver.config()
        self.capacity = self.config.capacity
        self.lanes: list[Lane] = []
        self.sent: list[Sent] = []
        self.requests = 0
        self.suppressed = False
        self._identity: bytes | None = None
        self._writeback: int | None = None

    def negotiated(self, feature: Feature) -> bool:
        """Return True if the running driver has negotiated the feature."""
        return bool(self.features & feature.mask)

    def play(self, operation: Operation) -> None:
        """Do one operation, and check what can be checked now."""
        match operation:
            case Plug():
                pass
            case Start():
                self._start(operation)
            case Send():
                self._send(operation)
            case Collect():
                self._collect(operation.count)
            case Burst():
                self._burst(operation)
            case Suppress():
                self._suppress(operation.enabled)
            case PauseMachine():
                self._pause(operation.milliseconds)
            case Resize():
                self._resize(operation.capacity)
            case CacheMode():
                self._cache_mode(operation.writeback)
            case WantInterrupts():
                self._set_interrupts_enabled(operation)
            case ReadConfig():
                self._read_config()
            case QueueReset():
                self._queue_reset(operation)
            case _:
                raise TypeError(f"{operation} is not an operation of a legal driver")

    def guarded(self) -> AbstractContextManager[None]:
        """Return an empty context: a device that is treated correctly may take its time."""
        return nullcontext()

    def give_up(self) -> None:
        """Do nothing: a device that answers can be unplugged; otherwise a deadline applies."""

    def finish(self) -> None:
        """Collect what is in flight, and compare the disk with the model.

        Of a disk of more than SMALL sectors, compare what was written and NEAR sectors around it.
        """
        self._collect(len(self.sent))
        status = self.driver.status()
        if status & DeviceStatus.NEEDS_RESET:
            raise Finding("status", "2.1.2", f"after legal requests the status is {status:#04x}")
        try:
            backing = self.disk.backing
            end = min(self.capacity, backing.size // SECTOR)
        except LacksError:
            return
        ranges = [(0, end)] if end <= SMALL else self.contents.touched(NEAR, end)
        for first, last in ranges:
            may = [self.contents.may_hold(sector) for sector in range(first, last)]
            if wrong := mismatch(backing.read(first, last - first), first, may):
                raise Finding("contents", "5.2.6", "the file behind the device is wrong", wrong)

    # --- the device as a whole

    def _start(self, start: Start) -> None:
        self._forget(self.sent)
        self.lanes = []
        self.suppressed = False
        self.driver.suppress_notifications(False)
        if start.vectors is not None:
            self.driver.reset()
            self.driver.use_msix(start.vectors)
        features = mask(*(Feature[name] for name in start.features))
        agreed = self.driver.negotiate(features)
        self.features = features
        for index, size in enumerate(start.sizes):
            self.lanes.append(Lane(self.driver.queue_setup(index, size), size))
        self.driver.set_status(agreed.status | DeviceStatus.DRIVER_OK)
        for index in range(len(self.lanes)):
            self._arm(index)
        self._writeback = None
        self._read_config()

    def _forget(self, sent: list[Sent]) -> None:
        """Forget requests that will never be collected. Their writes may have been done or not."""
        for request in list(sent):
            for sector, count in request.ask.places:
                if isinstance(request.ask, Read):
                    self.contents.read_ends(request.number)
                else:
                    self.contents.write_ends(request.number, sector, count, done=False)
            self.sent.remove(request)

    def _queue_reset(self, reset: QueueReset) -> None:
        self._forget([request for request in self.sent if request.queue == reset.queue])
        self.driver.queue_reset(reset.queue, self.deadline)
        layout = self.driver.queue_setup(reset.queue, reset.size)
        self.lanes[reset.queue] = Lane(layout, reset.size)
        self._arm(reset.queue)

    def _pause(self, milliseconds: int) -> None:
        with self.disk.paused():
            time.sleep(milliseconds / 1000)

    def _resize(self, capacity: int) -> None:
        before = self.driver.config_generation()
        changes = len(self.driver.config_changes())
        end = self.capacity
        self.contents.lost(min(capacity, end), max(capacity, end))
        for request in self.sent:
            if any(sector + count > capacity for sector, count in request.ask.places):
                request.doubtful = True
        self.disk.resize(capacity)
        self.capacity = capacity
        if capacity == end:
            return
        try:
            seen = self.driver.wait_config_change(above=changes, timeout=self.deadline)
            # The last interrupt may be from before the resize, or for a used buffer.
            while seen[-1].capacity != capacity:
                seen = self.driver.wait_config_change(above=len(seen), timeout=self.deadline)
        except DeviceTimeoutError as error:
            what = f"the capacity is {self.driver.config().capacity}, not {capacity}"
            raise Finding("resize", "5.2.6.2-D-02", what, str(error)) from None
        # A legacy interface, which does not offer VERSION_1, has no generation (virtio 2.5.4).
        modern = self.offered & Feature.VERSION_1.mask
        if modern and seen[-1].generation == before:
            what = f"a resize left the config generation at {before}"
            raise Finding("generation", "4.1.4.3.1-D-06", what)

    def _cache_mode(self, writeback: bool) -> None:
        self.driver.config_write(CONFIG_FIELD["writeback"].offset, bytes([writeback]))
        self._writeback = int(writeback)
        self._read_config()

    def _read_config(self) -> None:
        self.config = config = self.driver.config()
        if config.capacity != self.capacity:
            what = f"the capacity is {config.capacity}, not {self.capacity}"
            raise Finding("capacity", "5.2.4", what)
        if self._writeback not in (None, config.writeback):
            what = f"writeback is {config.writeback}, and {self._writeback} was written to it"
            raise Finding("writeback", "5.2.6.1-R-12", what)

    # --- interrupts

    def _set_interrupts_enabled(self, want: WantInterrupts) -> None:
        self.lanes[want.queue].wanted = want.wanted
        for request in self.sent:
            if request.queue == want.queue:
                request.interrupts = None  # the device may have seen the old setting or the new one
        self._arm(want.queue)

    def _suppress(self, enabled: bool) -> None:
        for request in self.sent:
            request.interrupts = None  # the driver asks for other interrupts from now on
        self.suppressed = enabled
        self.driver.suppress_notifications(enabled)
        if not enabled:
            for index in range(len(self.lanes)):
                self._arm(index)

    def _arm(self, queue: int) -> None:
        """Tell the device whether this queue wants an interrupt for the next used buffer.

        With EVENT_IDX and suppression the driver does that itself, at each look at the queue.
        """
        lane = self.lanes[queue]
        if self.suppressed and self.negotiated(Feature.EVENT_IDX):
            return
        event_idx = self.negotiated(Feature.EVENT_IDX)
        last_used = self.driver.queue_state(queue).last_used if event_idx else 0
        if self.negotiated(Feature.RING_PACKED):
            flags = RING_EVENT_FLAGS_DESC if event_idx else RING_EVENT_FLAGS_ENABLE
            flags = flags if lane.wanted else RING_EVENT_FLAGS_DISABLE
            self.driver.memory_write(lane.layout.driver, EVENT_SUPPRESSION.pack(last_used, flags))
        elif event_idx:
            event = last_used if lane.wanted else (last_used + FAR) & 0xFFFF
            used_event = lane.layout.driver + 4 + 2 * lane.layout.size
            self.driver.memory_write(used_event, event.to_bytes(2, "little"))
        else:
            flags = 0 if lane.wanted else AVAIL_F_NO_INTERRUPT
            self.driver.memory_write(lane.layout.driver, flags.to_bytes(2, "little"))

    def _interrupt_statement(self) -> str:
        if self.negotiated(Feature.RING_PACKED):
            return "2.8.10"
        return "2.7.7.2-D-05" if self.negotiated(Feature.EVENT_IDX) else "2.7.7.2-D-03"

    # --- requests

    def _send(self, send: Send) -> None:
        lane = self.lanes[send.queue]
        # With other requests in flight, their interrupts could not be told from these.
        alone = not any(request.queue == send.queue for request in self.sent)
        if self.negotiated(Feature.EVENT_IDX):
            self._arm(send.queue)
        # With suppression, a look at the queue may ask for a later interrupt than this request's.
        due = lane.wanted and alone and not self.suppressed
        interrupts = self.driver.interrupts().queue if due else None
        fresh: list[Sent] = []
        for ask in send.asks:
            self.requests += 1
            salt = {Discard: ANYTHING, WriteZeroes: ZEROES}.get(type(ask), self.requests)
            fresh.append(Sent(self.requests, ask, send.queue, 0, salt, interrupts))
            for sector, count in ask.places:
                if isinstance(ask, Read):
                    self.contents.read_begins(self.requests, sector, count)
                else:
                    self.contents.write_begins(self.requests, sector, count, salt)
        # A read that is sent before a write of the same batch may see its data, too.
        tokens = self.driver.submit([_request(sent) for sent in fresh], send.queue)
        for sent, token in zip(fresh, tokens, strict=True):
            sent.token = token
        self.sent += fresh
        lane.free -= sum(ask.descriptors for ask in send.asks)

    def _burst(self, burst: Burst) -> None:
        lane = self.lanes[burst.queue]
        others = len(self.sent)
        for number in range(burst.count):
            kind = Write if number % 3 else Read
            ask = kind(sector=burst.sector + number % burst.span, count=1)
            while self.sent and (
                len(self.sent) >= min(others + burst.together, MOST_IN_FLIGHT)
                or lane.free < ask.descriptors
            ):
                self._collect(1)
                others = max(others - 1, 0)
            self._send(Send(asks=(ask,), queue=burst.queue))
        self._collect(len(self.sent))

    def _collect(self, count: int) -> None:
        taken, self.sent = self.sent[:count], self.sent[count:]
        try:
            completions = self.driver.complete([request.token for request in taken], self.deadline)
        except DeviceTimeoutError as error:
            what = "a request is not used"
            raise Finding("completes", "5.2.6", what, str(error)) from None
        for request, completion in zip(taken, completions, strict=True):
            self.lanes[request.queue].free += request.ask.descriptors
            self._check(request, completion)
        for request in taken:
            if request.interrupts is None:
                continue
            try:
                self.driver.wait_interrupt("queue", request.interrupts, self.deadline)
            except DeviceTimeoutError as error:
                what = "a used buffer did not interrupt"
                raise Finding("interrupt", self._interrupt_statement(), what, str(error)) from None

    def _check(self, sent: Sent, completion: Completion) -> None:
        ask, status = sent.ask, completion.status
        # First of all end the request in the model, whatever the checks find.
        may = []
        for sector, count in ask.places:
            if isinstance(ask, Read):
                may = self.contents.read_ends(sent.number)
            else:
                self.contents.write_ends(sent.number, sector, count, done=status == Status.OK)
        what = type(ask).__name__
        if completion.damage:
            damage = "; ".join(completion.damage)
            raise Finding("damage", "2.7.5.1", f"{what} changed memory outside its buffers", damage)
        if status != Status.OK and not (sent.doubtful and status == Status.IOERR):
            raise Finding("status", "5.2.6", f"{what} ended with status {status}", str(ask))
        self._check_used_length(what, completion, may)
        if status != Status.OK:
            return
        if isinstance(ask, Read):
            wrong = mismatch(completion.data, ask.sector, may)
            if wrong:
                raise Finding("contents", "5.2.6", "a read is wrong", f"{ask}: {wrong}")
        if isinstance(ask, GetId):
            self._check_identity(completion.data)

    def _check_used_length(
        self, what: str, completion: Completion, may: list[frozenset[int]]
    ) -> None:
        """Raise Finding if the used length counts bytes that were not written (virtio 2.7.8.2).

        In a read with unknown contents, a byte like CANARY may be data.
        """
        unwritten = -1 if any(ANYTHING in salts for salts in may) else completion.data.find(CANARY)
        written = len(completion.data) + 1 if unwritten < 0 else unwritten
        if completion.used_len <= written:
            return
        statement = "2.8.4" if self.negotiated(Feature.RING_PACKED) else "2.7.8.2-D-02"
        finding = Finding(
            "used-length",
            statement,
            f"{what}, status {completion.status}: used length {completion.used_len},"
            f" but only {written} bytes written from the start",
        )
        if not self.known.explains(finding):
            raise finding

    def _check_identity(self, identity: bytes) -> None:
        serial = self.disk.spec.serial
        if serial is not None:
            self._identity = serial.encode().ljust(20, b"\0")
        elif self._identity is None:
            self._identity = identity
        if identity != self._identity:
            raise Finding("identity", "5.2.6", "GET_ID", f"{identity!r}, not {self._identity!r}")


def _request(sent: Sent) -> Request:
    """Return the request in the driver's form."""
    ask = sent.ask
    match ask:
        case Read():
            plain = Request(RequestType.IN, ask.sector, receive=ask.received)
        case Write():
            data = sectors_of(sent.salt, ask.sector, ask.count)
            plain = Request(RequestType.OUT, ask.sector, data)
        case Flush():
            plain = Request(RequestType.FLUSH)
        case GetId():
            plain = Request(RequestType.GET_ID, receive=ask.received)
        case Discard():
            data = b"".join(segment(*place) for place in ask.segments)
            plain = Request(RequestType.DISCARD, data=data)
        case WriteZeroes():
            data = b"".join(segment(*place, int(ask.unmap)) for place in ask.segments)
            plain = Request(RequestType.WRITE_ZEROES, data=data)
        case _:
            raise TypeError(f"{ask} is not a request")
    return replace(plain, readable=ask.readable, writable=ask.writable, indirect=ask.indirect)
