"""A vhost-user back-end that is sound but for one step of the protocol.

It stands between a front-end and a real back-end, passes messages and descriptors on, and spoils
the answer to one request.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.virtio.vhost_user import HEADER, NEED_REPLY, REPLY, U64, VERSION
from harness.virtio.vhost_user import FrontEndRequest as Ask

GET_INFLIGHT_FD, GET_MAX_MEM_SLOTS = 31, 36
"""Requests of QEMU's that this project does not use; the first is answered with a descriptor."""

ANSWERED = {
    *(Ask.GET_FEATURES, Ask.GET_PROTOCOL_FEATURES, Ask.GET_QUEUE_NUM, Ask.GET_VRING_BASE),
    *(Ask.GET_CONFIG, Ask.GET_STATUS, GET_INFLIGHT_FD, GET_MAX_MEM_SLOTS),
}

STEPS = (
    *(Ask.GET_FEATURES, Ask.SET_FEATURES, Ask.GET_PROTOCOL_FEATURES, Ask.SET_PROTOCOL_FEATURES),
    *(Ask.SET_OWNER, Ask.GET_QUEUE_NUM, Ask.SET_BACKEND_REQ_FD, Ask.GET_CONFIG),
    *(Ask.SET_MEM_TABLE, Ask.SET_VRING_NUM, Ask.SET_VRING_ADDR, Ask.SET_VRING_BASE),
    *(Ask.SET_VRING_KICK, Ask.SET_VRING_CALL, Ask.SET_VRING_ENABLE, Ask.GET_VRING_BASE),
    *(Ask.SET_STATUS, Ask.GET_STATUS),
)

PATIENCE = 30.0
"""Seconds that a back-end which hangs waits for the front-end to hang up."""
ENDLESS = 64 << 20
"""Bytes after which an endless answer ends all the same."""


def hang(front: socket.socket, answer: bytes) -> None:
    front.settimeout(PATIENCE)
    while front.recv(4096):
        pass


def close(front: socket.socket, answer: bytes) -> None:
    front.shutdown(socket.SHUT_RDWR)


def garbage(front: socket.socket, answer: bytes) -> None:
    front.sendall(b"\xa5" * len(answer))


def short(front: socket.socket, answer: bytes) -> None:
    request, flags, size = HEADER.unpack_from(answer)
    cut = size // 2
    front.sendall(HEADER.pack(request, flags, cut) + answer[HEADER.size : HEADER.size + cut])


def long(front: socket.socket, answer: bytes) -> None:
    request, flags, size = HEADER.unpack_from(answer)
    front.sendall(HEADER.pack(request, flags, size + 8) + answer[HEADER.size :] + bytes(8))


def endless(front: socket.socket, answer: bytes) -> None:
    front.settimeout(PATIENCE)
    for _ in range(0, ENDLESS, 1 << 16):
        front.sendall(answer * ((1 << 16) // len(answer)))


def slow(front: socket.socket, answer: bytes) -> None:
    raise AssertionError("the proxy delays an answer itself, if there is one")


def wrong_id(front: socket.socket, answer: bytes) -> None:
    request, flags, size = HEADER.unpack_from(answer)
    front.sendall(HEADER.pack(request + 1, flags, size) + answer[HEADER.size :])


def twice(front: socket.socket, answer: bytes) -> None:
    front.sendall(answer * 2)


BEHAVIOURS: dict[str, Callable[[socket.socket, bytes], None]] = {
    function.__name__: function
    for function in (hang, close, garbage, short, long, endless, slow, wrong_id, twice)
}


class Proxy:
    """Listens on `path` until `end`; `spoiled` counts the answers that it spoiled."""

    def __init__(self, path: Path, real: Path, step: Ask, behaviour: str) -> None:
        self.path = path
        self.step = step
        self.spoiled = 0
        self._real = real
        self._spoil = BEHAVIOURS[behaviour]
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._front: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def end(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._front:
            with suppress(OSError):
                self._front.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)

    def _serve(self) -> None:
        while True:
            try:
                self._front, _ = self._listener.accept()
            except OSError:
                return
            with suppress(OSError, struct.error, ValueError):
                self._serve_one(self._front)

    def _serve_one(self, front: socket.socket) -> None:
        with front, socket.socket(socket.AF_UNIX) as back:
            back.settimeout(PATIENCE)
            back.connect(str(self._real))
            while self._pass_on(front, back):
                pass

    def _pass_on(self, front: socket.socket, back: socket.socket) -> bool:
        request = _read(front)
        if not request.header:
            return False
        number, flags, _ = HEADER.unpack(request.header)
        _send(back, request)
        answer = _read(back) if number in ANSWERED or flags & NEED_REPLY else Message()
        if number != self.step:
            _send(front, answer)
            return True
        self.spoiled += 1
        acknowledgment = HEADER.pack(number, VERSION | REPLY, U64.size) + U64.pack(0)
        if self._spoil is slow:
            time.sleep(0.2)
            _send(front, answer)
        else:
            self._spoil(front, answer.header + answer.payload or acknowledgment)
        return True


@dataclass
class Message:
    """A message as it came, with its descriptors."""

    header: bytes = b""
    payload: bytes = b""
    fds: array.array[int] = field(default_factory=lambda: array.array("i"))


def _read(link: socket.socket) -> Message:
    """Read a message; without a header if the other end hung up."""
    header, ancillary, _, _ = link.recvmsg(HEADER.size, 1024)
    if len(header) < HEADER.size:
        return Message()
    size = HEADER.unpack(header)[2]
    message = Message(header, link.recv(size, socket.MSG_WAITALL) if size else b"")
    for _, _, data in ancillary:
        message.fds.frombytes(data[: len(data) - len(data) % message.fds.itemsize])
    return message


def _send(link: socket.socket, message: Message) -> None:
    """Send a message on, and close our copies of its descriptors."""
    try:
        if message.header:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, message.fds)] if message.fds else []
            link.sendmsg([message.header + message.payload], rights)
    finally:
        for fd in message.fds:
            os.close(fd)
