"""A front-end whose every message, descriptor and region of memory is chosen by the test."""

from __future__ import annotations

import mmap
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

from conformance.waiting import SOON
from harness.driver.errors import DeviceTimeoutError, DriverError
from harness.driver.flight import Flight
from harness.driver.interface import Completion, Request
from harness.driver.memory import DmaMemory, Region
from harness.driver.transport.vhost_channel import MAX_PAYLOAD, Channel
from harness.driver.virtqueue.base import Virtqueue
from harness.driver.virtqueue.packed import PackedQueue
from harness.driver.virtqueue.split import SplitQueue
from harness.virtio.blk import SECTOR, RequestType, Status
from harness.virtio.device import DeviceStatus
from harness.virtio.features import Feature
from harness.virtio.vhost_user import (
    CONFIG,
    FEATURE_LOG_ALL,
    FEATURE_PROTOCOL,
    HEADER,
    INFLIGHT,
    REGION,
    REPLY,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_F_LOG,
    VRING_STATE,
    FrontEndRequest,
    ProtocolFeature,
)

ANSWERS = 5.0
"""Seconds in which a message is answered."""

AREA = 1 << 20
"""Bytes of a region of memory."""

BUS = 1 << 32
USER = 0x5000_0000_0000
"""Bus and user address of the first region; they differ, and do not fit into 32 bits."""

APART = 1 << 24
"""Bytes from one region's address to the next one's."""

PACKED_START = 1 << 15 | 1 << 31
"""Base of a packed virtqueue at its start: both positions 0, both wrap counters 1."""

SIZE = 64
"""Descriptors of a virtqueue, unless a test says otherwise."""

DRIVER = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER
READY = DRIVER | DeviceStatus.FEATURES_OK

TAKEN = sum(
    feature.mask for feature in (Feature.VERSION_1, Feature.ORDER_PLATFORM, Feature.BLK_ZONED)
)
"""Features that are accepted wherever they are offered: a device may refuse a driver without."""

SIMPLE = (ProtocolFeature.CONFIG, ProtocolFeature.MQ, ProtocolFeature.REPLY_ACK)
"""Protocol features that a test accepts if it does not name others."""


class Shared:
    """A region of memory in a file of its own, `offset` bytes from the start of the file."""

    def __init__(self, number: int, offset: int = 0, size: int = AREA) -> None:
        """`number` chooses the addresses. `size` is in bytes."""
        self.bus, self.user = BUS + number * APART, USER + number * APART
        self.size, self.offset = size, offset
        self.fd = os.memfd_create("region")
        os.truncate(self.fd, offset + size)
        self.view = memoryview(mmap.mmap(self.fd, offset + size))[offset:]
        self.memory = DmaMemory([Region(self.bus, self.view)])

    @property
    def entry(self) -> tuple[int, int, int, int]:
        """Return the fields of a message that describe the region."""
        return self.bus, self.size, self.user, self.offset

    def close(self) -> None:
        """Close the file. The mapping ends with the last view of it."""
        os.close(self.fd)


@dataclass
class Events:
    """Eventfds of a ring for kick, call and error."""

    kick: int
    call: int
    error: int

    @classmethod
    def new(cls) -> Events:
        """Make three eventfds."""
        return cls(*(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3)))

    def close(self) -> None:
        """Close them."""
        for fd in (self.kick, self.call, self.error):
            os.close(fd)


def signals(eventfd: int) -> int:
    """Return how often an eventfd was signalled since the last call."""
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0


