"""A vhost-user back-end in a thread: it follows the protocol, except where a test scripts it."""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.virtio.features import Feature, mask
from harness.virtio.vhost_user import (
    CONFIG,
    FEATURE_LOG_ALL,
    FEATURE_PROTOCOL,
    HEADER,
    INFLIGHT,
    MEMORY,
    NEED_REPLY,
    REPLY,
    U64,
    VERSION,
    VRING_STATE,
    BackEndRequest,
    ProtocolFeature,
)
from harness.virtio.vhost_user import FrontEndRequest as Ask

USUAL = (
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
)
ANSWERED = {
    Ask.GET_FEATURES,
    Ask.GET_PROTOCOL_FEATURES,
    Ask.GET_QUEUE_NUM,
    Ask.GET_VRING_BASE,
    Ask.GET_CONFIG,
    Ask.GET_STATUS,
    Ask.GET_INFLIGHT_FD,
    Ask.GET_MAX_MEM_SLOTS,
}

WITHOUT_INDEX = {Ask.SET_MEM_TABLE, Ask.ADD_MEM_REG, Ask.SET_INFLIGHT_FD}
"""Messages whose descriptor is not for a virtqueue."""


@dataclass
class Message:
    """One message as it was received."""

    request: Ask
    flags: int
    payload: bytes
    fds: list[int]


class ScriptedBackEnd:
    """A back-end that listens on `path` and serves one front-end after the other, until `close`.

    `at` maps a request to a function of the connection that is called instead of an answer.
    Requests in `refused` are acknowledged as failures.
    """

    def __init__(
        self,
        path: Path,
        protocol: Iterable[ProtocolFeature] = USUAL,
        features: int = mask(Feature.VERSION_1, Feature.BLK_FLUSH, Feature.RING_PACKED),
        config: bytes = struct.pack("<Q", 2048) + bytes(88),
        queues: int = 2,
        config_limit: int = 96,
        slots: int = 8,
    ) -> None:
        self.features = features | FEATURE_PROTOCOL | FEATURE_LOG_ALL
        self.protocol = sum(feature.mask for feature in protocol)
        self.config = bytearray(config)
        self.config_limit = config_limit
        self.queues = queues
        self.slots = slots
        self.inflight_size = 4096
        self.inflight: list[int] = []
        self.at: dict[Ask, Callable[[socket.socket], Any]] = {}
        self.refused: set[Ask] = set()
        self.signal_new_call = False
        self.status = 0
        self.log: list[Message] = []
        self.fds: dict[tuple[Ask, int], int] = {}
        self.channel: socket.socket | None = None
        self.connections = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def seen(self) -> list[Ask]:
        return [message.request for message in self.log]

    def last(self, request: Ask) -> Message:
        return next(m for m in reversed(self.log) if m.request == request)

    def hang_up(self) -> None:
        assert self._connection
        self._connection.shutdown(socket.SHUT_RDWR)

    def say(self, request: int, flags: int = VERSION) -> None:
        assert self.channel
        self.channel.sendall(HEADER.pack(request, flags, 0))

    def change_capacity(self, capacity: int, flags: int = VERSION) -> None:
        struct.pack_into("<Q", self.config, 0, capacity)
        self.say(BackEndRequest.CONFIG_CHANGE, flags)

    def heard(self) -> tuple[int, int]:
        """Return the front-end's answer on the back-end's channel: request and value."""
        assert self.channel
        self.channel.settimeout(5)
        answer = self.channel.recv(64)
        request, flags, size = HEADER.unpack_from(answer)
        assert flags & REPLY and size == U64.size
        return request, U64.unpack_from(answer, HEADER.size)[0]

    def map(self) -> mmap.mmap:
        """Map the memory that the front-end has shared."""
        _, _, size, _, offset = MEMORY.unpack(self.last(Ask.SET_MEM_TABLE).payload)
        return mmap.mmap(self.fds[Ask.SET_MEM_TABLE, 0], size, offset=offset)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._connection:
            self._connection.close()
        self._thread.join(5)
        for fd in [*self.fds.values(), *self.inflight]:
            os.close(fd)
        if self.channel:
            self.channel.close()

    def _serve(self) -> None:
        while True:
            try:
                self._connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self.status = 0
            with self._connection:
                try:
                    while self._one(self._connection):
                        pass
                except OSError:
                    continue

    def _one(self, connection: socket.socket) -> bool:
        header, ancillary, _, _ = connection.recvmsg(HEADER.size, 256)
        if len(header) < HEADER.size:
            return False
        number, flags, size = HEADER.unpack(header)
        payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        message = Message(Ask(number), flags, payload, list(fds))
        self.log.append(message)
        if script := self.at.get(message.request):
            script(connection)
            return True
        answer = self._act(message)
        if message.request not in ANSWERED:
            if not flags & NEED_REPLY:
                return True
            answer = U64.pack(message.request in self.refused)
        reply = HEADER.pack(number, VERSION | REPLY, len(answer)) + answer
        given = self.inflight[-1:] if message.request == Ask.GET_INFLIGHT_FD else []
        socket.send_fds(connection, [reply], given)
        return True

    def _act(self, message: Message) -> bytes:
        request, payload = message.request, message.payload
        for fd in message.fds:
            index = payload[0] if payload and request not in WITHOUT_INDEX else 0
            if (old := self.fds.pop((request, index), None)) is not None:
                os.close(old)
            self.fds[request, index] = fd
        if request == Ask.SET_BACKEND_REQ_FD:
            self.channel = socket.socket(fileno=self.fds.pop((request, 0)))
        if request == Ask.SET_VRING_CALL and self.signal_new_call:
            os.eventfd_write(message.fds[0], 1)
        if request == Ask.SET_STATUS:
            (self.status,) = U64.unpack(payload)
        if request == Ask.GET_CONFIG:
            offset, size, flags = CONFIG.unpack_from(payload)
            if offset + size > self.config_limit:
                return b""
            return CONFIG.pack(offset, size, flags) + bytes(self.config[offset : offset + size])
        if request == Ask.GET_VRING_BASE:
            return VRING_STATE.pack(payload[0], 0)
        if request == Ask.GET_INFLIGHT_FD:
            _, _, queues, size = INFLIGHT.unpack(payload)
            if self.inflight_size:
                self.inflight.append(os.memfd_create("inflight"))
                os.truncate(self.inflight[-1], self.inflight_size + 512)
            return INFLIGHT.pack(self.inflight_size, 512, queues, size)
        numbers = {
            Ask.GET_FEATURES: self.features,
            Ask.GET_PROTOCOL_FEATURES: self.protocol,
            Ask.GET_QUEUE_NUM: self.queues,
            Ask.GET_STATUS: self.status,
            Ask.GET_MAX_MEM_SLOTS: self.slots,
        }
        return U64.pack(numbers.get(request, 0))
