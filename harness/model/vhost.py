"""One front-end's connection: the messages of vhost-user, from the back-end's side.

See QEMU's docs/interop/vhost-user.rst. A front-end that negotiates PROTOCOL_F_STATUS sets the
device status here; without it an enabled queue may run.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property

from harness.model.block import Block
from harness.model.device import Device, Transport
from harness.model.dirty import DirtyLog
from harness.model.inflight import region_size
from harness.model.loop import Loop
from harness.model.memory import BrokenError, Memory, Region
from harness.model.observer import SHOWN, Observer
from harness.model.queue import Queue
from harness.model.ring import Addresses
from harness.virtio.device import DeviceStatus
from harness.virtio.ring import MAX_QUEUE_SIZE
from harness.virtio.vhost_user import (
    CONFIG,
    FEATURE_LOG_ALL,
    FEATURE_PROTOCOL,
    HEADER,
    INFLIGHT,
    LOG,
    MEMORY,
    NEED_REPLY,
    REGION,
    REPLY,
    U64,
    VERSION,
    VERSION_MASK,
    VRING_ADDR,
    VRING_F_LOG,
    VRING_STATE,
    BackEndRequest,
    FrontEndRequest,
    ProtocolFeature,
)

COUNT = struct.Struct("=I4x")
ENTRY = struct.Struct("=QQQQ")
"""A region of SET_MEM_TABLE: bus address, bytes, user address, offset in the file."""

assert COUNT.size + ENTRY.size == MEMORY.size

MAX_FDS = 8
MAX_PAYLOAD = 4096
READ_AHEAD = 4096
"""Bytes that are received at once: a message, or several."""

PATIENCE = 2.0
"""Longest time in which the rest of a message has to arrive, in seconds."""

MAX_MEM_SLOTS = 64
"""Regions of memory that ADD_MEM_REG can make."""

MAX_LOG = 1 << 30
MAX_IN_FLIGHT = 1 << 30
"""Bytes of a log and of a region for requests in flight that are accepted."""

NO_FD = 1 << 8
Handler = Callable[[bytes, list[int]], bytes | None]


class RefusedError(Exception):
    """Error for a message that the back-end refuses."""


class HungUpError(Exception):
    """Error raised when the front-end has disconnected."""


class Connection(Transport):
    """A connected front-end. `closed` is called once it has disconnected."""

    def __init__(
        self,
        link: socket.socket,
        block: Block,
        loop: Loop,
        closed: Callable[[], None],
        observer: Observer | None = None,
    ) -> None:
        self._link = link
        self._loop = loop
        self._closed = closed
        self._received = b""
        self._fds: list[int] = []
        """Descriptors of a message that has not been received completely."""
        self._protocol = 0
        self._channel = -1
        self._log: DirtyLog | None = None
        self._log_event = -1
        self._logs_all = False
        self.device = Device(block, loop, self, observer=observer)
        self._observer = observer
        if observer:
            observer(
                "device",
                transport="vhost-user",
                offered=self.device.offered(),
                config=self.device.read_config().hex(),
                queues=len(self.device.queues),
                vectors=0,
                **self.device.block.zone_facts(),
            )
        link.settimeout(PATIENCE)
        loop.watch(link.fileno(), self._readable)

    # --- messages

    def _readable(self) -> None:
        try:
            self._receive(READ_AHEAD)
            while self._received:
                self._take_message()
        except (HungUpError, OSError):
            self.close()
        except (RefusedError, struct.error) as error:
            print(f"disconnecting: {error}", file=sys.stderr, flush=True)
            self.close()

    def _take_message(self) -> None:
        while len(self._received) < HEADER.size:
            self._receive(HEADER.size - len(self._received))
        request, flags, size = HEADER.unpack_from(self._received)
        if flags & VERSION_MASK != VERSION or size > MAX_PAYLOAD:
            header = self._received[: HEADER.size]
            raise RefusedError(f"a message of another protocol: {header.hex(' ')}")
        size += HEADER.size
        while len(self._received) < size:
            self._receive(size - len(self._received))
        payload, self._received = self._received[HEADER.size : size], self._received[size:]
        # The kernel ends a read after data that came with descriptors, and the rest of a message is
        # read by its length: so they belong to the last message that has come.
        fds: list[int] = []
        if not self._received:
            fds, self._fds = self._fds, fds
        if self._observer:
            self._observer("message", request=request, payload=payload[:SHOWN].hex())
        answer: bytes | None = None
        self._flags = flags
        self._answer_fds: list[int] = []
        refused: Exception | None = None
        try:
            answer = self._handle(request, payload, fds)
        except (RefusedError, BrokenError, OSError, ValueError, OverflowError) as error:
            refused = error
        finally:
            for fd in fds:  # descriptors that no handler has taken
                os.close(fd)
        if answer is None and flags & NEED_REPLY:
            answer = self._acknowledgement(refused)
        elif refused and not self._refused_otherwise(request):
            raise RefusedError(f"message {request}: {refused}")
        if answer is not None:
            self._answer(HEADER.pack(request, VERSION | REPLY, len(answer)) + answer)
        for fd in self._answer_fds:
            os.close(fd)

    def _acknowledgement(self, refused: Exception | None) -> bytes:
        """Return the payload of the reply to a message without a reply of its own (REPLY_ACK)."""
        return U64.pack(refused is not None)

    def _answer(self, message: bytes) -> None:
        """Send a message, with descriptors if a handler has left any."""
        sent = 0
        if self._answer_fds:
            sent = socket.send_fds(self._link, [message], self._answer_fds)
        self._link.sendall(message[sent:])

    def _refused_otherwise(self, request: int) -> bool:
        """Return whether a refusal shows without a reply and without the end of the connection.

        A bad write to the configuration space is ignored. Refused features show in the status.
        """
        by_status = self._protocol & ProtocolFeature.STATUS.mask
        return request == FrontEndRequest.SET_CONFIG or bool(
            request == FrontEndRequest.SET_FEATURES and by_status
        )

    def _receive(self, most: int) -> None:
        """Receive up to `most` bytes, and wait for the first."""
        piece, fds, _, _ = socket.recv_fds(self._link, most, MAX_FDS)
        self._fds += fds
        if not piece:
            raise HungUpError
        self._received += piece

    def _handle(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        if request not in self._handlers:
            raise RefusedError("this request is not implemented")
        return self._handlers[request](payload, fds)

    @cached_property
    def _handlers(self) -> dict[int, Handler]:
        """Return the handler for each request that is implemented."""
        return {
            FrontEndRequest.GET_FEATURES: self._get_features,
            FrontEndRequest.SET_FEATURES: self._set_features,
            FrontEndRequest.SET_OWNER: lambda payload, fds: None,
            FrontEndRequest.SET_MEM_TABLE: self._set_mem_table,
            FrontEndRequest.SET_LOG_BASE: self._set_log_base,
            FrontEndRequest.SET_LOG_FD: self._set_log_fd,
            FrontEndRequest.SET_VRING_NUM: self._set_vring_num,
            FrontEndRequest.SET_VRING_ADDR: self._set_vring_addr,
            FrontEndRequest.SET_VRING_BASE: self._set_vring_base,
            FrontEndRequest.GET_VRING_BASE: self._get_vring_base,
            FrontEndRequest.SET_VRING_KICK: self._set_vring_kick,
            FrontEndRequest.SET_VRING_CALL: self._set_vring_call,
            FrontEndRequest.SET_VRING_ERR: self._set_vring_err,
            FrontEndRequest.GET_PROTOCOL_FEATURES: (
                lambda payload, fds: U64.pack(self.protocol_features())
            ),
            FrontEndRequest.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            FrontEndRequest.GET_QUEUE_NUM: lambda payload, fds: U64.pack(len(self.device.queues)),
            FrontEndRequest.SET_VRING_ENABLE: self._set_vring_enable,
            FrontEndRequest.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            FrontEndRequest.GET_CONFIG: self._get_config,
            FrontEndRequest.SET_CONFIG: self._set_config,
            FrontEndRequest.GET_INFLIGHT_FD: self._get_inflight_fd,
            FrontEndRequest.SET_INFLIGHT_FD: self._set_inflight_fd,
            FrontEndRequest.RESET_DEVICE: self._reset_device,
            FrontEndRequest.GET_MAX_MEM_SLOTS: lambda payload, fds: U64.pack(MAX_MEM_SLOTS),
            FrontEndRequest.ADD_MEM_REG: self._add_mem_reg,
            FrontEndRequest.REM_MEM_REG: self._rem_mem_reg,
            FrontEndRequest.SET_STATUS: self._set_status,
            FrontEndRequest.GET_STATUS: lambda payload, fds: U64.pack(self.device.status),
        }

    # --- features, status, configuration

    def _get_features(self, payload: bytes, fds: list[int]) -> bytes:
        offered = self.device.offered() | FEATURE_PROTOCOL
        if self.protocol_features() & ProtocolFeature.LOG_SHMFD.mask:
            offered |= FEATURE_LOG_ALL
        return U64.pack(offered)

    def _set_features(self, payload: bytes, fds: list[int]) -> None:
        (features,) = U64.unpack(payload)
        own = features & ~(FEATURE_PROTOCOL | FEATURE_LOG_ALL)
        self._logs_all = bool(features & FEATURE_LOG_ALL)
        self._update_logging()
        # The front-end of a running device sends its features again to start or stop the logging.
        running = any(queue.ring for queue in self.device.queues)
        if not (running and own == self.device.features) and not self.device.choose(own):
            raise RefusedError(f"features {own:#x} cannot be accepted")
        if not features & FEATURE_PROTOCOL:
            for queue in self.device.queues:
                queue.enabled = True
                self.device.run(queue)

    def protocol_features(self) -> int:
        """Return the protocol features that the back-end offers."""
        return sum(feature.mask for feature in ProtocolFeature)

    def _set_protocol_features(self, payload: bytes, fds: list[int]) -> None:
        (self._protocol,) = U64.unpack(payload)

    def _reset_device(self, payload: bytes, fds: list[int]) -> None:
        self.device.reset()
        for queue in self.device.queues:
            queue.region = None

    def _set_status(self, payload: bytes, fds: list[int]) -> None:
        self.device.set_status(U64.unpack(payload)[0] & 0xFF)

    def _get_config(self, payload: bytes, fds: list[int]) -> bytes:
        offset, size, flags = CONFIG.unpack_from(payload)
        space = self.device.read_config()
        if offset + size > len(space):
            return b""
        return CONFIG.pack(offset, size, flags) + space[offset : offset + size]

    def _set_config(self, payload: bytes, fds: list[int]) -> None:
        offset, size, _ = CONFIG.unpack_from(payload)
        if not self.device.write_config(offset, payload[CONFIG.size : CONFIG.size + size]):
            raise RefusedError(f"no writable field of {size} bytes at {offset}")

    def _set_backend_req_fd(self, payload: bytes, fds: list[int]) -> None:
        self._close(self._channel)
        self._channel = _take(fds)

    def announce_config_change(self) -> None:
        """Send CONFIG_CHANGE if a virtqueue may run: a stopped device may not say anything."""
        if self._channel >= 0 and any(map(self.device.may_run, self.device.queues)):
            with suppress(OSError):
                os.write(self._channel, HEADER.pack(BackEndRequest.CONFIG_CHANGE, VERSION, 0))

    # --- memory and virtqueues

    def _set_mem_table(self, payload: bytes, fds: list[int]) -> None:
        (count,) = COUNT.unpack_from(payload)
        if count != len(fds):
            raise RefusedError(f"{count} regions but {len(fds)} file descriptors")
        memory = Memory(
            [
                Region.mapped(fd, bus, size, user, offset)
                for number, fd in enumerate(fds)
                for bus, size, user, offset in [
                    ENTRY.unpack_from(payload, COUNT.size + number * ENTRY.size)
                ]
            ]
        )
        self.device.set_memory(memory)

    def _add_mem_reg(self, payload: bytes, fds: list[int]) -> None:
        if len(fds) != 1:
            raise RefusedError(f"a region with {len(fds)} file descriptors")
        bus, size, user, offset = REGION.unpack(payload)
        if len(self.device.memory.regions()) == MAX_MEM_SLOTS:
            raise RefusedError(f"more than {MAX_MEM_SLOTS} regions of memory")
        region = Region.mapped(fds[0], bus, size, user, offset)
        self.device.set_memory(self.device.memory.with_region(region))

    def _rem_mem_reg(self, payload: bytes, fds: list[int]) -> None:
        bus, size, user, _ = REGION.unpack(payload)
        memory = self.device.memory.without(bus, size, user)
        if memory is None:
            raise RefusedError(f"there is no region of {size} bytes at {bus:#x}")
        self.device.set_memory(memory)

    # --- the log of a migration

    def _set_log_base(self, payload: bytes, fds: list[int]) -> bytes:
        size, offset = LOG.unpack(payload)
        if len(fds) != 1 or size > MAX_LOG:
            raise RefusedError(f"a log of {size} bytes with {len(fds)} file descriptors")
        self._log = DirtyLog(fds[0], size, offset)
        self._log.event = self._log_event
        self._update_logging()
        return U64.pack(0)

    def _set_log_fd(self, payload: bytes, fds: list[int]) -> None:
        self._close(self._log_event)
        self._log_event = _take(fds)
        if self._log:
            self._log.event = self._log_event

    def _update_logging(self) -> None:
        mark = self._log.mark if self._log and self._logs_all else None
        for queue in self.device.queues:
            queue.dirty = mark

    # --- requests in flight

    def _get_inflight_fd(self, payload: bytes, fds: list[int]) -> bytes:
        _, _, queues, size = _in_flight(payload)
        length = queues * region_size(size)
        if not 0 < length <= MAX_IN_FLIGHT:
            raise RefusedError(f"no region for {queues} queues of {size} descriptors")
        fd = os.memfd_create("requests in flight")
        self._answer_fds.append(fd)
        os.truncate(fd, length)
        return INFLIGHT.pack(length, 0, queues, size)

    def _set_inflight_fd(self, payload: bytes, fds: list[int]) -> None:
        length, offset, queues, size = _in_flight(payload)
        each = region_size(size)
        if len(fds) != 1 or length < queues * each or queues > len(self.device.queues):
            raise RefusedError(f"a region of {length} bytes for {queues} queues of {size}")
        region = memoryview(mmap.mmap(fds[0], offset + length))[offset:]
        for number, queue in enumerate(self.device.queues[:queues]):
            queue.region = region[number * each : (number + 1) * each]

    def _queue(self, index: int) -> Queue:
        if index >= len(self.device.queues):
            raise RefusedError(f"there is no virtqueue {index}")
        return self.device.queues[index]

    def _set_vring_num(self, payload: bytes, fds: list[int]) -> None:
        index, size = VRING_STATE.unpack(payload)
        if not 0 < size <= MAX_QUEUE_SIZE:
            raise RefusedError(f"a virtqueue cannot have {size} descriptors")
        self.device.set_queue_size(self._queue(index), size)

    def _set_vring_addr(self, payload: bytes, fds: list[int]) -> None:
        index, flags, desc, device, driver, log = VRING_ADDR.unpack(payload)
        queue = self._queue(index)
        queue.used_ring_log = log if flags & VRING_F_LOG else None
        queue.addresses = Addresses(desc, driver, device)
        queue.remap(self.device.memory)

    def _set_vring_base(self, payload: bytes, fds: list[int]) -> None:
        index, base = VRING_STATE.unpack(payload)
        self.device.set_queue_base(self._queue(index), base)

    def _get_vring_base(self, payload: bytes, fds: list[int]) -> bytes:
        index, _ = VRING_STATE.unpack(payload)
        queue = self._queue(index)
        self.device.stop(queue)
        self._drop_kick(queue)
        return VRING_STATE.pack(index, queue.base)

    def _set_vring_kick(self, payload: bytes, fds: list[int]) -> None:
        queue = self._addressed(payload)
        kick = _take(fds)
        self._drop_kick(queue)
        queue.kick = kick
        self._loop.watch(kick, lambda: self._kicked(queue))

    def _set_vring_call(self, payload: bytes, fds: list[int]) -> None:
        queue = self._addressed(payload)
        self._close(queue.call)
        queue.call = fds.pop() if fds else -1

    def _set_vring_err(self, payload: bytes, fds: list[int]) -> None:
        queue = self._addressed(payload)
        self._close(queue.error)
        queue.error = fds.pop() if fds else -1

    def _addressed(self, payload: bytes) -> Queue:
        return self._queue(U64.unpack(payload)[0] & (NO_FD - 1))

    def _set_vring_enable(self, payload: bytes, fds: list[int]) -> None:
        index, enabled = VRING_STATE.unpack(payload)
        queue = self._queue(index)
        queue.enabled = bool(enabled)
        self.device.run(queue)

    def _kicked(self, queue: Queue) -> None:
        times = 1
        with suppress(BlockingIOError):
            times = os.eventfd_read(queue.kick)
        if self._observer:
            index = self.device.queues.index(queue)
            self._observer("notified", queue=index, width=0, value=0, **queue.asked)
        self.device.notified(queue, times)

    def serves(self, queue: Queue) -> bool:
        """Return whether the queue has a kick descriptor and the driver has set DRIVER_OK."""
        status = self._protocol & ProtocolFeature.STATUS.mask
        ready = not status or self.device.status & DeviceStatus.DRIVER_OK
        return bool(queue.kick >= 0 and ready)

    def announce_needs_reset(self, queue: Queue) -> None:
        """Signal the error descriptor of the virtqueue, if there is one."""
        if queue.error >= 0:
            os.eventfd_write(queue.error, 1)

    def _drop_kick(self, queue: Queue) -> None:
        if queue.kick >= 0:
            self._loop.forget(queue.kick)
            self._close(queue.kick)
            queue.kick = -1

    @staticmethod
    def _close(fd: int) -> None:
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Disconnect; the device is reset."""
        self.device.reset()
        for queue in self.device.queues:
            self._drop_kick(queue)
            self._close(queue.call)
            self._close(queue.error)
        self._close(self._channel)
        self._close(self._log_event)
        while self._fds:
            os.close(self._fds.pop())
        self._loop.forget(self._link.fileno())
        self._link.close()
        self._closed()


def _in_flight(payload: bytes) -> tuple[int, int, int, int]:
    """Return bytes, offset, number of virtqueues and their size; the padding may be left out."""
    length, offset, queues, size = INFLIGHT.unpack(payload.ljust(INFLIGHT.size, b"\0"))
    return length, offset, queues, size


def _take(fds: list[int]) -> int:
    if not fds:
        raise RefusedError("no file descriptor came with it")
    return fds.pop()