class Ring:
    """A virtqueue in a region of the front-end, not known to the back-end yet."""

    def __init__(
        self, front: FrontEnd, region: Shared, index: int, size: int, packed: bool
    ) -> None:
        self.front = front
        self.region = region
        self.index = index
        self.packed = packed
        memory = region.memory
        kind = PackedQueue if packed else SplitQueue
        self.queue: Virtqueue = kind(memory, index, size, in_order=False, event_idx=False)
        self.events = Events.new()
        self.flights: dict[int, Flight] = {}
        self._memories: dict[int, DmaMemory] = {}
        self.again: list[int] = []
        """Heads of used elements that belong to no request in flight."""

    # --- setting it up

    def describe(self, base: int | None = None, log: int | None = None) -> None:
        """Send size, base, addresses and the call descriptor.

        `base` is that of a ring that was never used if it is None. `log` is the address at which
        writes to the used ring are logged.
        """
        front, index, layout = self.front, self.index, self.queue.layout
        if base is None:
            base = PACKED_START if self.packed else 0
        front.tell(FrontEndRequest.SET_VRING_NUM, VRING_STATE.pack(index, layout.size))
        front.tell(FrontEndRequest.SET_VRING_BASE, VRING_STATE.pack(index, base))
        self.place(log)
        front.tell(FrontEndRequest.SET_VRING_ERR, U64.pack(index), [self.events.error])
        front.tell(FrontEndRequest.SET_VRING_CALL, U64.pack(index), [self.events.call])

    def place(self, log: int | None = None) -> None:
        """Send the addresses of the ring's areas."""
        self.front.tell(FrontEndRequest.SET_VRING_ADDR, self.address(log))

    def address(self, log: int | None = None) -> bytes:
        """Return the payload of SET_VRING_ADDR, with the region's user addresses."""
        layout = self.queue.layout
        to_user = self.region.user - self.region.bus
        desc, device, driver = (
            area + to_user for area in (layout.desc, layout.device, layout.driver)
        )
        flags = 0 if log is None else VRING_F_LOG
        return VRING_ADDR.pack(self.index, flags, desc, device, driver, log or 0)

    def give_kick(self) -> None:
        """Send the kick descriptor, and signal it, as front-ends should."""
        self.front.tell(FrontEndRequest.SET_VRING_KICK, U64.pack(self.index), [self.events.kick])
        self.notify()

    def enable(self, on: bool = True) -> None:
        """Enable or disable the ring, and wait until the back-end has taken the message."""
        self.front.tell(FrontEndRequest.SET_VRING_ENABLE, VRING_STATE.pack(self.index, on))
        self.front.barrier()

    def start(self, base: int | None = None, log: int | None = None) -> None:
        """Send everything, the kick included, and enable the ring."""
        self.describe(base, log)
        self.give_kick()
        self.enable()

    def stop(self) -> int:
        """Stop the ring, and return its base (GET_VRING_BASE)."""
        asked = VRING_STATE.pack(self.index, 0)
        answer = self.front.ask(FrontEndRequest.GET_VRING_BASE, asked)
        assert len(answer) == VRING_STATE.size, (
            f"the answer to GET_VRING_BASE has {len(answer)} bytes, not {VRING_STATE.size}"
        )
        index, base = VRING_STATE.unpack(answer)
        assert index == self.index, f"GET_VRING_BASE of ring {self.index} answers for {index}"
        return int(base)

    # --- requests

    def notify(self) -> None:
        """Signal the kick descriptor."""
        os.eventfd_write(self.events.kick, 1)

    def add(self, request: Request, memory: DmaMemory | None = None) -> Flight:
        """Write a request, with its buffers in `memory` (default: the ring's region)."""
        memory = memory or self.region.memory
        flight = Flight.prepare(request, memory, self.queue)
        self.flights[flight.head] = flight
        self._memories[flight.head] = memory
        return flight

    def publish(self, *flights: Flight) -> None:
        """Make requests available, without a notification."""
        self.queue.publish(flight.head for flight in flights)

    def send(
        self, *requests: Request, memory: DmaMemory | None = None, kick: bool = True
    ) -> list[Flight]:
        """Write requests, make them available, and notify."""
        flights = [self.add(request, memory) for request in requests]
        self.publish(*flights)
        if kick:
            self.notify()
        return flights

    def poll(self) -> None:
        """Take what the back-end has used."""
        for used in self.queue.take_used():
            flight = self.flights.pop(used.id, None)
            if flight is None:
                self.again.append(used.id)
            else:
                flight.complete(used.length, self._memories.pop(used.id))

    def wait(self, flights: Sequence[Flight], timeout: float = SOON) -> list[Completion]:
        """Return the results of requests. AssertionError if one is not used in time."""
        deadline = time.monotonic() + timeout
        while True:
            self.poll()
            missing = [flight for flight in flights if flight.completion is None]
            if not missing:
                return [flight.completion for flight in flights if flight.completion]
            self.front.check()
            assert time.monotonic() < deadline, (
                f"{len(missing)} of {len(flights)} requests were not used within {timeout:g} s"
            )
            time.sleep(0.002)

    def now(self) -> int:
        """Return the base at which the ring goes on after the last used chain that was polled."""
        used = self.queue.state().last_used
        return used | used << 16 if self.packed else used

    def done(self, flights: Iterable[Flight]) -> int:
        """Return how many of these requests are used now."""
        self.poll()
        return sum(flight.completion is not None for flight in flights)

    def close(self) -> None:
        """Close the descriptors."""
        self.events.close()


