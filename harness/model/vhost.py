"""One front-end's connection: the messages of vhost-user, from the back-end's side.

See QEMU's docs/interop/vhost-user.rst. A front-end that negotiates PROTOCOL_F_STATUS sets the
device status here; without it an enabled queue may run.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

from harness.model.block import Block
from harness.model.device import Device, Transport
from harness.model.loop import Loop
from harness.model.memory import BrokenError, Memory, Region
from harness.model.observer import SHOWN, Observer
from harness.model.queue import Queue
from harness.model.ring import Addresses
from harness.virtio.device import DeviceStatus
from harness.virtio.ring import MAX_QUEUE_SIZE
from harness.virtio.vhost_user import (
    CONFIG,
    FEATURE_PROTOCOL,
    HEADER,
    MEMORY,
    NEED_REPLY,
    REPLY,
    U64,
    VERSION,
    VERSION_MASK,
    VRING_ADDR,
    VRING_STATE,
    BackEndRequest,
    FrontEndRequest,
    ProtocolFeature,
)

COUNT = struct.Struct("=I4x")
REGION = struct.Struct("=QQQQ")
assert COUNT.size + REGION.size == MEMORY.size

MAX_FDS = 8
MAX_PAYLOAD = 4096
PATIENCE = 2.0
"""Longest time in which the rest of a message has to arrive, in seconds."""

OFFERED = (
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.STATUS,
)
"""Protocol features of the back-end."""

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
        self._protocol = 0
        self._channel = -1
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
            self._take_message()
        except (HungUpError, OSError):
            self.close()
        except (RefusedError, struct.error) as error:
            print(f"disconnecting: {error}", file=sys.stderr, flush=True)
            self.close()

    def _take_message(self) -> None:
        header, fds = self._receive(HEADER.size)
        request, flags, size = HEADER.unpack(header)
        if flags & VERSION_MASK != VERSION or size > MAX_PAYLOAD:
            raise RefusedError(f"a message of another protocol: {header.hex(' ')}")
        payload = self._receive(size)[0] if size else b""
        if self._observer:
            self._observer("message", request=request, payload=payload[:SHOWN].hex())
        answer: bytes | None = None
        refused: Exception | None = None
        try:
            answer = self._handle(request, payload, fds)
        except (RefusedError, BrokenError, OSError, ValueError) as error:
            refused = error
        finally:
            for fd in fds:  # descriptors that no handler has taken
                os.close(fd)
        if answer is None and flags & NEED_REPLY:
            answer = U64.pack(refused is not None)
        elif refused and not self._refused_otherwise(request):
            raise RefusedError(f"message {request}: {refused}")
        if answer is not None:
            self._link.sendall(HEADER.pack(request, VERSION | REPLY, len(answer)) + answer)

    def _refused_otherwise(self, request: int) -> bool:
        """Return whether a refusal shows without a reply and without the end of the connection.

        A bad write to the configuration space is ignored. Refused features show in the status.
        """
        by_status = self._protocol & ProtocolFeature.STATUS.mask
        return request == FrontEndRequest.SET_CONFIG or bool(
            request == FrontEndRequest.SET_FEATURES and by_status
        )

    def _receive(self, length: int) -> tuple[bytes, list[int]]:
        data, fds = b"", []
        while len(data) < length:
            piece, more, _, _ = socket.recv_fds(self._link, length - len(data), MAX_FDS)
            if not piece:
                raise HungUpError
            data += piece
            fds += more
        return data, fds

    def _handle(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        handlers: dict[int, Handler] = {
            FrontEndRequest.GET_FEATURES: self._get_features,
            FrontEndRequest.SET_FEATURES: self._set_features,
            FrontEndRequest.SET_OWNER: lambda payload, fds: None,
            FrontEndRequest.SET_MEM_TABLE: self._set_mem_table,
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
            FrontEndRequest.RESET_DEVICE: lambda payload, fds: self.device.reset(),
            FrontEndRequest.SET_STATUS: self._set_status,
            FrontEndRequest.GET_STATUS: lambda payload, fds: U64.pack(self.device.status),
        }
        if request not in handlers:
            raise RefusedError("this request is not implemented")
        return handlers[request](payload, fds)

    # --- features, status, configuration

    def _get_features(self, payload: bytes, fds: list[int]) -> bytes:
        return U64.pack(self.device.offered() | FEATURE_PROTOCOL)

    def _set_features(self, payload: bytes, fds: list[int]) -> None:
        (features,) = U64.unpack(payload)
        own = features & ~FEATURE_PROTOCOL
        if not self.device.choose(own):
            raise RefusedError(f"features {own:#x} cannot be accepted")
        if not features & FEATURE_PROTOCOL:
            for queue in self.device.queues:
                queue.enabled = True

    def protocol_features(self) -> int:
        """Return the protocol features that the back-end offers."""
        return sum(feature.mask for feature in OFFERED)

    def _set_protocol_features(self, payload: bytes, fds: list[int]) -> None:
        (self._protocol,) = U64.unpack(payload)

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
                    REGION.unpack_from(payload, COUNT.size + number * REGION.size)
                ]
            ]
        )
        self.device.set_memory(memory)

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
        index, _, desc, device, driver, _ = VRING_ADDR.unpack(payload)
        queue = self._queue(index)
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
        self._loop.forget(self._link.fileno())
        self._link.close()
        self._closed()


def _take(fds: list[int]) -> int:
    if not fds:
        raise RefusedError("no file descriptor came with it")
    return fds.pop()