class FrontEnd:
    """A connection to a back-end. What the back-end must not do is an AssertionError.

    `path` is that of the socket. `protocol` are the protocol features to accept if they are
    offered.
    """

    def __init__(
        self,
        path: str,
        protocol: Iterable[ProtocolFeature] = SIMPLE,
        needs: Iterable[ProtocolFeature] = (),
    ) -> None:
        """Connect and negotiate protocol features. Skip if one of `needs` is not offered."""
        self.path = path
        self.channel = Channel(path, ANSWERS)
        self.regions = [Shared(0)]
        self.rings: list[Ring] = []
        self.requests: socket.socket | None = None
        """Our end of the channel for the back-end's requests, None without BACKEND_REQ."""
        self.tracker: tuple[int, bytes] | None = None
        """File and description of the region for requests in flight."""
        self.protocol = 0
        self._features = 0
        self._wanted = (*protocol, *needs)
        try:
            self._negotiate(needs)
        except BaseException:
            self.close()
            raise

    def reconnect(self, path: str) -> None:
        """Connect again. The new connection does not know the memory and the rings, which stay."""
        self.channel.close()
        self.channel = Channel(path, ANSWERS)
        self._negotiate()

    def _negotiate(self, needs: Iterable[ProtocolFeature] = ()) -> None:
        self.tell(FrontEndRequest.SET_OWNER)
        self.offered = self.ask_number(FrontEndRequest.GET_FEATURES)
        if not self.offered & FEATURE_PROTOCOL:
            pytest.skip("the back-end does not offer PROTOCOL_FEATURES")
        self.has = self.ask_number(FrontEndRequest.GET_PROTOCOL_FEATURES)
        missing = [feature.name for feature in needs if not self.has & feature.mask]
        if missing:
            pytest.skip(f"the back-end does not offer {', '.join(missing)}")
        self.protocol = self.has & sum({feature.mask for feature in self._wanted})
        self.tell(FrontEndRequest.SET_PROTOCOL_FEATURES, U64.pack(self.protocol))
        self.channel.acknowledged = self.accepted(ProtocolFeature.REPLY_ACK)
        if self.accepted(ProtocolFeature.BACKEND_REQ):
            if self.requests:
                self.requests.close()
            self.requests, theirs = socket.socketpair()
            with theirs:
                self.tell(FrontEndRequest.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])

    def accepted(self, feature: ProtocolFeature) -> bool:
        """Return True if a protocol feature was accepted."""
        return bool(self.protocol & feature.mask)

    # --- messages

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Raise AssertionError when the device refuses a legal message or closes the connection."""
        try:
            yield
        except DeviceTimeoutError:
            raise
        except DriverError as error:
            raise AssertionError(error.message) from None

    def ask(self, request: FrontEndRequest, payload: bytes = b"") -> bytes:
        """Send a message that has a reply, and return the payload of the reply."""
        with self._answered():
            return self.channel.ask(request, payload)

    def ask_number(self, request: FrontEndRequest) -> int:
        """Send a message whose reply is a number of 64 bits, and return it."""
        answer = self.ask(request)
        assert len(answer) == U64.size, f"{request.name} is answered with {len(answer)} bytes"
        return int(U64.unpack(answer)[0])

    def tell(self, request: FrontEndRequest, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message that has no reply of its own; it has to succeed."""
        with self._answered():
            self.channel.tell(request, payload, fds)

    def send(
        self,
        request: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        flags: int = VERSION,
        size: int | None = None,
    ) -> None:
        """Send a message as it is, legal or not. `size` is that in the header, if it is another.

        A reply is not awaited.
        """
        header = HEADER.pack(request, flags, len(payload) if size is None else size)
        raw = socket.socket(fileno=os.dup(self.channel.fileno()))
        try:
            raw.settimeout(ANSWERS)
            with suppress(OSError):  # the back-end has hung up, which `answer` sees
                sent = socket.send_fds(raw, [header + payload], list(fds))
                raw.sendall((header + payload)[sent:])
        finally:
            raw.close()

    def answer(self, timeout: float = ANSWERS, fds: list[int] | None = None) -> bytes | None:
        """Return the next message from the back-end, whole.

        Return None if it has hung up, and b"" if there is nothing within `timeout` seconds.
        Descriptors that come with it are added to `fds`.
        """
        if self.channel.fileno() < 0:
            return None
        deadline = time.monotonic() + timeout
        unread = self.channel.unread
        assert not unread, f"with its last answer the back-end sent {unread[:64].hex(' ')}"
        data = b""
        wanted = HEADER.size
        while len(data) < wanted:
            ready, _, _ = select.select([self.channel], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                assert not data, f"{len(data)} bytes of a reply came, of {wanted}"
                return b""
            raw = socket.socket(fileno=os.dup(self.channel.fileno()))
            try:
                piece, more, _, _ = socket.recv_fds(raw, wanted - len(data), 8)
            except OSError:
                piece, more = b"", []
            finally:
                raw.close()
            for fd in more:
                if fds is None:
                    os.close(fd)
                else:
                    fds.append(fd)
            if not piece:
                return None
            data += piece
            if len(data) == HEADER.size:
                size = HEADER.unpack(data)[2]
                assert size <= MAX_PAYLOAD, f"a message of {size} bytes came"
                wanted += size
        return data

    def reply(self, request: FrontEndRequest) -> bytes:
        """Return the payload of the reply to a message that was sent. AssertionError if none."""
        return reply_of(self.answer(), request)

    def barrier(self) -> None:
        """Return when the back-end has handled the messages before this one."""
        self.ask_number(FrontEndRequest.GET_FEATURES)

    def check(self) -> None:
        """AssertionError if the back-end has hung up or sent something unasked."""
        with self._answered():
            self.channel.check()

    # --- setting it up

    def agree(self, *extra: Feature, protocol: bool = True, log: bool = False) -> None:
        """Send the features: TAKEN and `extra`, which the test is skipped without.

        `protocol` includes PROTOCOL_FEATURES, `log` includes LOG_ALL.
        """
        lacking = [feature.name for feature in extra if not self.offered & feature.mask]
        if lacking:
            pytest.skip(f"the device does not offer {', '.join(lacking)}")
        self._features = self.offered & TAKEN
        self._features |= sum({feature.mask for feature in extra})
        if protocol:
            self._features |= FEATURE_PROTOCOL
        self.set_status(DRIVER)
        self.features(log)
        self.set_status(READY)

    def features(self, log: bool) -> None:
        """Send the features, with or without LOG_ALL. Skip if it has to be offered and is not."""
        if log and not self.offered & FEATURE_LOG_ALL:
            pytest.skip("the back-end does not offer LOG_ALL")
        features = self._features | (FEATURE_LOG_ALL if log else 0)
        self.tell(FrontEndRequest.SET_FEATURES, U64.pack(features))

    def set_status(self, value: int) -> None:
        """Send the device status, if STATUS was accepted."""
        if self.accepted(ProtocolFeature.STATUS):
            self.tell(FrontEndRequest.SET_STATUS, U64.pack(value))

    def share(self, *regions: Shared) -> None:
        """Send these regions, or all: as a table, or one by one with CONFIGURE_MEM_SLOTS."""
        chosen = regions or tuple(self.regions)
        if self.accepted(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            for region in chosen:
                self.add_region(region)
            return
        self.replace(*chosen)

    def replace(self, *chosen: Shared) -> None:
        """Send a memory table of these regions, in place of all former ones."""
        entries = b"".join(REGION.pack(*region.entry)[8:] for region in chosen)
        table = len(chosen).to_bytes(8, "little") + entries
        self.tell(FrontEndRequest.SET_MEM_TABLE, table, [region.fd for region in chosen])
        self.barrier()

    def add_region(self, region: Shared) -> None:
        """Add a region (ADD_MEM_REG)."""
        self.tell(FrontEndRequest.ADD_MEM_REG, REGION.pack(*region.entry), [region.fd])
        self.barrier()

    def remove_region(self, region: Shared, offset: int | None = None) -> None:
        """Remove a region (REM_MEM_REG). `offset` is that in the message, if it is another."""
        bus, size, user, real = region.entry
        message = REGION.pack(bus, size, user, real if offset is None else offset)
        self.tell(FrontEndRequest.REM_MEM_REG, message)
        self.barrier()

    def track(self, queues: int = 1, size: int = SIZE) -> None:
        """Get a region for requests in flight, unless there is one, and give it to the back-end."""
        if self.tracker is None:
            asked = INFLIGHT.pack(0, 0, queues, size)
            with self._answered():
                answer, fd = self.channel.ask_for_file(FrontEndRequest.GET_INFLIGHT_FD, asked)
            assert fd is not None, "no file comes with the answer to GET_INFLIGHT_FD"
            self.tracker = fd, answer
        fd, description = self.tracker
        self.tell(FrontEndRequest.SET_INFLIGHT_FD, description, [fd])

    def ring(
        self,
        index: int = 0,
        size: int = SIZE,
        packed: bool = False,
        region: Shared | None = None,
    ) -> Ring:
        """Make a ring in a region (default: the first), which the back-end is not told of."""
        ring = Ring(self, region or self.regions[0], index, size, packed)
        self.rings.append(ring)
        return ring

    def begin(
        self, *extra: Feature, log: bool = False, packed: bool = False, size: int = SIZE
    ) -> Ring:
        """Negotiate, share the memory and start one ring, up to DRIVER_OK."""
        self.agree(*extra, *([Feature.RING_PACKED] if packed else []), log=log)
        if self.accepted(ProtocolFeature.INFLIGHT_SHMFD):
            self.track(size=size)
        self.share()
        ring = self.ring(size=size, packed=packed)
        ring.start()
        self.ready()
        return ring

    def ready(self) -> None:
        """Set DRIVER_OK, if STATUS was accepted."""
        self.set_status(READY | DeviceStatus.DRIVER_OK)

    def more(self, offset: int = 0) -> Shared:
        """Make one more region, which the back-end is not told of."""
        region = Shared(len(self.regions), offset)
        self.regions.append(region)
        return region

    def queue_count(self) -> int:
        """Return how many virtqueues the back-end has; without MQ only the first is known."""
        if not self.accepted(ProtocolFeature.MQ):
            return 1
        return self.ask_number(FrontEndRequest.GET_QUEUE_NUM)

    def config(self, offset: int, size: int) -> bytes:
        """Return the payload of the reply to GET_CONFIG."""
        asked = CONFIG.pack(offset, size, 0) + bytes(size)
        return self.ask(FrontEndRequest.GET_CONFIG, asked)

    def hang_up(self) -> None:
        """Close the connection only."""
        self.channel.close()

    def close(self) -> None:
        """Close the connection, and everything else."""
        self.channel.close()
        if self.requests:
            self.requests.close()
        if self.tracker:
            os.close(self.tracker[0])
        for ring in self.rings:
            ring.close()
        for region in self.regions:
            region.close()
        self.rings, self.regions, self.requests, self.tracker = [], [], None, None


def read(sector: int = 0, count: int = 1) -> Request:
    """Return a request that reads `count` sectors of 512 bytes."""
    return Request(RequestType.IN, sector, receive=count * SECTOR)


def write(sector: int, data: bytes) -> Request:
    """Return a request that writes whole sectors of 512 bytes."""
    return Request(RequestType.OUT, sector, data)


def check_ok(completions: Iterable[Completion]) -> None:
    """AssertionError if a request failed, or the device wrote outside its buffers."""
    for number, completion in enumerate(completions):
        assert completion.status == Status.OK, (
            f"request {number} has status {completion.status:#04x}"
        )
        assert not completion.damage, f"request {number}: {'; '.join(completion.damage)}"


def reply_of(message: bytes | None, request: FrontEndRequest) -> bytes:
    """Return the payload of a reply. AssertionError if it is not a reply to `request`."""
    assert message is not None, f"the back-end hung up at {request.name}"
    assert message, f"{request.name} is not answered within {ANSWERS:g} s"
    number, flags, size = HEADER.unpack_from(message)
    assert number == request, f"{request.name} ({int(request)}) is answered by {number}"
    assert flags & 7 == VERSION | REPLY, f"flags {flags:#x} in the reply to {request.name}"
    assert size == len(message) - HEADER.size
    return message[HEADER.size :]


Connect = Callable[..., FrontEnd]
"""Type of the fixture `front`."""
